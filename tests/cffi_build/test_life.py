# SPDX-License-Identifier: BSD-3-Clause
"""life.c: an instance lives exactly as long as the address space of the process that registered it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from errno import EBUSY, ECHILD, ESRCH
from pathlib import Path

import psutil
import pytest

from lab.processes import Puppet, eventually, held, look, namespaces, pid_inside, same_namespaces, waiting_room

Start = Callable[..., Puppet]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV, signal.SIGABRT])
def test_a_signal_that_ends_the_process_ends_the_instance(puppet: Start, number: signal.Signals) -> None:
    holder, other = puppet(), puppet()
    owner = holder.owner()
    holder.claim(5)
    assert other.alive(owner) == 1
    assert other.claim(5) == -EBUSY
    holder.kill(number)
    assert other.alive(owner) == 0
    assert other.claim(5) == 0


def test_a_stopped_process_lives(puppet: Start) -> None:
    holder, other = puppet(), puppet()
    holder.claim(5)
    owner = holder.owner()
    holder.stop()
    assert other.alive(owner) == 1
    assert other.claim(5) == -EBUSY
    holder.kill()
    assert other.claim(5) == 0


def test_the_main_thread_may_end_before_the_others(puppet: Start) -> None:
    holder, other = puppet(), puppet()
    holder.claim(5)
    holder.leave_main()
    eventually(lambda: psutil.Process(holder.pid).status() == psutil.STATUS_ZOMBIE)
    assert other.alive(holder.owner()) == 1
    assert other.claim(5) == -EBUSY
    assert holder.claim(6) == 0
    holder.kill()
    assert other.claim(5) == 0


def test_no_descriptor_is_kept_so_closing_all_of_them_ends_nothing(puppet: Start) -> None:
    holder, other = puppet(), puppet()
    holder.claim(5)
    assert len(os.listdir(f"/proc/{holder.pid}/fd")) == 3
    holder.closefrom(3)
    assert other.alive(holder.owner()) == 1
    assert other.claim(5) == -EBUSY
    assert holder.claim(6) == 0


def test_other_opens_and_closes_of_the_segment_end_nothing(puppet: Start, segment: str) -> None:
    """As they would with POSIX record locks."""
    holder, other = puppet(), puppet()
    first = holder.owner()
    assert holder.register() == 0
    assert holder.unregister() == 0
    assert holder.open(1) == 0
    assert holder.close() == 0
    assert other.alive(first) == 1


# --- fork, exec and their kin --------------------------------------------------------------------------


def test_a_forked_child_has_the_table_but_not_the_identity(puppet: Start, tmp_path: Path) -> None:
    parent = puppet()
    parent.claim(5)
    child = parent.fork(tmp_path / "child")
    assert child.claim(6) == -ECHILD
    assert child.claim_many(1) == -ECHILD
    assert child.release(5) == -ECHILD
    assert child.release_all() == -ECHILD
    assert child.lock(100) == -ECHILD
    assert child.unlock() == -ECHILD
    assert child.unregister() == -ECHILD
    assert child.owner() == 0
    assert child.snapshot() == 1
    assert parent.release(5) == 0


def test_a_forked_child_registers_for_itself(puppet: Start, segment: str, tmp_path: Path) -> None:
    parent = puppet()
    parent.claim(5)
    child = parent.fork(tmp_path / "child")
    assert child.register() == 0
    assert child.owner() != parent.owner()
    assert child.claim(5) == -EBUSY
    assert child.claim(6) == 0
    assert {info.pid: set(info.lcores) for info in look(segment).instances} == {parent.pid: {5}, child.pid: {6}}
    child.kill()
    assert parent.claim(6) == 0


def test_a_grandchild_is_a_process_of_its_own_too(puppet: Start, tmp_path: Path) -> None:
    parent = puppet()
    child = parent.fork(tmp_path / "child")
    assert child.register() == 0
    grandchild = child.fork(tmp_path / "grandchild")
    assert grandchild.claim(5) == -ECHILD
    assert grandchild.register() == 0
    assert grandchild.claim(5) == 0
    assert parent.claim(5) == -EBUSY


def test_a_parents_death_is_noticed_while_its_child_lives(puppet: Start, tmp_path: Path) -> None:
    parent, other = puppet(), puppet()
    parent.claim(5)
    child = parent.fork(tmp_path / "child")
    owner = parent.owner()
    parent.kill()
    assert other.alive(owner) == 0
    assert child.claim(5) == -ECHILD
    assert other.claim(5) == 0


def test_a_parents_death_is_noticed_whenever_another_thread_forked(puppet: Start) -> None:
    """A hundred instances, registered while a thread forked without pause; its children live on."""
    parent, other = puppet(), puppet()
    instances = parent.fork_storm(200)
    assert other.snapshot() == instances + 1
    parent.kill()
    assert other.sweep() == instances


def test_daemonizing_and_then_registering_is_the_way(puppet: Start, tmp_path: Path) -> None:
    first, other = puppet(ready=False), puppet()
    first.open(1)
    middle = first.fork(tmp_path / "middle")
    middle.setsid()
    last = middle.fork(tmp_path / "last")
    first.kill()
    middle.kill()
    assert last.register() == 0
    assert last.claim(5) == 0
    assert other.alive(last.owner()) == 1
    assert other.claim(5) == -EBUSY


def test_daemonizing_after_registering_ends_the_instance(puppet: Start, tmp_path: Path) -> None:
    first, other = puppet(), puppet()
    first.claim(5)
    owner = first.owner()
    last = first.fork(tmp_path / "last")
    first.kill()
    assert last.claim(6) == -ECHILD
    assert other.alive(owner) == 0
    assert other.claim(5) == 0


def test_exec_ends_the_instance(puppet: Start, tmp_path: Path) -> None:
    holder, other = puppet(), puppet()
    holder.claim(5)
    owner = holder.owner()
    with waiting_room(tmp_path / "room") as arrive:
        holder.tell("exec", tmp_path / "room")
        arrive()
        assert psutil.Process(holder.pid).name() == "cat"
        assert other.alive(owner) == 0
        assert other.claim(5) == 0


def test_a_spawned_program_does_not_keep_its_parents_instance(puppet: Start, tmp_path: Path) -> None:
    parent, other = puppet(), puppet()
    parent.claim(5)
    owner = parent.owner()
    with waiting_room(tmp_path / "room") as arrive:
        assert parent.spawn(tmp_path / "room") == 0
        arrive()
        assert other.alive(owner) == 1
        parent.kill()
        assert other.alive(owner) == 0
        assert other.claim(5) == 0


def test_an_instance_lives_as_long_as_a_vforked_child_uses_its_memory(puppet: Start, tmp_path: Path) -> None:
    parent, other = puppet(), puppet()
    parent.claim(5)
    owner = parent.owner()
    with waiting_room(tmp_path / "room") as arrive:
        parent.tell("vfork", tmp_path / "room")
        arrive()
        parent.kill()
        assert other.alive(owner) == 1
        assert other.claim(5) == -EBUSY
    eventually(lambda: other.alive(owner) == 0)
    assert other.claim(5) == 0


# --- namespaces, and the same pid again ----------------------------------------------------------------


def test_across_pid_user_and_ipc_namespaces_where_all_are_pid_1(puppet: Start, segment: str) -> None:
    holders = [puppet(prefix=namespaces("pid", "ipc")) for _ in range(4)]
    outside = puppet()
    for lcore, holder in enumerate(holders):
        assert holder.claim(lcore) == 0
    assert [info.pid for info in look(segment).instances] == [1, 1, 1, 1, outside.pid]
    assert len({info.pid_namespace for info in look(segment).instances}) == 5
    for lcore in range(4):
        assert all(other.claim(lcore) == -EBUSY for n, other in enumerate([*holders, outside]) if n != lcore)

    owners = [holder.owner() for holder in holders]
    holders[0].kill()
    holders[1].kill()
    assert [holders[2].alive(owner) for owner in owners] == [0, 0, 1, 1]
    assert holders[2].claim(0) == 0
    assert outside.claim(1) == 0
    assert outside.claim(2) == -EBUSY


def test_the_same_pid_again_is_nobody_that_the_table_knows(puppet: Start, segment: str) -> None:
    """In a PID namespace of their own a newcomer is given the pid of the dead."""
    first = puppet(prefix=namespaces("pid"))
    holder = puppet(prefix=same_namespaces(first.pid))
    holder.claim(5)
    pid, owner = pid_inside(holder), holder.owner()
    holder.kill()

    assert first.next_pid(pid) == 0
    newcomer = puppet(prefix=same_namespaces(first.pid), ready=False)
    assert pid_inside(newcomer) == pid
    assert newcomer.open(1) == 0
    assert newcomer.alive(owner) == 0
    assert newcomer.register() == 0
    assert newcomer.owner() != owner
    assert [info.alive for info in look(segment).instances if info.pid == pid] == [False, True]
    assert newcomer.alive(owner) == 0
    assert newcomer.claim(5) == 0
    assert first.evict(5, owner) == -ESRCH
    assert first.collect(owner) == -ESRCH
    assert held(segment) == {5}
