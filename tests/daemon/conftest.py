# SPDX-License-Identifier: BSD-3-Clause
"""Clients of the daemon: on the legacy table, on the manager socket and at an interface."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.eal_clients import EalProcess
from lab.networks import QUEUES, Veth
from lab.processes import DEADLINE, Daemon
from mtlshm import wire
from mtlshm.legacy.table import LegacyTable
from mtlshm.manager_client import Manager
from mtlshm.net.ledger import Ledger
from mtlshm.wire import Dialect

StartDaemon = Callable[..., Daemon]


@pytest.fixture
def bridge(legacy_place: dict[str, str], daemon: StartDaemon) -> StartDaemon:
    """Starts daemons that bridge the test's legacy table."""

    def start(lent: object = 0, *arguments: object, **options: Any) -> Daemon:
        return daemon("--legacy", lent, *arguments, environment=legacy_place, **options)

    return start


@pytest.fixture
def table(legacy_place: dict[str, str]) -> Iterator[Callable[[], LegacyTable]]:
    """What somebody sees who is attached for a moment."""
    opened: list[LegacyTable] = []

    def attach() -> LegacyTable:
        opened.append(table := LegacyTable(int(legacy_place["MTLSHM_LEGACY_KEY"], 0), create=False))
        return table

    yield attach
    for each in opened:
        each.close()


@pytest.fixture
def connect(daemon, manager_socket):
    """Connects to a running daemon: connect() is registered, in dialect A."""
    daemon()
    opened: list[Manager] = []

    def run(dialect: Dialect = Dialect.A, registered: bool = True) -> Manager:
        opened.append(new := Manager(manager_socket, dialect=dialect, timeout=DEADLINE))
        if registered:
            new.register()
        return new

    yield run
    for each in opened:
        each.close()


CLIENT = """
import os, sys, time
from mtlshm.manager_client import Manager
manager = Manager(sys.argv[1])
manager.register()
manager.get_lcore(int(sys.argv[2]))
if len(sys.argv) > 3:
    os.set_inheritable(manager.socket.fileno(), True)
    child = os.fork()
    if not child:
        print(os.getpid(), flush=True)
        sys.stdin.read()
        os._exit(0)
else:
    print(os.getpid(), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def client(manager_socket):
    """Starts processes that get one lcore through the socket and live until killed."""
    started: list[subprocess.Popen[str]] = []

    def start(lcore: int, *words: str, prefix: tuple[str, ...] = ()) -> subprocess.Popen[str]:
        command = [*prefix, sys.executable, "-c", CLIENT, str(manager_socket), str(lcore), *words]
        started.append(new := subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        assert new.stdout
        new.child = int(new.stdout.readline())  # type: ignore[attr-defined]
        return new

    yield start
    for process in started:
        with process:
            process.kill()


@pytest.fixture
def link_client(server: StartDaemon, manager_socket: Path, link: Veth) -> Iterator[Callable[..., Manager]]:
    """Connects to a running daemon: link_client() has named the interface."""
    server()
    opened: list[Manager] = []

    def run(*interfaces: int, dialect: wire.Dialect = wire.Dialect.B) -> Manager:
        opened.append(new := Manager(manager_socket, dialect=dialect, timeout=DEADLINE))
        new.register(interfaces or (link.index,))
        return new

    yield run
    for each in opened:
        each.close()


@pytest.fixture
def ledger(tmp_path: Path) -> Callable[[], Ledger]:
    return lambda: Ledger(tmp_path / "state", read_only=True)


@pytest.fixture
def rules(stand_in, link: Veth):
    """Gives the interface a driver with flow rules, in the stand-in."""
    stand_in.set(link.name, combined=QUEUES)
    return lambda: stand_in.rules(link.name)


@pytest.fixture
def eal_process(manager_socket: Path) -> Iterator[Callable[[dict[int, int]], EalProcess]]:
    """Starts clients with these CPUs, by lcore ids."""
    started: list[EalProcess] = []

    def start(lcores: dict[int, int]) -> EalProcess:
        started.append(new := EalProcess(manager_socket, lcores))
        return new

    yield start
    for each in started:
        with each.process as process:
            process.kill()


@pytest.fixture
def two_cpus() -> tuple[int, int]:
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2:
        pytest.skip("needs two CPUs; not tested otherwise: remapped lcore ids on disjoint CPU sets")
    return cpus[0], cpus[1]
