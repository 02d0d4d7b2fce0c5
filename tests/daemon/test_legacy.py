# SPDX-License-Identifier: BSD-3-Clause
"""The legacy bridge: processes on libmtl's System V table, the daemon, and clients of ours, all real, and killed."""

from __future__ import annotations

import errno
import itertools
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import sysv_ipc

from lab.processes import (
    DEADLINE,
    UNPRIVILEGED,
    Daemon,
    Puppet,
    as_user,
    compile_program,
    eventually,
    held,
    look,
    namespaces,
    needs_root,
    pid_inside,
    same_namespaces,
)
from mtlshm import CpuSet, Host, Kind, Process
from mtlshm.legacy.table import LegacyTable
from mtlshm.manager_client import Manager

StartPuppet = Callable[..., Puppet]
StartDaemon = Callable[..., Daemon]

NOTHING_LEFT = -errno.ENOSPC
EVERYTHING = range(128)


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


def of_legacy(segment: str) -> dict[int, int]:
    """The lcores of legacy processes in our table, with the PIDs."""
    return {lcore.number: lcore.owner.pid for lcore in look(segment).lcores if lcore.owner.kind == Kind.LEGACY}


def lent(segment: str) -> set[int]:
    return {lcore.number for lcore in look(segment).lcores if lcore.owner.kind == Kind.POOL}


def claim_all(process: Puppet) -> list[int]:
    """Everything that a legacy process can get."""
    got: list[int] = []
    while (lcore := process.claim(0)) != NOTHING_LEFT:
        assert lcore >= 0
        got.append(lcore)
    return got


def available(process: Puppet) -> set[int]:
    """What a legacy process could take."""
    return {lcore for lcore in EVERYTHING if not process.active(lcore)}


def container(name: str = "container") -> tuple[str, ...]:
    """The prefix of a command that runs with PIDs and a host name of its own, and with the memory of all."""
    return (*namespaces("pid", "uts"), "sh", "-c", f'hostname {name} && exec "$@"', "sh")


# --- lent, taken, given back ----------------------------------------------------------------------------


def test_a_legacy_process_gets_what_is_lent_and_nothing_else(
    bridge: StartDaemon, legacy: StartPuppet, segment: str
) -> None:
    bridge("5-7")
    process = legacy()
    assert claim_all(process) == [5, 6, 7]
    eventually(lambda: of_legacy(segment) == dict.fromkeys((5, 6, 7), process.pid))


def test_what_is_lent_or_taken_is_nobody_elses(
    bridge: StartDaemon, legacy: StartPuppet, puppet: StartPuppet, segment: str
) -> None:
    bridge("5-7")
    process, client = legacy(), puppet()
    assert process.claim(0) == 5
    assert [client.claim(lcore) for lcore in (5, 6, 7)] == [-errno.EBUSY] * 3
    eventually(lambda: of_legacy(segment) == {5: process.pid})
    assert [client.claim(lcore) for lcore in (5, 6, 7)] == [-errno.EBUSY] * 3


def test_the_table_says_who_they_are(bridge: StartDaemon, legacy: StartPuppet, segment: str) -> None:
    bridge("5-7")
    process = legacy()
    process.claim(0, 127, 1)
    eventually(lambda: of_legacy(segment))
    lcore = next(lcore for lcore in look(segment).lcores if lcore.owner.kind == Kind.LEGACY)
    assert (lcore.number, lcore.type.name, lcore.owner.pid) == (5, "TAP", process.pid)
    assert lcore.owner.comm == "legacy_process"
    assert lcore.owner.hostname == os.uname().nodename
    assert lcore.owner.uid == os.getuid()


def test_what_is_given_back_can_be_taken_again(bridge: StartDaemon, legacy: StartPuppet, segment: str) -> None:
    bridge("5-6")
    first, second = legacy(), legacy()
    claim_all(first)
    eventually(lambda: len(of_legacy(segment)) == 2)
    assert first.release(6) == 0
    assert second.claim(0) == 6
    eventually(lambda: of_legacy(segment) == {5: first.pid, 6: second.pid})
    assert first.release(5) == 0
    eventually(lambda: lent(segment) == {5})
    assert second.release(6) == 0
    eventually(lambda: lent(segment) == {5, 6})
    assert of_legacy(segment) == {}


def test_so_many_are_there_for_the_taking_and_what_is_too_many_comes_home(
    bridge: StartDaemon, legacy: StartPuppet, puppet: StartPuppet, segment: str
) -> None:
    online = sorted(os.sched_getaffinity(0))
    if len(online) < 2 or max(online) >= 128:
        pytest.skip("needs two CPUs; not tested otherwise: lending by number")
    bridge(1)
    process = legacy()
    (first,) = available(process)
    assert process.claim(0) == first
    (second,) = eventually(lambda: available(process))
    assert second != first
    assert process.claim(0) == second
    eventually(lambda: len(of_legacy(segment)) == 2)
    assert process.release(first) == 0
    eventually(lambda: lent(segment) == {first})
    assert process.release(second) == 0
    eventually(lambda: held(segment) == {first})
    assert available(process) == {first}
    assert puppet().claim(second) == 0


