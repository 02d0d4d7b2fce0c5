# SPDX-License-Identifier: BSD-3-Clause
"""layout.c: segments that other versions of the library have made, by real builds of two versions."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator
from errno import EPROTO
from pathlib import Path

import pytest

from lab.damages import poke
from lab.processes import BIN, Puppet, compile_program, start_puppet
from mtlshm import Host, Kind, OtherLayout
from mtlshm._core import lib

Start = Callable[..., Puppet]

ROOT = Path(__file__).parents[2]
VERSION = int(lib.MTLSHM_LAYOUT_VERSION)


@pytest.fixture(scope="session")
def next_version(build_once: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The puppet, built from the sources of a version whose records are longer than ours."""

    def build(program: Path) -> None:
        sources = tmp_path_factory.mktemp("next")
        shutil.copytree(ROOT / "cffi_build", sources / "core")
        header = sources / "core/mtlshm.h"
        text, changes = re.subn(rf"(MTLSHM_LAYOUT_VERSION =) {VERSION},", rf"\1 {VERSION + 1},", header.read_text())
        text, more = re.subn(r"(uint8_t reserved1\[)24(\];\n\};)", r"\g<1>88\2", text)
        assert changes == more == 1
        header.write_text(text)
        segment = sources / "core/segment.c"
        segment.write_text(segment.read_text().replace("mtlshm_record) == 320", "mtlshm_record) == 384"))
        core = [sources / "core" / name for name in (ROOT / "cffi_build/sources.txt").read_text().split()]
        puppet = sorted((ROOT / "tests/cffi_build/puppet").glob("*.c"))
        compile_program(program, *puppet, *core, flags=["-I", sources / "core"])

    return build_once("next_version", build)


@pytest.fixture
def newer(next_version: Path, segment: str) -> Iterator[Start]:
    """Starts puppets of the next version; they have opened nothing."""
    started: list[Puppet] = []

    def start() -> Puppet:
        started.append(new := start_puppet(next_version, segment))
        return new

    yield start
    for each in started:
        each.clean_up()


def version(segment: str) -> int:
    return int.from_bytes(Path(segment).read_bytes()[8:12], "little")


def test_unused_segment_is_replaced_by_newer_and_older_versions(puppet: Start, newer: Start, segment: str) -> None:
    first = puppet()
    first.claim(1)
    second = newer()
    assert second.open(1) == -EPROTO
    assert version(segment) == VERSION
    first.kill()  # not collected: it is LIVE, without its lock
    assert second.open(1) == 0
    assert version(segment) == VERSION + 1
    assert second.register() == second.claim(1) == 0

    third = puppet(ready=False)
    assert third.open(1) == -EPROTO
    second.kill()
    assert third.open(1) == third.register() == third.claim(1) == 0
    assert version(segment) == VERSION


@pytest.mark.parametrize("kind", [Kind.SOCKET, Kind.LEGACY, Kind.POOL])
def test_a_process_that_a_daemon_keeps_counts_and_the_pool_does_not(
    puppet: Start, newer: Start, segment: str, kind: Kind
) -> None:
    keeper = puppet()
    assert keeper.register_proxy(kind, 0) == 0
    keeper.kill()
    assert newer().open(1) == (0 if kind is Kind.POOL else -EPROTO)


def test_read_only_open_replaces_nothing(puppet: Start, newer: Start, segment: str) -> None:
    puppet().kill()
    assert newer().open(0) == -EPROTO
    assert newer().open(2) == -EPROTO
    assert version(segment) == VERSION


@pytest.mark.parametrize("field", ["records_at", "record_size", "records", "kind_at"])
def test_a_header_that_makes_no_sense_replaces_nothing(puppet: Start, newer: Start, segment: str, field: str) -> None:
    puppet().kill()
    poke(segment, "header", field, value=0xFFFFFFFF)
    assert newer().open(1) == -EPROTO


def test_fifty_at_once_make_one(puppet: Start, newer: Start, segment: str) -> None:
    puppet().kill()
    crowd = [newer() for _ in range(20)]
    for each in crowd:
        each.tell("open", 1)
    assert [each.answer() for each in crowd] == [0] * len(crowd)
    for lcore, each in enumerate(crowd):
        assert each.register() == each.claim(lcore) == 0
    assert crowd[0].snapshot() == len(crowd)


def test_error_names_the_users_of_the_segment(newer: Start, segment: str) -> None:
    user = newer()
    assert user.open(1) == user.register() == 0
    with pytest.raises(OtherLayout, match=rf"layout version {VERSION + 1}.*next_version \(pid {user.pid}\)"):
        Host(segment)
    done = subprocess.run([BIN / "mtlshm-ctl", "--segment", segment, "hold", "0"], capture_output=True, text=True)
    assert done.returncode == 6
    assert done.stderr.count("\n") == 1
    environment = os.environ | {"MTLSHMD_CONFIG": "/dev/null", "MTL_MANAGER_SOCK_PATH": ""}
    daemon = subprocess.run([BIN / "mtlshmd", "--segment", segment], env=environment, capture_output=True, text=True)
    assert daemon.returncode == 3
    assert "next_version" in daemon.stderr


