# SPDX-License-Identifier: BSD-3-Clause
"""The ledger's file: who may read it, what it is refused for, and what becomes of it without room."""

from __future__ import annotations

import errno
import os
import random
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
from contextlib import suppress
from pathlib import Path

import pytest

from lab.damages import on_disk
from lab.ledgers import IF, SPEC, process
from lab.networks import sandbox
from lab.processes import DEADLINE, UNPRIVILEGED, namespaces, needs_root
from lab.refusals import refused
from mtlshm.net.ledger import Ledger, State


def test_entries_survive_closing(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        ledger.keep(IF)
    with Ledger(tmp_path) as ledger:
        assert ledger.in_use(IF)
    with Ledger(tmp_path, read_only=True) as ledger:
        assert ledger.in_use(IF)


def test_another_boot_id_is_a_containers_where_no_file_outlives_a_boot() -> None:
    """A service in systemd-nspawn may see another one each time it is started."""
    with tempfile.TemporaryDirectory(prefix="mtlshm-test-", dir="/dev/shm") as directory:
        with Ledger(Path(directory)) as ledger:
            ledger.keep(IF)
        with sqlite3.connect(f"{directory}/ledger") as db:
            db.execute("UPDATE place SET boot_id = 'of a container'")
        db.close()
        with Ledger(Path(directory), read_only=True) as ledger:
            assert ledger.in_use(IF)
        with Ledger(Path(directory)) as ledger:
            assert ledger.in_use(IF)


def test_entries_of_an_earlier_boot_are_dropped(tmp_path: Path) -> None:
    on_disk(tmp_path)
    with Ledger(tmp_path) as ledger:
        ledger.intend_flow(ledger.enter(1, process()), IF, 1, 1, SPEC)
        ledger.keep(IF)
    with sqlite3.connect(tmp_path / "ledger") as db:
        db.execute("UPDATE place SET boot_id = 'earlier'")
    db.close()
    with refused(errno.ENOENT):
        Ledger(tmp_path, read_only=True)
    with Ledger(tmp_path) as ledger:
        assert ledger.state() == State((), (), (), (), ())


def test_the_state_of_another_network_namespace_is_refused(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        ledger.keep(IF)
    code = "import sys; from pathlib import Path; from mtlshm.net.ledger import Ledger; Ledger(Path(sys.argv[1])"
    for how, advice in (")", "use another directory"), (", read_only=True)", "enter that"):
        command = [*namespaces("net"), sys.executable, "-c", code + how, str(tmp_path)]
        result = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE)
        assert f"another network namespace; {advice}" in result.stderr
    with Ledger(tmp_path) as ledger:
        assert ledger.in_use(IF)


def test_the_layout_of_another_version_is_refused(tmp_path: Path) -> None:
    Ledger(tmp_path).close()
    with sqlite3.connect(tmp_path / "ledger") as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with refused(errno.EPROTO):
        Ledger(tmp_path)
    with refused(errno.EPROTO):
        Ledger(tmp_path, read_only=True)


def test_a_damaged_file_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        owner = ledger.enter(1, process())
        for port in range(3000):
            ledger.add_port(owner, IF, port)
    file = tmp_path / "ledger"
    data = bytearray(file.read_bytes())
    data[8192:] = random.Random(1).randbytes(len(data) - 8192)
    file.write_bytes(data)
    with refused(errno.EUCLEAN):
        Ledger(tmp_path)
    file.write_bytes(b"no ledger at all, but just as long as it takes")
    with refused(errno.EUCLEAN):
        Ledger(tmp_path)
    assert file.read_bytes().startswith(b"no ledger")


def test_reading_a_missing_ledger_fails(tmp_path: Path) -> None:
    with refused(errno.ENOENT):
        Ledger(tmp_path, read_only=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mode", [0o775, 0o757])
def test_a_directory_that_others_can_write_is_refused(tmp_path: Path, mode: int) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state").chmod(mode)
    with refused(errno.EPERM):
        Ledger(tmp_path / "state")
    assert list((tmp_path / "state").iterdir()) == []


@needs_root("directories of another user")
def test_a_directory_of_another_user_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    os.chown(tmp_path / "state", UNPRIVILEGED, UNPRIVILEGED)
    with refused(errno.EPERM):
        Ledger(tmp_path / "state")


def test_file_mode_is_independent_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        with Ledger(tmp_path / "state") as ledger:
            ledger.keep(IF)
            modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "state").iterdir()}
    finally:
        os.umask(before)
    assert modes == {"ledger": 0o640, "ledger-wal": 0o640, "ledger-shm": 0o640}