def test_what_a_client_holds_is_lent_once_it_is_free(
    bridge: StartDaemon, legacy: StartPuppet, puppet: StartPuppet, segment: str
) -> None:
    client = puppet()
    client.claim(5)
    bridge("5-6")
    process = legacy()
    assert claim_all(process) == [6]
    client.kill()
    eventually(lambda: lent(segment) == {5})
    assert claim_all(process) == [5]


def test_with_nothing_to_lend_legacy_processes_get_nothing(
    bridge: StartDaemon, legacy: StartPuppet, segment: str
) -> None:
    bridge(0)
    assert claim_all(legacy()) == []


def test_switched_off_it_leaves_that_table_alone(
    bridge: StartDaemon, legacy: StartPuppet, table: Callable[[], LegacyTable]
) -> None:
    bridge("off")
    process = legacy()
    assert process.claim(0) == 0
    assert [entry for entry in table().entries() if entry and entry.pid != process.pid] == []


def test_reservations_are_none_that_libmtl_would_clear(bridge: StartDaemon, table: Callable[[], LegacyTable]) -> None:
    bridge(0)
    entries = table().entries()
    assert len(entries) >= 128
    for entry in entries:
        assert entry
        assert entry.hostname != os.uname().nodename
        assert entry.pid == 0, "the one PID for which kill(pid, 0) cannot fail"


# --- what was there before -------------------------------------------------------------------------------


def test_owners_from_before_its_start_keep_what_they_have(
    bridge: StartDaemon, legacy: StartPuppet, puppet: StartPuppet, segment: str
) -> None:
    first, second, client = legacy(), legacy(), puppet()
    assert [first.claim(0), second.claim(0), first.claim(0)] == [0, 1, 2]
    bridge("8-9")
    assert of_legacy(segment) == {0: first.pid, 1: second.pid, 2: first.pid}
    assert [client.claim(lcore) for lcore in (0, 1, 2)] == [-errno.EBUSY] * 3
    assert claim_all(second) == [8, 9]
    first.release(0)
    eventually(lambda: client.claim(0) == 0)


def test_the_dead_from_before_its_start_are_not_taken_over(
    bridge: StartDaemon, legacy: StartPuppet, puppet: StartPuppet, segment: str
) -> None:
    living, dead, contained = legacy(), legacy(), legacy(prefix=container())
    assert [each.claim(0) for each in (living, dead, contained)] == [0, 1, 2]
    dead.kill()
    contained.kill()
    bridge(0)
    assert of_legacy(segment) == {0: living.pid}
    assert puppet().claim(1) == 0
    assert claim_all(living) == []


def test_what_clients_hold_is_reserved_at_its_start(
    bridge: StartDaemon, legacy: StartPuppet, puppet: StartPuppet
) -> None:
    process, client = legacy(), puppet()
    client.claim(3)
    assert process.claim(0) == 0
    bridge("3-4")
    assert claim_all(process) == [4]


def test_a_clash_is_reported_and_nothing_taken_from_either(
    bridge: StartDaemon, legacy: StartPuppet, puppet: StartPuppet, segment: str
) -> None:
    process, client = legacy(), puppet()
    assert process.claim(0) == 0
    client.claim(0)
    server = bridge("5-5")
    assert "lcore 0 has two owners" in server.log()
    assert f"pid {client.pid}" in server.log()
    assert f"pid {process.pid}" in server.log()
    assert process.claim(1) == 5
    eventually(lambda: of_legacy(segment) == {5: process.pid})
    assert process.active(0)
    assert not process.reserved(0)
    assert client.release(0) == 0, "it was its own all the time"


@pytest.mark.parametrize("end", ["give back", "die"])
@pytest.mark.parametrize("who", ["the client", "the legacy process"])
def test_a_clash_ends_with_the_other_as_the_owner(
    bridge: StartDaemon, legacy: StartPuppet, puppet: StartPuppet, segment: str, who: str, end: str
) -> None:
    process, client, other = legacy(), puppet(), legacy()
    assert process.claim(0) == 0
    client.claim(0)
    server = bridge(0)
    leaver = client if who == "the client" else process
    if end == "die":
        leaver.kill()
    else:
        leaver.release(0)
        other.take_lock()
        other.give_lock()
    server.await_log("no longer has two owners")
    if leaver is client:
        assert of_legacy(segment) == {0: process.pid}
    else:
        assert held(segment) == {0}
        assert of_legacy(segment) == {}
        assert claim_all(other) == []


# --- death and life --------------------------------------------------------------------------------------


def die_by_sigkill(victim: Puppet) -> None:
    victim.kill()


def die_while_stopped(victim: Puppet) -> None:
    victim.stop()
    victim.kill()


def die_with_the_lock(victim: Puppet) -> None:
    victim.take_lock()
    victim.kill()


def die_after_the_main_thread(victim: Puppet) -> None:
    victim.tell("leave_main")
    eventually(lambda: psutil.Process(victim.pid).status() == psutil.STATUS_ZOMBIE)
    victim.kill()


