# SPDX-License-Identifier: BSD-3-Clause
"""How many lcores the daemon lends to legacy processes, and when it takes them back."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lab.legacy_clients import available, lent, of_legacy
from lab.processes import (
    DEADLINE,
    Daemon,
    Puppet,
    eventually,
    held,
    look,
    namespaces,
    needs_root,
    pid_inside,
    same_namespaces,
)
from mtlshm import CpuSet, Host, Kind
from mtlshm.manager_client import Manager

StartPuppet = Callable[..., Puppet]


StartDaemon = Callable[..., Daemon]


def own_cpus(least: int) -> list[int]:
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < least or max(cpus) >= 128:
        pytest.skip(f"needs {least} CPUs; not tested otherwise: what is lent of few")
    return cpus


@pytest.fixture
def manager(manager_socket: Path) -> Iterator[Callable[[], Manager]]:
    """Connects to a running daemon, and is registered."""
    opened: list[Manager] = []

    def connect() -> Manager:
        opened.append(new := Manager(manager_socket, timeout=DEADLINE))
        new.register()
        return new

    yield connect
    for each in opened:
        each.close()


def test_unused_loan_is_granted_to_a_socket_client_when_nothing_else_is_free(
    bridge: StartDaemon, legacy: StartPuppet, segment: str, manager: Callable[[], Manager]
) -> None:
    first, *_, last = own_cpus(2)
    bridge(f"{first},{last}")
    process = legacy()
    assert process.claim(0) == first
    eventually(lambda: of_legacy(segment) == {first: process.pid})
    with Host(segment) as host, host.register("others") as others:
        for cpu in own_cpus(2)[1:-1]:
            others.claim(cpu)
        client = manager()
        with pytest.raises(OSError, match="busy"):
            client.get_lcore(first)
        client.get_lcore(last)
        assert available(process) == set()
        client.put_lcore(last)
        eventually(lambda: lent(segment) == {last} == available(process))


def test_loan_is_refused_to_socket_clients_while_others_are_free(
    bridge: StartDaemon, segment: str, manager: Callable[[], Manager]
) -> None:
    *others, last = own_cpus(2)
    server = bridge(f"{last}-{last}")
    client = manager()
    with pytest.raises(OSError, match="busy"):
        client.get_lcore(last)
    server.await_log(f"mtlshm-ctl legacy reclaim {last}-{last}")
    for cpu in others:
        client.get_lcore(cpu)
    client.get_lcore(last)
    assert lent(segment) == set()


def test_by_default_few_are_lent_and_none_of_a_small_host(
    bridge: StartDaemon, daemon: StartDaemon, legacy_place: dict[str, str], segment: str
) -> None:
    daemon(environment=legacy_place | {"MTLSHMD_LEGACY": ""}).kill()
    cpus = os.cpu_count() or 1
    assert len(lent(segment)) == (cpus // 16 if cpus >= 20 else 0)


def test_by_default_the_last_two_that_are_free_are_not_lent(
    daemon: StartDaemon, legacy_place: dict[str, str], segment: str
) -> None:
    """Though there were so many CPUs that all of them would be lent."""
    code = "import os; os.cpu_count = lambda: 32768; from mtlshm.daemon.app import main; main()"
    daemon(environment=legacy_place | {"MTLSHMD_LEGACY": ""}, command=[sys.executable, "-c", code])
    online = CpuSet.parse(Path("/sys/devices/system/cpu/online").read_text().strip())
    assert len(lent(segment)) == max(0, len(online) - 2)


@pytest.mark.parametrize("then", [0, "off", "6-6"])
def test_smaller_loan_is_taken_back_at_the_next_start(
    bridge: StartDaemon, legacy: StartPuppet, segment: str, then: int | str
) -> None:
    process = legacy()
    server = bridge("5-7")
    assert process.claim(0) == 5
    eventually(lambda: of_legacy(segment) == {5: process.pid})
    server.kill()
    server = bridge(then)
    still = {6} if then == "6-6" else set()
    assert lent(segment) == still == available(process)
    assert of_legacy(segment) == {5: process.pid}
    process.kill()
    eventually(lambda: held(segment) == still)
    if then == "off":
        server.await_log("it is left alone")
        eventually(lambda: all(info.kind == Kind.DAEMON for info in look(segment).instances))


@needs_root("lcores that were lent in another IPC namespace")
@pytest.mark.parametrize("then", [0, "off", "8-9"])
def test_loan_to_a_removed_table_is_taken_back(
    bridge: StartDaemon, legacy: StartPuppet, segment: str, then: int | str
) -> None:
    """And what is lent to one that is only elsewhere stays: who is there may take it any time."""
    keeper = legacy(prefix=("unshare", "--ipc"))
    within = ("nsenter", f"--target={keeper.pid}", "--ipc")
    bridge("5-7", prefix=within).kill()
    bridge(then).kill()
    assert {5, 6, 7} <= lent(segment)
    assert available(keeper) == {5, 6, 7}
    keeper.kill()

    def come_home() -> bool:
        bridge(then).kill()
        return lent(segment) == ({8, 9} if then == "8-9" else set())

    eventually(come_home)  # not while the namespace of another test has got its inode


def test_owner_that_died_with_a_daemons_pid_namespace_counts_as_dead(
    bridge: StartDaemon, legacy: StartPuppet, segment: str
) -> None:
    first = legacy(prefix=namespaces("pid"))
    server = bridge("5-6", prefix=same_namespaces(first.pid))
    assert first.claim(0) == 5
    eventually(lambda: of_legacy(segment) == {5: pid_inside(first)})
    server.kill()
    first.kill()
    bridge("5-6")
    eventually(lambda: lent(segment) == {5, 6})
