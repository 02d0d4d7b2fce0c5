# SPDX-License-Identifier: BSD-3-Clause
"""lease.c: lcores claimed, released, and recovered from the dead."""

from __future__ import annotations

import os
from collections.abc import Callable
from errno import EALREADY, EBADMSG, EBUSY, EDOM, EINVAL, EMFILE, ENODEV, EPERM, ERANGE, ESRCH
from pathlib import Path

import pytest

from lab.processes import Puppet, held, look
from mtlshm import CpuSet, LcoreType, Topology

Start = Callable[..., Puppet]

ONLINE = Topology.read().online


def test_an_lcore_has_one_owner_until_it_is_released(puppet: Start, segment: str) -> None:
    first, second = puppet(), puppet()
    assert first.claim(5) == 0
    assert first.claim(5) == -EALREADY
    assert second.claim(5) == -EBUSY
    assert second.release(5) == -EPERM
    assert held(segment) == {5}
    assert first.release(5) == 0
    assert first.release(5) == -EPERM
    assert second.claim(5) == 0


@pytest.mark.parametrize("type", LcoreType)
def test_table_shows_each_lcores_type(puppet: Start, segment: str, type: LcoreType) -> None:
    me = puppet()
    assert me.claim(5, type) == 0
    (lcore,) = look(segment).lcores
    assert (lcore.number, lcore.type, lcore.owner.owner) == (5, type, me.owner())
    assert me.release(5) == 0


def test_releasing_all_releases_ones_own_only(puppet: Start, segment: str) -> None:
    first, second = puppet(), puppet()
    for lcore in range(6):
        (first if lcore % 2 else second).claim(lcore)
    assert first.release_all() == 3
    assert held(segment) == {0, 2, 4}
    assert first.release_all() == 0


def test_every_lcore_of_the_table_can_be_claimed_and_none_beyond(puppet: Start, segment: str) -> None:
    me = puppet()
    size = look(segment).size
    assert size >= 128
    for lcore in range(size):
        assert me.claim(lcore) == 0
    for lcore in size, 1023, 1024, 4096, 2**31, 2**32 - 1:
        assert me.claim(lcore) == -ERANGE
        assert me.release(lcore) == -ERANGE
        assert me.evict(lcore, me.owner()) == -ERANGE
    assert me.release_all() == size


def test_a_type_that_does_not_exist_is_refused(puppet: Start, segment: str) -> None:
    assert puppet().claim(5, len(LcoreType)) == -EINVAL
    assert puppet().claim(5, 256) == -EINVAL
    assert held(segment) == set()


# --- the dead cost nobody a failure --------------------------------------------------------------------


def test_dead_holders_lcore_is_claimed_without_a_daemon(puppet: Start, segment: str) -> None:
    holder, other = puppet(), puppet()
    holder.claim(5)
    holder.claim(6)
    holder.kill()
    assert held(segment) == {5, 6}
    assert other.claim(5) == 0
    assert [(lcore.number, lcore.owner.pid) for lcore in look(segment).lcores] == [(5, other.pid)]


def test_claim_many_gets_lcores_of_the_dead(puppet: Start, host64: Path, segment: str) -> None:
    claimer = puppet(sysfs=host64)
    for lcores in range(0, 32), range(32, 64):
        holder = puppet(sysfs=host64)
        for lcore in lcores:
            holder.claim(lcore)
        assert claimer.claim_many(64) == -EBUSY
        holder.kill()
    assert claimer.claim_many(64) == 0
    assert {lcore.owner.pid for lcore in look(segment).lcores} == {claimer.pid}


def test_a_claim_of_several_takes_nothing_if_one_is_missing(puppet: Start, host64: Path, segment: str) -> None:
    holder, claimer = puppet(sysfs=host64), puppet(sysfs=host64)
    holder.claim(17)
    assert claimer.claim_many(64) == -EBUSY
    assert held(segment) == {17}
    assert claimer.claim_many(63) == 0
    assert claimer.claim_many(1) == -EBUSY


def test_collect_frees_the_dead_and_refuses_the_living(puppet: Start, segment: str) -> None:
    living, dead, observer = puppet(), puppet(), puppet()
    living.claim(1)
    dead.claim(2)
    dead.claim(3)
    owner = dead.owner()
    assert observer.collect(owner) == -EBUSY
    dead.kill()
    assert observer.collect(owner) == 2
    assert observer.collect(owner) == -ESRCH
    assert observer.collect(living.owner()) == -EBUSY
    assert held(segment) == {1}
    assert look(segment).collected == 1
    assert look(segment).recovered == 2