@pytest.mark.parametrize("place", ["outside", "in a PID namespace", "in a container"])
@pytest.mark.parametrize("die", [die_by_sigkill, die_while_stopped, die_with_the_lock, die_after_the_main_thread])
def test_what_the_dead_had_is_free_at_once(
    bridge: StartDaemon,
    legacy: StartPuppet,
    segment: str,
    die: Callable[[Puppet], None],
    place: str,
) -> None:
    bridge("5-6")
    victim = legacy(
        prefix={"outside": (), "in a PID namespace": namespaces("pid"), "in a container": container()}[place]
    )
    assert claim_all(victim) == [5, 6]
    eventually(lambda: of_legacy(segment) == dict.fromkeys((5, 6), victim.pid))
    die(victim)
    eventually(lambda: lent(segment) == {5, 6})
    assert claim_all(legacy()) == [5, 6]


def test_who_dies_before_it_was_noticed_leaves_nothing(bridge: StartDaemon, legacy: StartPuppet, segment: str) -> None:
    """With the daemon stopped, so that all comes at once."""
    server = bridge("5-6")
    for _ in range(3):
        assert falls_asleep(server)  # not with the lock in its hand
        server.send(signal.SIGSTOP)
        victim = legacy()
        assert claim_all(victim) == [5, 6]
        victim.kill()
        server.resume()
        other = legacy()
        eventually(lambda other=other: available(other) == {5, 6})
        assert lent(segment) == {5, 6}
        other.kill()


def test_the_living_keep_theirs_whatever_becomes_of_the_others(
    bridge: StartDaemon, legacy: StartPuppet, segment: str
) -> None:
    """One stopped, one without its main thread, one in a container whose PID and host name are its own."""
    server = bridge("5-9")
    living = [legacy(), legacy(), legacy(prefix=container())]
    mine = {each.claim(0): each.pid for each in living}
    assert set(mine) == {5, 6, 7}
    living[0].stop()
    living[1].tell("leave_main")
    eventually(lambda: psutil.Process(living[1].pid).status() == psutil.STATUS_ZOMBIE)
    for restart in False, True:
        if restart:
            server.kill()
            server = bridge("5-9")
        for _ in range(3):
            other = legacy()
            assert claim_all(other) == [8, 9]
            eventually(lambda: len(of_legacy(segment)) == 5)
            other.kill()
            eventually(lambda: lent(segment) == {8, 9})
        assert of_legacy(segment) == mine


@needs_root("containers told apart by their host names, which only root may look up")
@pytest.mark.parametrize("dies", [0, 1, 2])
def test_containers_where_all_have_the_same_pid_are_told_apart(
    bridge: StartDaemon, legacy: StartPuppet, segment: str, dies: int
) -> None:
    bridge("5-7")
    processes = [legacy(prefix=container(f"c{n}")) for n in range(3)]
    assert [each.claim(0) for each in processes] == [5, 6, 7]
    eventually(lambda: of_legacy(segment) == {5 + n: each.pid for n, each in enumerate(processes)})
    processes.pop(dies).kill()
    eventually(lambda: lent(segment) == {5 + dies})
    assert set(of_legacy(segment).values()) == {each.pid for each in processes}


def test_a_host_that_was_renamed_makes_nobody_dead(bridge: StartDaemon, legacy: StartPuppet, segment: str) -> None:
    """All in a UTS namespace of the test's own, where its name may be changed."""
    process = legacy(prefix=container("before"))
    assert process.claim(0) == 0
    within = (*same_namespaces(process.pid), f"--uts=/proc/{process.pid}/ns/uts")
    subprocess.run([*within, "hostname", "after"], check=True)
    server = bridge("5-7", prefix=within)
    assert list(of_legacy(segment)) == [0]
    server.kill()  # before its namespaces end


def test_a_forked_child_keeps_nothing_of_its_dead_parents(
    bridge: StartDaemon, legacy: StartPuppet, segment: str
) -> None:
    """Though it has the table in its memory as well."""
    bridge("5-6")
    parent = legacy()
    claim_all(parent)
    eventually(lambda: len(of_legacy(segment)) == 2)
    child = psutil.Process(parent.fork_child())
    try:
        parent.kill()
        eventually(lambda: lent(segment) == {5, 6})
        assert child.is_running()
    finally:
        child.kill()