@needs_root("a ledger of another group")
def test_only_the_server_sets_the_ledgers_group(tmp_path: Path) -> None:
    def rights() -> dict[str, tuple[int, int]]:
        return {path.name: (path.stat().st_gid, path.stat().st_mode & 0o777) for path in tmp_path.iterdir()}

    with Ledger(tmp_path) as ledger:
        ledger.keep(IF)
        assert set(rights().values()) == {(os.getegid(), 0o640)}
        (tmp_path / "ledger").chmod(0o644)  # as it was made by an earlier version
        with Ledger(tmp_path, gid=UNPRIVILEGED) as other:
            other.keep(IF + 1)
            assert rights() == dict.fromkeys(("ledger", "ledger-wal", "ledger-shm"), (UNPRIVILEGED, 0o640))
    with Ledger(tmp_path) as ledger:
        ledger.keep(IF + 2)
        assert rights() == dict.fromkeys(("ledger", "ledger-wal", "ledger-shm"), (UNPRIVILEGED, 0o640))


@needs_root("the ill will of another user")
def test_non_members_cannot_open_the_ledgers_files(open_path: Path) -> None:
    code = """
        import os, sys
        os.setgroups([]); os.setgid(65533); os.setuid(65533)
        for name in sys.argv[1:]:
            try:
                os.open(name, os.O_RDONLY)
            except PermissionError:
                print(name)
    """
    with Ledger(open_path) as ledger:
        ledger.keep(IF)
        ledger.serve()
        names = sorted(str(path) for path in open_path.iterdir())
        command = [sys.executable, "-c", textwrap.dedent(code), *names]
        refused = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.split()
    assert len(names) == 4
    assert refused == names


@needs_root("a small file system")
def test_on_a_small_file_system_it_goes_on_once_there_is_room() -> None:
    small = Path("/run/small")
    with sandbox():
        small.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=384k,mode=755", "none", small], check=True)
        with Ledger(small / "state") as ledger:
            for number in range(1, 200):  # the WAL would come to megabytes
                come_and_go(ledger, number)
            others = small / "others"
            with suppress(OSError), others.open("wb", buffering=0) as file:
                while file.write(bytes(4096)):
                    pass
            with refused(errno.ENOSPC):
                for number in range(200, 400):
                    ledger.enter(number, process(number))
            with refused(errno.ENOSPC):
                for number in range(400, 600):
                    ledger.enter(number, process(number))
            os.truncate(others, others.stat().st_size - (48 << 10))
            for number in range(1000, 1100):
                come_and_go(ledger, number)


def come_and_go(ledger: Ledger, number: int) -> None:
    owner = ledger.enter(number, process(number))
    ledger.leave(owner)
    assert ledger.settle(owner)


def test_a_full_disk_is_told_and_changes_nothing(ledger: Ledger) -> None:
    ledger._db.execute("PRAGMA max_page_count = 20")  # SQLite's own way to have no room
    owner = ledger.enter(1, process())
    added = 0
    with refused(errno.ENOSPC):
        for port in range(65536):
            ledger.add_port(owner, IF, port)
            added += 1
    assert ledger.ports(IF) == set(range(added))
    ledger._db.execute("PRAGMA max_page_count = 1000000")
    assert ledger.add_port(owner, IF, 65535)
