# SPDX-License-Identifier: BSD-3-Clause
"""Pins: where they are nobody but root can put anything, and nothing is removed that is not one of them."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.bpf_object import Object
from lab.networks import sandbox
from lab.processes import UNPRIVILEGED, needs_root
from mtlshm.net import bpf
from mtlshm.net.pins import Pins, check_libxdps
from mtlshm.net.xdp import find_object

pytestmark = needs_root("pins in a BPF file system")

BPFFS = Path("/sys/fs/bpf")
KNOWN = ("ports", "xsks_map")
IFINDEX = 7


@pytest.fixture(autouse=True)
def bpffs() -> Iterator[None]:
    """One that is open to all, as mount(8) makes it if nothing is said."""
    with sandbox():
        subprocess.run(["umount", BPFFS], check=True)
        subprocess.run(["mount", "-t", "bpf", "bpf", BPFFS], check=True)
        assert BPFFS.stat().st_mode & 0o7777 == 0o1777
        yield


@pytest.fixture
def pins() -> Pins:
    return Pins(BPFFS / "mtlshm", KNOWN)


def test_nobody_else_can_get_in(pins: Pins) -> None:
    assert pins.find(IFINDEX) is None
    assert pins.interfaces() == []
    pins.make(IFINDEX).close()
    assert pins.interfaces() == [IFINDEX]
    (directory,) = pins.path.iterdir()
    for path in (pins.path, directory):
        assert (path.stat().st_uid, path.stat().st_mode & 0o7777) == (0, 0o700)
    pins.remove(IFINDEX)
    pins.remove(IFINDEX)
    pins.remove_all()
    assert not pins.path.exists()


@pytest.mark.parametrize("how", ["theirs", "open", "a link"])
def test_foreign_directory_is_not_used(pins: Pins, tmp_path: Path, how: str) -> None:
    """Nor is anything there taken for ours, or removed."""
    pins.make(IFINDEX).close()
    (directory,) = pins.path.iterdir()
    pins.remove(IFINDEX)
    if how == "a link":
        pins.remove_all()
        (tmp_path / directory.name).mkdir()
        pins.path.symlink_to(tmp_path)
        os.chown(pins.path, UNPRIVILEGED, 0, follow_symlinks=False)
    else:
        directory.symlink_to(tmp_path)
        os.chown(directory, UNPRIVILEGED, 0, follow_symlinks=False)
        if how == "theirs":
            os.chown(pins.path, UNPRIVILEGED, 0)
        else:
            pins.path.chmod(0o777)
    victim = tmp_path / "ports"
    victim.touch()
    for attempt in (pins.make, pins.find, pins.remove):
        with pytest.raises(PermissionError):
            attempt(IFINDEX)
    with pytest.raises(PermissionError):
        pins.interfaces()
    assert victim.exists()


def test_a_link_in_the_place_of_an_interfaces_directory_is_not_followed(pins: Pins, tmp_path: Path) -> None:
    pins.make(IFINDEX).close()
    (directory,) = pins.path.iterdir()
    directory.rmdir()
    directory.symlink_to(tmp_path)
    (tmp_path / "ports").touch()
    for attempt in (pins.make, pins.find, pins.remove):
        with pytest.raises(NotADirectoryError):
            attempt(IFINDEX)
    assert (tmp_path / "ports").exists()


def test_only_pins_with_our_names_are_removed(pins: Pins, tmp_path: Path) -> None:
    """And of links only themselves."""
    (tmp_path / "file").touch()
    with pins.make(IFINDEX) as pinned:
        (pinned.path / "ports").symlink_to(tmp_path)
        (pinned.path / "somebodys").mkdir()
    with pytest.raises(OSError, match="something else in it that is not ours") as refused:
        pins.remove(IFINDEX)
    assert refused.value.errno == errno.ENOTEMPTY
    assert [path.name for path in pinned.path.iterdir()] == ["somebodys"]
    assert (tmp_path / "file").exists()
    (pinned.path / "somebodys").rmdir()
    pins.remove(IFINDEX)
    assert list(pins.path.iterdir()) == []


def test_file_with_a_pins_name_is_replaced_and_a_link_not_followed(pins: Pins, tmp_path: Path) -> None:
    with pins.make(IFINDEX) as pinned, Object(find_object("mtl_dp_fused.o")) as program:
        ports = program.map(".data.ports")
        for make in (
            lambda path: path.symlink_to(tmp_path),
            lambda path: path.mkdir(),
            lambda path: program.map("xsks_map").pin(path),
        ):
            make(pinned.path / "ports")
            pinned.pin(ports, "ports")
            with bpf.Map.pinned(pinned.path / "ports") as found:
                assert found.info == ports.info
            pinned.unpin("ports")
            assert pinned.names() == []


def test_libxdps_own_directory_must_be_roots(pins: Pins) -> None:
    check_libxdps()
    assert (BPFFS / "xdp").stat().st_mode & 0o7777 == 0o700
    os.chown(BPFFS / "xdp", UNPRIVILEGED, 0)
    with pytest.raises(PermissionError, match="/sys/fs/bpf/xdp belongs to uid"):
        check_libxdps()