def test_a_newcomer_with_the_pid_of_the_dead_is_not_taken_for_him(
    bridge: StartDaemon, legacy: StartPuppet, segment: str
) -> None:
    """Neither if it has nothing to do with that table, nor if it draws from it. The daemon is stopped meanwhile."""
    first = legacy(prefix=namespaces("pid"))
    within = same_namespaces(first.pid)
    server = bridge("5-6", prefix=within)
    for draws in False, True:
        victim = legacy(prefix=within)
        pid = pid_inside(victim)
        assert victim.claim(0) == 5
        eventually(lambda pid=pid: of_legacy(segment) == {5: pid})
        before = {info.owner for info in look(segment).instances if info.kind == Kind.LEGACY}
        assert falls_asleep(server)
        server.send(signal.SIGSTOP)
        victim.kill()
        assert first.next_pid(pid) == 0
        newcomer = legacy(prefix=within, ready=False)
        assert pid_inside(newcomer) == pid
        if draws:
            assert newcomer.attach() == 0
            assert newcomer.claim(0) == 6
        server.resume()
        if draws:  # for libmtl too the dead one's entry is his now
            eventually(lambda before=before: before.isdisjoint(info.owner for info in look(segment).instances))
            assert of_legacy(segment) == {5: pid, 6: pid}
        else:
            eventually(lambda: lent(segment) == {5, 6})
    server.kill()  # before its namespaces end


@needs_root("a table with the same key in another IPC namespace")
def test_the_same_key_in_another_ipc_namespace_is_another_table(
    bridge: StartDaemon, legacy: StartPuppet, segment: str
) -> None:
    """Though all that the memory maps show is the same: in a new namespace the first table has the first id."""
    process, stranger = legacy(prefix=("unshare", "--ipc")), legacy(prefix=("unshare", "--ipc"))
    within = ("nsenter", f"--target={process.pid}", "--ipc")
    maps = [Path(f"/proc/{each.pid}/maps").read_text().splitlines() for each in (process, stranger)]
    ours, theirs = ([line.split()[3:] for line in lines if "/SYSV" in line] for lines in maps)
    assert ours == theirs
    assert stranger.claim(0) == 0
    bridge("5-6", prefix=within)
    other = legacy(prefix=within)
    assert claim_all(process) == [5, 6]
    eventually(lambda: of_legacy(segment) == dict.fromkeys((5, 6), process.pid))
    process.kill()
    eventually(lambda: lent(segment) == {5, 6})
    assert claim_all(other) == [5, 6]
    assert stranger.claim(0) == 1


def test_who_is_hidden_from_the_daemon_is_not_taken_for_dead(
    bridge: StartDaemon, legacy: StartPuppet, segment: str
) -> None:
    """The daemon is in a PID namespace of its own and sees nobody; but the kernel counts who is attached."""
    bridge("5-7", prefix=namespaces("pid"))
    hidden, other = legacy(), legacy()
    assert [hidden.claim(0), other.claim(0)] == [5, 6]
    eventually(lambda: of_legacy(segment) == {5: hidden.pid, 6: other.pid})
    hidden.kill()
    assert other.claim(7) == 7
    eventually(lambda: 7 in of_legacy(segment))
    assert of_legacy(segment)[5] == hidden.pid, "somebody unseen is attached: who knows which"
    other.release(6)
    other.release(7)
    other.detach()
    eventually(lambda: lent(segment) == {5, 6, 7})


@needs_root("an IPC namespace for the one who keeps the memory")
def test_who_takes_long_to_die_leaves_nothing_in_the_end(
    bridge: StartDaemon, legacy: StartPuppet, segment: str
) -> None:
    """The process is gone, but the kernel still counts its memory as attached, and tells nobody when it stops."""
    server = bridge("5-6")
    process = legacy()
    claim_all(process)
    eventually(lambda: len(of_legacy(segment)) == 2)
    keeper = psutil.Process(process.keep_memory())
    try:
        process.kill()
        server.await_log("not seen from here")
        assert len(of_legacy(segment)) == 2
    finally:
        keeper.kill()
    eventually(lambda: lent(segment) == {5, 6})
    eventually(lambda: all(i.kind in (Kind.DAEMON, Kind.POOL) for i in look(segment).instances))


# --- restarts --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_restart_changes_nothing(
    bridge: StartDaemon, legacy: StartPuppet, puppet: StartPuppet, segment: str, number: signal.Signals
) -> None:
    process, client = legacy(), puppet()
    server = bridge("5-7")
    assert process.claim(0) == 5
    client.claim(8)
    eventually(lambda: of_legacy(segment) == {5: process.pid})
    before = {info.owner for info in look(segment).instances if info.kind == Kind.LEGACY}
    for _ in range(3):
        server.end(number)
        assert held(segment) == {5, 6, 7, 8}
        assert available(process) == {6, 7}
        server = bridge("5-7")
        assert of_legacy(segment) == {5: process.pid}
        assert lent(segment) == {6, 7}
        assert {info.owner for info in look(segment).instances if info.kind == Kind.LEGACY} == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_while_no_daemon_runs_both_sides_are_safe_from_each_other_and_it_catches_up(
    bridge: StartDaemon, legacy: StartPuppet, puppet: StartPuppet, segment: str, number: signal.Signals
) -> None:
    process, victim, client = legacy(), legacy(), puppet()
    server = bridge("5-8")
    assert [process.claim(0), victim.claim(0)] == [5, 6]
    eventually(lambda: len(of_legacy(segment)) == 2)
    server.end(number)

    process.release(5)
    assert process.claim(7) == 7
    victim.kill()
    newcomer = legacy()
    assert claim_all(newcomer) == [5, 6, 8]
    assert [client.claim(lcore) for lcore in range(5, 9)] == [-errno.EBUSY] * 4
    assert client.claim(9) == 0

    bridge("5-8")
    assert of_legacy(segment) == {5: newcomer.pid, 6: newcomer.pid, 7: process.pid, 8: newcomer.pid}


