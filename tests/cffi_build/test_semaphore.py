# SPDX-License-Identifier: BSD-3-Clause
"""semaphore.c: one holder at a time, and none for ever."""

from __future__ import annotations

import platform
import signal
from collections.abc import Callable
from errno import EPERM, ETIMEDOUT
from pathlib import Path

import psutil
import pytest

from lab.processes import DEADLINE, Puppet, eventually, look, namespaces

Start = Callable[..., Puppet]

LONG = int(DEADLINE * 1000)  # as a time-out in ms: it does not run out, but a failing test ends


def test_one_process_at_a_time_is_inside(puppet: Start, tmp_path: Path) -> None:
    puppets = [puppet(), puppet(), puppet(prefix=namespaces("pid")), puppet(prefix=namespaces("pid"))]
    for each in puppets:
        each.tell("count", tmp_path / "counter", 300000)
    assert [each.answer() for each in puppets] == [0, 0, 0, 0]
    assert int.from_bytes((tmp_path / "counter").read_bytes(), "little") == 1_200_000


def test_a_second_lock_waits_its_time_and_is_told(puppet: Start, segment: str) -> None:
    holder, other = puppet(), puppet()
    assert holder.lock(0) == 0
    holder_info = look(segment).semaphore
    assert holder_info
    assert holder_info.pid == holder.pid
    assert other.lock(50) == -ETIMEDOUT
    assert holder.lock(50) == -ETIMEDOUT
    assert holder.unlock() == 0
    assert other.lock(0) == 0


def test_only_the_holder_gives_it_back(puppet: Start) -> None:
    holder, other = puppet(), puppet()
    assert holder.unlock() == -EPERM
    assert holder.lock(0) == 0
    assert other.unlock() == -EPERM
    assert other.lock(0) == -ETIMEDOUT
    assert holder.unlock() == 0
    assert holder.unlock() == -EPERM


@pytest.mark.skipif(platform.machine() != "x86_64", reason="steps by the trap flag of x86-64")
def test_two_threads_that_unlock_do_not_release_the_hold_of_another_instance(puppet: Start) -> None:
    """At every instruction of mtlshm_unlock() the other thread unlocks, and the other instance locks."""
    both = puppet()
    assert both.register() == 0
    assert both.unlock_twice() > 0


def test_after_a_killed_holder_the_next_is_told_and_the_one_after_not(puppet: Start, segment: str) -> None:
    holder, other = puppet(), puppet()
    holder.lock(0)
    holder.kill()
    assert other.lock(0) == 1
    assert other.unlock() == 0
    assert other.lock(0) == 0
    assert look(segment).takeovers == 1


def test_exactly_one_waiter_learns_of_a_killed_holder(puppet: Start, segment: str) -> None:
    holder, waiters = puppet(), [puppet() for _ in range(8)]
    holder.lock(0)
    for waiter in waiters:
        waiter.tell("lock", LONG)
        waiter.tell("unlock")
    eventually(lambda: all(psutil.Process(waiter.pid).status() == psutil.STATUS_SLEEPING for waiter in waiters))
    holder.kill()
    assert sorted(waiter.answer() for waiter in waiters) == [0] * 7 + [1]
    assert [waiter.answer() for waiter in waiters] == [0] * 8
    assert look(segment).semaphore is None


def test_a_holder_killed_in_a_pid_namespace_of_its_own_is_taken_over(puppet: Start) -> None:
    holder, inside, outside = puppet(prefix=namespaces("pid")), puppet(prefix=namespaces("pid")), puppet()
    holder.lock(0)
    assert inside.lock(10) == -ETIMEDOUT
    holder.kill()
    assert inside.lock(0) == 1
    inside.kill()
    assert outside.lock(0) == 1


def test_a_holder_that_left_without_giving_it_back_counts_as_dead(puppet: Start) -> None:
    holder, other = puppet(), puppet()
    holder.lock(0)
    holder.unregister()
    holder.register()
    assert other.lock(0) == 1
    assert holder.unlock() == -EPERM


def test_a_stopped_holder_keeps_it_but_stops_no_single_claim(puppet: Start, host64: Path) -> None:
    holder, other = puppet(sysfs=host64), puppet(sysfs=host64)
    holder.claim(1)
    holder.lock(0)
    holder.stop()
    assert other.lock(50) == -ETIMEDOUT
    assert other.claim_many(1, 50) == -ETIMEDOUT
    assert other.claim(5) == 0
    assert other.claim(1) < 0
    assert other.release(5) == 0
    holder.send(signal.SIGCONT)
    assert holder.unlock() == 0
    assert other.claim_many(1) == 0


def test_all_that_wait_get_their_turn(puppet: Start) -> None:
    holder, waiters = puppet(), [puppet() for _ in range(8)]
    holder.lock(0)
    for waiter in waiters:
        waiter.tell("lock", LONG)
        waiter.tell("unlock")
    assert holder.unlock() == 0
    for waiter in waiters:
        assert [waiter.answer(), waiter.answer()] == [0, 0]


def test_unlock_wakes_a_sleeper(puppet: Start) -> None:
    """One that waits in the library would also look by itself; this one only sleeps."""
    holder, waiter, sleeper = puppet(), puppet(), puppet()
    holder.lock(0)
    waiter.tell("lock", LONG)
    sleeper.tell("sleep_on_semaphore")
    assert sleeper.answer() == 0  # the waiter has said that somebody waits
    waiter.kill()
    eventually(lambda: psutil.Process(sleeper.pid).status() == psutil.STATUS_SLEEPING)
    assert holder.unlock() == 0
    assert sleeper.answer() == 0


def test_killed_at_random_moments_inside_it_stays_usable(puppet: Start, tmp_path: Path) -> None:
    survivors = [puppet(), puppet()]
    for survivor in survivors:
        survivor.tell("count", tmp_path / "counter", 300000)
    for _ in range(40):
        victim = puppet()
        victim.tell("count", tmp_path / "counter", 10**9)
        eventually(lambda: (tmp_path / "counter").exists())
        victim.kill()
    assert [survivor.answer() for survivor in survivors] == [0, 0]
    assert survivors[0].lock(0) in (0, 1)
    # A victim adds 1 or does not; nobody's number is lost.
    assert int.from_bytes((tmp_path / "counter").read_bytes(), "little") >= 600_000