def test_error_names_reservations_without_processes(newer: Start, segment: str) -> None:
    maker = newer()
    assert maker.open(1) == 0
    assert maker.reserve("studio", 1) > 0
    assert maker.register_proxy(Kind.SOCKET, 0) == 0
    maker.kill()
    with pytest.raises(
        OtherLayout, match=r"1 reservation is in it: .* 1 process is in it that a daemon keeps"
    ) as error:
        Host(segment)
    assert "cannot be seen" not in str(error.value)
    assert maker.pid not in map(int, re.findall(r"pid (\d+)", str(error.value)))


def test_it_is_said_that_one_was_replaced(newer: Start, segment: str) -> None:
    user = newer()
    assert user.open(1) == 0
    user.kill()
    done = subprocess.run(
        [BIN / "mtlshm-ctl", "--segment", segment, "run", "--lcores", "1", "true"], capture_output=True, text=True
    )
    assert done.returncode == 0
    assert f"one of layout version {VERSION + 1}, which nobody used, was replaced" in done.stderr


def of_version_1() -> bytes:
    """A segment as version 1 wrote it: a client of the socket has lcore 3, a dead process lcore 4."""
    header = struct.pack("=8sIIQQQ40sI44xQ56xQQQQ32x", b"MTLSHM\r\n", 1, 128, 0, 82176, 10**18, b"", 1, 0, 7, 5, 3, 1)
    records = bytearray(256 * 256)
    for index, (state, kind, comm) in enumerate([(2, 2, b"sender"), (1, 0, b"gone")]):
        record = struct.pack("=QQI12xQQQiI8x16s64s64s40x", 9 << 8 | state, 1, kind, 5, 6, 0, 42, 0, comm, b"vm", comm)
        records[index * 256 : index * 256 + 256] = record
    return header + bytes(records) + lcores_of_two()


def of_version_2() -> bytes:
    """The same as version 2 wrote it; the dead process is a tenant of a reservation."""
    where = 256, 320, 256, 24  # the records: their place, size and number, and that of the kind in one
    fixed = struct.pack("=8sIIQQQ40sI4xIIII24x", b"MTLSHM\r\n", 2, 128, 0, 98560, 10**18, b"", 1, *where)
    header = fixed + struct.pack("=Q56xQQQQ32x", 0, 7, 5, 3, 1)
    records = bytearray(256 * 320)
    rows = [(2, 0, 2, b"sender", b""), (1, 9 << 20 | 2 << 8, 0, b"gone", b""), (2, 0, 5, b"", b"studio")]
    for index, (state, parent, kind, comm, key) in enumerate(rows):
        said = 9 << 8 | state, parent, 1, kind, 5, 6, 0, 42, 0, comm, b"vm", comm, key
        records[index * 320 : index * 320 + 320] = struct.pack("=QQQI4xQQQiI8x16s64s64s64s40x", *said)
    return header + bytes(records) + lcores_of_two()


def lcores_of_two() -> bytes:
    lcores = bytearray(1024 * 16)
    for number, index in (3, 0), (4, 1):
        struct.pack_into("=QQ", lcores, number * 16, 9 << 20 | index << 8 | 3, 0)
    return bytes(lcores)


def test_status_shows_the_layout_before_this_one(segment: str) -> None:
    Path(segment).write_bytes(of_version_2())
    done = subprocess.run(
        [BIN / "mtlshm-ctl", "--segment", segment, "status", "--json"], capture_output=True, text=True, check=True
    )
    shown = json.loads(done.stdout)
    assert [(lcore["lcore"], lcore["comm"], lcore["state"]) for lcore in shown["lcores"]] == [
        (3, "sender", "alive"),
        (4, "gone", "dead"),
    ]
    keys = {info["owner"]: info["key"] for info in shown["instances"]}
    assert keys[shown["lcores"][1]["parent"]] == "studio"
    assert "layout version 2" in done.stderr
    assert version(segment) == 2


@pytest.mark.parametrize("content", [of_version_1(), of_version_2()], ids=["1", "2"])
def test_a_segment_of_an_earlier_version_that_nobody_uses_is_replaced(
    puppet: Start, segment: str, content: bytes
) -> None:
    Path(segment).write_bytes(content)
    client = puppet(ready=False)
    assert client.open(1) == -EPROTO  # a daemon has to tell whether the client of the socket lives
    size = 256 if version(segment) == 1 else 320
    data = bytearray(content)
    data[256] = data[256 + 2 * size] = 0
    Path(segment).write_bytes(data)
    assert client.open(1) == 0
    assert version(segment) == VERSION