def test_a_table_zeroed_while_no_daemon_ran_is_reserved_again(
    bridge: StartDaemon, legacy: StartPuppet, puppet: StartPuppet, segment: str
) -> None:
    client = puppet()
    client.claim(9)
    bridge("5-7").end(signal.SIGKILL)
    process = legacy()
    assert available(process) == set(EVERYTHING)
    server = bridge("5-7")
    assert claim_all(process) == [5, 6, 7]
    assert "two owners" not in server.log()


def test_while_it_runs_nobody_zeroes_or_removes_the_table(bridge: StartDaemon, legacy: StartPuppet) -> None:
    bridge("5-7")
    for _ in range(3):
        process = legacy()
        assert available(process) == {5, 6, 7}
        assert process.detach() == 0
        process.kill()


def test_a_table_that_was_removed_by_hand_is_made_again_and_its_users_keep_theirs(
    bridge: StartDaemon, legacy: StartPuppet, segment: str
) -> None:
    server = bridge("5-7")
    old = legacy()
    assert old.claim(0) == 5
    eventually(lambda: of_legacy(segment) == {5: old.pid})
    old.remove()
    server.await_log("somebody has removed it")
    new = legacy()
    assert claim_all(new) == [6, 7]
    eventually(lambda: len(of_legacy(segment)) == 3)
    server.kill()
    bridge("5-7")
    assert of_legacy(segment)[5] == old.pid
    old.kill()
    eventually(lambda: lent(segment) == {5})
    assert claim_all(new) == [5]


def test_what_is_in_the_place_of_a_removed_table_is_waited_for(
    bridge: StartDaemon, legacy: StartPuppet, segment: str, legacy_place: dict[str, str]
) -> None:
    """No event tells that it is gone."""
    server = bridge("5-7")
    process = legacy()
    assert process.claim(0) == 5
    eventually(lambda: of_legacy(segment) == {5: process.pid})

    def descriptors() -> int:
        return len(os.listdir(f"/proc/{server.pid}/fd"))

    assert falls_asleep(server)  # it looks at nobody any more
    before = descriptors()
    server.send(signal.SIGSTOP)
    process.remove()
    key = int(legacy_place["MTLSHM_LEGACY_KEY"], 0)
    something = sysv_ipc.SharedMemory(key, sysv_ipc.IPC_CREX, size=100)
    server.resume()
    server.await_log("no table of libmtl's")
    something.detach()
    something.remove()
    eventually(lambda: server.log().count("1024 lcores") == 2)
    assert server.log().count("no table of libmtl's") == 1
    eventually(lambda: descriptors() == before)  # nobody is watched twice
    process.kill()
    eventually(lambda: lent(segment) == {5, 6, 7})


def test_a_list_that_became_shorter_is_brought_home_as_it_is_given_back(
    bridge: StartDaemon, legacy: StartPuppet, segment: str
) -> None:
    server = bridge("5-7")
    process = legacy()
    assert process.claim(0) == 5
    eventually(lambda: of_legacy(segment) == {5: process.pid})
    server.end(signal.SIGTERM)
    bridge("6-7")
    assert of_legacy(segment) == {5: process.pid}
    process.release(5)
    eventually(lambda: held(segment) == {6, 7})
    assert available(process) == {6, 7}


# Kills itself just before, or just after, the n-th change of either table.
KILLED_AT = """
import os, signal, sys
from mtlshm import Host, Instance
from mtlshm.legacy.table import LegacyTable
import mtlshm.daemon.app
left = int(sys.argv.pop(1))
def killed(function):
    def change(*arguments, **names):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*arguments, **names)
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return change
for owner, name in (
    (Host, "evict"), (Host, "register_proxy"), (Instance, "claim"), (Instance, "take"), (Instance, "unregister"),
    (LegacyTable, "reserve"), (LegacyTable, "clear"),
):
    setattr(owner, name, killed(getattr(owner, name)))
import sysv_ipc, mtlshm.legacy.table
mtlshm.legacy.table._ENTRIES = 128  # fewer steps
mtlshm.daemon.app.main()
"""


