# SPDX-License-Identifier: BSD-3-Clause
"""A legacy process that dies loses its lcores; one that lives keeps them."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from lab.legacy_clients import available, claim_all, container, falls_asleep, lent, of_legacy
from lab.processes import (
    Daemon,
    Puppet,
    eventually,
    look,
    namespaces,
    needs_root,
    pid_inside,
    same_namespaces,
)
from mtlshm import Kind

StartPuppet = Callable[..., Puppet]


StartDaemon = Callable[..., Daemon]


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
def test_lcores_of_a_dead_owner_are_freed(
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


def test_owner_that_dies_unseen_leaves_nothing(bridge: StartDaemon, legacy: StartPuppet, segment: str) -> None:
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


def test_living_owners_keep_their_lcores_when_others_die(
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


def test_renaming_the_host_kills_no_owner(bridge: StartDaemon, legacy: StartPuppet, segment: str) -> None:
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


def test_newcomer_with_a_reused_pid_is_told_from_the_dead(
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


def test_owner_hidden_from_the_daemon_does_not_count_as_dead(
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
def test_slowly_dying_owner_leaves_nothing(bridge: StartDaemon, legacy: StartPuppet, segment: str) -> None:
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
