# SPDX-License-Identifier: BSD-3-Clause
"""Directories in which root may work by name, and those in which somebody else could lead it astray."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lab.processes import UNPRIVILEGED, needs_root
from mtlshm.net.trusted import open_directory

pytestmark = needs_root("directories of others")


def refused(path: Path, text: str) -> None:
    with pytest.raises(PermissionError, match=text):
        open_directory(path)


def opened(path: Path) -> None:
    fd = open_directory(path)
    try:
        assert os.path.samestat(os.fstat(fd), path.stat())
    finally:
        os.close(fd)


def directory(path: Path, mode: int, owner: int = 0) -> Path:
    path.mkdir()
    path.chmod(mode)
    os.chown(path, owner, 0)
    return path


@pytest.mark.parametrize("mode", [0o700, 0o755])
def test_roots_own_is_trusted(tmp_path: Path, mode: int) -> None:
    opened(directory(directory(tmp_path / "above", 0o755) / "it", mode))


@pytest.mark.parametrize("mode", [0o770, 0o775, 0o702, 0o1777])
def test_one_that_others_can_write_is_not(tmp_path: Path, mode: int) -> None:
    refused(directory(tmp_path / "it", mode), f"{tmp_path}/it can be written by others.*chmod go-w {tmp_path}/it")


def test_one_that_belongs_to_somebody_else_is_not(tmp_path: Path) -> None:
    refused(directory(tmp_path / "it", 0o755, UNPRIVILEGED), f"{tmp_path}/it belongs to uid {UNPRIVILEGED}")


def test_path_below_an_untrusted_directory_is_untrusted(tmp_path: Path) -> None:
    refused(directory(directory(tmp_path / "a", 0o777) / "it", 0o700), f"{tmp_path}/a can be written")
    refused(directory(directory(tmp_path / "b", 0o755, UNPRIVILEGED) / "it", 0o700), f"{tmp_path}/b belongs")


def test_roots_file_in_a_sticky_directory_is_trusted(tmp_path: Path) -> None:
    above = directory(tmp_path / "above", 0o1777)
    opened(directory(above / "it", 0o755))
    refused(directory(above / "theirs", 0o755, UNPRIVILEGED), "theirs belongs")


def test_links_of_roots_are_followed_and_those_of_others_are_not(tmp_path: Path) -> None:
    directory(tmp_path / "it", 0o755)
    above = directory(tmp_path / "above", 0o1777)
    for target in (tmp_path, "..", "./.././../" + tmp_path.name):
        link = above / "link"
        link.symlink_to(target)
        opened(link / "it")
        os.chown(link, UNPRIVILEGED, 0, follow_symlinks=False)
        refused(link / "it", f"{link} is a link that belongs to uid {UNPRIVILEGED}")
        link.unlink()
    (tmp_path / "round").symlink_to("round")
    refused(tmp_path / "round", "is a link")


def test_missing_directory_and_file_are_not_trusted(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="file is no directory"):
        open_directory(tmp_path / "file")
    with pytest.raises(FileNotFoundError):
        open_directory(tmp_path / "nothing")


def test_missing_directory_is_made(tmp_path: Path) -> None:
    os.close(open_directory(tmp_path / "a/b", lambda above, name: os.mkdir(name, 0o700, dir_fd=above)))
    opened(tmp_path / "a/b")


def test_a_name_that_somebody_else_takes_first_is_refused(tmp_path: Path) -> None:
    """Here in the moment between finding nothing and making it."""
    above = directory(tmp_path / "above", 0o1777)

    def overtaken(_: int, name: str) -> None:
        (above / name).symlink_to("/root")
        os.chown(above / name, UNPRIVILEGED, 0, follow_symlinks=False)

    with pytest.raises(PermissionError, match="is a link"):
        open_directory(above / "it", overtaken)