@pytest.mark.slow
def test_it_may_be_killed_between_any_two_steps(
    bridge: StartDaemon, legacy: StartPuppet, puppet: StartPuppet, segment: str
) -> None:
    """Start, take-over, loan, return, death. What a killed daemon leaves is never free on both sides."""
    warden, client = legacy(), puppet()  # keeps the table

    def in_one_domain() -> None:
        free_twice = available(warden) - held(segment)
        assert not free_twice

    survived = 0
    for step in [*range(1, 12), *range(240, 10_000)]:  # in between it reserves, one lcore after the other
        warden.wipe()
        with Host(segment) as host:
            for owner in host.proxies():
                host.adopt(owner).unregister()
        client.claim(1)
        before = legacy()
        assert before.claim(0) == 0

        program = [sys.executable, "-c", KILLED_AT, str(step)]
        server = bridge("2-3", command=program, ready=False)

        def comes_to_this(of: dict[int, int], pool: set[int], server: Daemon = server) -> None:
            """Or is killed on the way."""
            eventually(lambda: (of_legacy(segment) == of and lent(segment) == pool) or not server.running())
            if warden.reserved(127):  # else it came no further
                in_one_domain()

        comes_to_this({0: before.pid}, {2, 3})
        if server.running():
            assert before.release(0) == 0
            comes_to_this({}, {2, 3})
        if server.running():
            assert before.claim(2) == 2
            comes_to_this({2: before.pid}, {3})
        before.kill()
        comes_to_this({}, {2, 3})
        survived += server.running()
        server.kill()

        last = bridge("2-3")
        in_one_domain()
        # Who is looked at as it dies keeps its memory for as long as that takes.
        eventually(lambda: lent(segment) == {2, 3} == available(warden))
        assert client.release(1) == 0
        assert last.end(signal.SIGTERM) == 0
        if survived == 3:
            break
    assert survived == 3


# --- how much is lent, and for how long ------------------------------------------------------------------


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