def test_sweeping_collects_all_the_dead_and_only_them(puppet: Start, segment: str) -> None:
    puppets = [puppet() for _ in range(10)]
    for lcore, each in enumerate(puppets):
        each.claim(lcore)
    for each in puppets[1::2]:
        each.kill()
    assert puppets[0].sweep() == 5
    assert puppets[0].sweep() == 0
    assert held(segment) == {0, 2, 4, 6, 8}


def test_word_of_an_unknown_owner_counts_as_free(puppet: Start, segment: str, host64: Path) -> None:
    """Bytes written by accident: an lcore is not lost for it."""
    from mtlshm._core import ffi

    me = puppet(sysfs=host64)
    offset = ffi.offsetof("struct mtlshm_segment", "lcores")
    garbage = [0xFFFFFFFFFFFFFFFF, 300 << 8 | 1 << 20, 7, me.owner() + (5 << 20), 1 << 63]
    with open(segment, "r+b") as file:
        file.seek(offset)
        for word in garbage:
            file.write(word.to_bytes(8, "little") + bytes(8))
    assert held(segment) == set()
    assert me.claim(0) == 0
    assert me.claim_many(63) == 0
    assert me.release_all() == 64
    with open(segment, "r+b") as file:
        file.seek(offset)
        file.write(garbage[1].to_bytes(8, "little"))
    assert me.sweep() == 0
    assert Path(segment).read_bytes()[offset : offset + 8] == bytes(8)


def test_evict_takes_from_the_named_owner_only(puppet: Start, segment: str) -> None:
    living, dead, operator = puppet(), puppet(), puppet()
    living.claim(1)
    dead.claim(2)
    owner = dead.owner()
    dead.kill()
    assert operator.evict(1, owner) == -ESRCH
    assert operator.evict(1, living.owner()) == 0
    assert operator.evict(2, owner) == 0
    assert operator.evict(2, owner) == -ESRCH
    assert operator.evict(3, 0) == -ESRCH
    assert living.release(1) == -EPERM
    assert held(segment) == set()


def test_claim_without_descriptors_takes_a_free_lcore_and_fails_on_a_held_one(puppet: Start) -> None:
    holder, other = puppet(), puppet()
    holder.claim(5)
    holder.kill()
    other.limit_descriptors(3)
    assert other.claim(4) == 0
    assert other.claim(5) == -EMFILE
    other.limit_descriptors(64)
    assert other.claim(5) == 0


# --- lcores that an instance may not have --------------------------------------------------------------


def test_a_cpu_that_is_absent_or_offline_is_told_from_one_outside_the_mask(
    puppet: Start, host64: Path, segment: str
) -> None:
    (host64 / "devices/system/cpu/online").write_text("0-9,12-63\n")
    me = puppet(sysfs=host64, ready=False)
    me.open(1)
    assert me.register_masked() == 0
    assert me.claim(10) == -ENODEV
    assert me.claim(64) == -ENODEV
    if 63 not in ONLINE:  # of this machine, so outside the mask
        assert me.claim(63) == -EDOM
        (host64 / "devices/system/cpu/online").write_text("0-9\n")
        assert me.claim(63) == -ENODEV
    assert held(segment) == set()


def test_unreadable_online_list_is_an_error_of_its_own(puppet: Start, host64: Path) -> None:
    me = puppet(sysfs=host64, ready=False)
    me.open(1)
    me.register_masked()
    (host64 / "devices/system/cpu/online").write_text("none\n")
    assert me.claim(127) == -EBADMSG


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one CPU; not tested: claims outside an affinity mask")
def test_an_lcore_outside_the_affinity_mask_is_refused_until_the_mask_is_wider(puppet: Start) -> None:
    inside, outside = sorted(os.sched_getaffinity(0))[:2]
    me = puppet(ready=False)
    me.open(1)
    me.affinity(1 << inside)
    me.register_masked()
    assert me.claim(inside) == 0
    assert me.claim(outside) == -EDOM
    assert me.claim_many(1) == -EBUSY
    assert me.claim_many(2) == -ERANGE
    me.affinity(1 << inside | 1 << outside)
    assert me.claim(outside) == 0
    me.release(outside)
    assert me.claim_many(1) == 0


def test_no_lcores_or_more_than_there_are_make_no_claim(puppet: Start, host64: Path, segment: str) -> None:
    me = puppet(sysfs=host64)
    assert me.claim_many(0) == -EINVAL
    assert me.claim_many(65) == -ERANGE
    assert me.claim_many(2**32 - 1) == -ERANGE
    assert held(segment) == set()
    real = puppet()
    assert real.claim_many(len(ONLINE) + 1) == -ERANGE
    assert real.claim_many(len(ONLINE)) == 0
    assert CpuSet(held(segment)) == ONLINE