def test_what_is_lent_and_unused_goes_to_who_asks_the_socket_if_nothing_else_is_left(
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


def test_what_is_lent_is_refused_while_others_are_free_and_that_is_said(
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
def test_what_is_no_longer_to_be_lent_comes_home_at_the_next_start(
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
def test_what_was_lent_to_a_table_that_is_gone_comes_home(
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


def test_who_died_with_the_pid_namespace_of_an_earlier_daemon_is_dead(
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


# --- surroundings ----------------------------------------------------------------------------------------


def test_a_lock_file_that_is_replaced_is_followed(
    bridge: StartDaemon, legacy: StartPuppet, legacy_place: dict[str, str], segment: str
) -> None:
    bridge("5-7")
    process = legacy()
    lock = Path(legacy_place["MTLSHM_LEGACY_LOCK"])
    for lcore in 5, 6, 7:
        old = lock.stat().st_ino
        keep = lock.open()  # else its inode may come again
        with keep:
            lock.unlink()
            assert process.claim(0) == lcore
            eventually(lambda lcore=lcore: lcore in of_legacy(segment))
            assert lock.stat().st_ino != old
        assert process.release(lcore) == 0
        assert process.claim(lcore, lcore) == lcore


def test_anybody_may_use_the_lock_file_and_the_table_it_makes(
    bridge: StartDaemon, legacy_place: dict[str, str], table: Callable[[], LegacyTable]
) -> None:
    mask = os.umask(0o077)
    try:
        bridge("5-7")
    finally:
        os.umask(mask)
    assert Path(legacy_place["MTLSHM_LEGACY_LOCK"]).stat().st_mode & 0o777 == 0o666
    assert sysv_ipc.SharedMemory(int(legacy_place["MTLSHM_LEGACY_KEY"], 0)).mode & 0o777 == 0o666


def test_a_stopped_process_that_has_the_lock_stops_only_the_legacy_side(
    bridge: StartDaemon, legacy: StartPuppet, puppet: StartPuppet, segment: str
) -> None:
    holder, process, client = legacy(), legacy(), puppet()
    server = bridge("5-7")
    assert process.claim(0) == 5
    eventually(lambda: of_legacy(segment))
    holder.take_lock()
    holder.stop()
    process.kill()
    client.claim(20)
    client.kill()
    eventually(lambda: 20 not in held(segment))
    assert of_legacy(segment) == {5: process.pid}
    assert falls_asleep(server)
    holder.send(signal.SIGCONT)
    holder.give_lock()
    eventually(lambda: lent(segment) == {5, 6, 7})


def test_started_while_the_lock_is_held_it_serves_and_takes_over_later(
    bridge: StartDaemon, legacy: StartPuppet, puppet: StartPuppet, segment: str
) -> None:
    holder = legacy()
    assert holder.claim(0) == 0
    holder.take_lock()
    server = bridge("5-7")
    client = puppet()
    client.claim(20)
    client.kill()
    eventually(lambda: held(segment) == set())
    holder.give_lock()
    eventually(lambda: of_legacy(segment) == {0: holder.pid})
    eventually(lambda: lent(segment) == {5, 6, 7})
    assert server.end(signal.SIGTERM) == 0


def test_begun_when_no_record_is_left_for_what_it_lends_it_goes_on_once_there_is_one(
    bridge: StartDaemon, legacy: StartPuppet, segment: str
) -> None:
    holder = legacy()
    holder.take_lock()
    server = bridge("5-7")
    with Host(segment) as host:
        ourselves = Process(os.getpid(), 0, 0, 0, 0, "", "", "")
        taken = [host.register_proxy(Kind.SOCKET, ourselves) for _ in range(255)]  # and the daemon's
        holder.give_lock()
        server.await_log("all 256 instance records are held")
        for each in taken:
            each.unregister()
            each.close()
    eventually(lambda: lent(segment) == {5, 6, 7})


@pytest.mark.parametrize("free", range(5))
def test_for_want_of_descriptors_it_looks_again_until_there_are_some(
    bridge: StartDaemon, legacy: StartPuppet, segment: str, free: int
) -> None:
    server = bridge("5-7")
    process = legacy()
    used = {int(name) for name in os.listdir(f"/proc/{server.pid}/fd")}
    unused = (number for number in itertools.count() if number not in used)
    limit = next(itertools.islice(unused, free, None))
    before = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (limit, before[1]))
    assert process.claim(0) == 5
    assert process.claim(0) == 6
    server.await_log("Too many open files")
    eventually(lambda: psutil.Process(server.pid).status() == psutil.STATUS_SLEEPING)
    assert of_legacy(segment) == {}
    seen = psutil.Process(server.pid)
    slept = seen.num_ctx_switches().voluntary
    resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (limit + 1, before[1]))  # the next step fails for want of one
    assert process.claim(0) == 7
    eventually(lambda: seen.num_ctx_switches().voluntary > slept)
    resource.prlimit(server.pid, resource.RLIMIT_NOFILE, before)
    eventually(lambda: of_legacy(segment) == dict.fromkeys((5, 6, 7), process.pid))
    # The reaper may want one for itself.
    said = [line for line in server.log().splitlines() if "Too many open files" in line and "sweep of" not in line]
    assert len(said) <= 1, said
    assert falls_asleep(server)


@pytest.mark.parametrize("room", [0, 4, 12, 24])
def test_started_with_too_few_descriptors_for_what_is_there_it_takes_it_over_later(
    bridge: StartDaemon, legacy: StartPuppet, segment: str, room: int
) -> None:
    """The dead give theirs back, and nobody is taken for two owners."""
    server = bridge("5-12")
    used = len(os.listdir(f"/proc/{server.pid}/fd"))
    limits = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)
    processes = [legacy() for _ in range(8)]
    assert [process.claim(0) for process in processes] == list(range(5, 13))
    eventually(lambda: len(of_legacy(segment)) == 8)
    server.kill()
    for victim in processes[:3]:
        victim.kill()
    server = bridge("5-12", prefix=("prlimit", f"--nofile={used + 2 + room}:{limits[1]}"))
    processes[3].kill()
    resource.prlimit(server.pid, resource.RLIMIT_NOFILE, limits)
    eventually(lambda: lent(segment) == {5, 6, 7, 8})
    processes[4].kill()
    eventually(lambda: lent(segment) == {5, 6, 7, 8, 9})
    assert of_legacy(segment) == {n + 5: processes[n].pid for n in (5, 6, 7)}
    assert "two owners" not in server.log()


def falls_asleep(server: Daemon) -> bool:
    """Is there a while in which it does not wake?"""
    process = psutil.Process(server.pid)

    def slept() -> bool:
        before = process.num_ctx_switches()
        asleep = process.status() == psutil.STATUS_SLEEPING  # else it only waits for a CPU
        time.sleep(0.3)
        return asleep and process.num_ctx_switches() == before

    return bool(eventually(slept))


def test_with_nothing_going_on_it_never_wakes(bridge: StartDaemon, legacy: StartPuppet, segment: str) -> None:
    server = bridge("5-7")
    process = legacy()
    claim_all(process)
    eventually(lambda: len(of_legacy(segment)) == 3)
    assert falls_asleep(server)


@pytest.mark.parametrize("lcores", [4, 64, 256])
def test_any_build_of_libmtl_is_served(
    bridge: StartDaemon,
    legacy: StartPuppet,
    legacy_place: dict[str, str],
    segment: str,
    build_once: Callable[..., Path],
    lcores: int,
) -> None:
    """With another RTE_MAX_LCORE its table has another size, be it older than the daemon's or younger."""
    source = Path(__file__).parent / "legacy_process.c"
    program = build_once(
        f"legacy_process_{lcores}",
        lambda program: compile_program(program, source, flags=[f"-DRTE_MAX_LCORE={lcores}"]),
    )
    for older in True, False:
        process = legacy(program=program) if older else None
        server = bridge("2-3")
        process = process or legacy(program=program)
        assert claim_all(process) == [2, 3]
        eventually(lambda process=process: of_legacy(segment) == dict.fromkeys((2, 3), process.pid))
        process.kill()
        eventually(lambda: lent(segment) == {2, 3})
        assert server.end(signal.SIGTERM) == 0
        sysv_ipc.SharedMemory(int(legacy_place["MTLSHM_LEGACY_KEY"], 0)).remove()


def test_what_is_no_table_of_libmtls_is_refused_and_left_alone(
    bridge: StartDaemon, legacy_place: dict[str, str], puppet: StartPuppet
) -> None:
    key = int(legacy_place["MTLSHM_LEGACY_KEY"], 0)
    memory = sysv_ipc.SharedMemory(key, sysv_ipc.IPC_CREX, mode=0o666, size=5000, init_character=b"x")
    server = bridge("2-3")
    assert "5000 bytes" in server.log()
    assert "--legacy off" in server.log()
    assert memory.read() == b"x" * 5000
    memory.detach()
    assert puppet().claim(2) == 0, "all else is served"


def test_a_second_daemon_on_the_same_legacy_table_says_so_and_leaves_it_alone(
    bridge: StartDaemon, legacy: StartPuppet, puppet: StartPuppet, tmp_path: Path
) -> None:
    first = bridge("5-7")
    other = str(tmp_path / "another")
    second = bridge("8-9", "--segment", other, "--socket", "")
    assert "a daemon of another segment" in second.log()
    process, client = legacy(), puppet(path=other)
    assert claim_all(process) == [5, 6, 7]
    assert client.claim(5) == 0, "it serves its own all the same"
    client.kill()
    eventually(lambda: held(other) == set())
    first.kill()
    process.kill()
    assert "cannot look after" not in second.log()


@needs_root("a daemon that may not use the legacy table")
def test_a_daemon_that_may_not_use_the_table_serves_its_segment_all_the_same(
    bridge: StartDaemon, legacy_place: dict[str, str], puppet: StartPuppet, segment: str
) -> None:
    puppet()
    os.chown(segment, UNPRIVILEGED, UNPRIVILEGED)
    Path(legacy_place["MTLSHM_LEGACY_LOCK"]).touch(mode=0o600)
    os.chmod(Path(legacy_place["MTLSHM_LEGACY_LOCK"]).parent, 0o755)
    code = as_user(UNPRIVILEGED, UNPRIVILEGED, []) + "mtlshm.daemon.app.main()"
    server = bridge("5-7", "--socket", "", command=[sys.executable, "-c", code])
    assert "legacy processes are not served" in server.log()
    assert legacy_place["MTLSHM_LEGACY_LOCK"] in server.log()


def test_it_leaves_nothing_of_its_own_in_our_table_if_nothing_is_lent(bridge: StartDaemon, segment: str) -> None:
    server = bridge(0)
    assert server.end(signal.SIGTERM) == 0
    assert look(segment).instances == ()


@pytest.mark.parametrize("lent", ["some", "7-5", "", "5-", "-1"])
def test_a_loan_that_is_neither_number_nor_list_is_refused(bridge: StartDaemon, lent: str) -> None:
    server = bridge(lent, ready=False)
    assert server.wait() == 2
    assert "--legacy" in server.log()


# --- all at once -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_nobody_gets_an_lcore_twice_and_none_is_lost(
    bridge: StartDaemon, legacy: StartPuppet, puppet: StartPuppet, host64: Path, segment: str
) -> None:
    """Legacy processes and clients of ours claim, give back and die, and so does the daemon, over 200 rounds."""
    chance = random.Random(11)
    warden = legacy()  # somebody attached, or a newcomer zeroes the table while there is no daemon
    server = bridge("0-31")
    owned: dict[int, Puppet] = {}  # what the test knows to be held, by living processes only
    processes: list[tuple[str, Puppet]] = []

    def newcomer() -> None:
        kind = chance.choice(["legacy", "client"])
        processes.append((kind, legacy() if kind == "legacy" else puppet(sysfs=host64)))

    for _ in range(16):
        newcomer()
    for _ in range(200):
        # All act at once; then the answers are put together.
        acting: list[tuple[Puppet, str, int]] = []
        for kind, each in processes:
            mine = [lcore for lcore, holder in owned.items() if holder is each]
            if mine and chance.random() < 0.4:
                lcore = chance.choice(mine)
                each.tell("release", lcore)
                acting.append((each, "release", lcore))
            elif kind == "legacy":
                each.tell("claim", 0)
                acting.append((each, "claim", -1))
            else:
                lcore = chance.randrange(64)
                each.tell("claim", lcore)
                acting.append((each, "claim", lcore))
        if chance.random() < 0.2:
            server.end(chance.choice([signal.SIGTERM, signal.SIGKILL]))
            server = bridge("0-31", ready=chance.random() < 0.5)
        granted: list[tuple[int, Puppet]] = []
        for each, what, lcore in acting:
            result = each.answer()
            if what == "release":
                assert result == 0
                del owned[lcore]
            elif result >= 0:
                granted.append((result if lcore < 0 else lcore, each))
        for lcore, each in granted:
            assert lcore not in owned, f"lcore {lcore} was given to {each.pid} and is {owned[lcore].pid}'s"
            owned[lcore] = each
        while chance.random() < 0.5:
            victim = chance.choice(processes)
            processes.remove(victim)
            victim[1].kill()
            owned = {lcore: holder for lcore, holder in owned.items() if holder is not victim[1]}
            newcomer()

    server.await_log("ready")
    eventually(lambda: held(segment) - lent(segment) == set(owned))
    for _, each in processes:
        each.kill()
    eventually(lambda: lent(segment) == set(range(32)) == held(segment))
    assert available(warden) == set(range(32))
    assert CpuSet(of_legacy(segment)) == CpuSet()
