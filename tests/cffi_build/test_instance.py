# SPDX-License-Identifier: BSD-3-Clause
"""instance.c: registering and unregistering."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from errno import EBADF, EBUSY, EEXIST, EINVAL, ESRCH, ESTALE, EUSERS

import pytest

from lab.processes import DEADLINE, Puppet, held, look
from mtlshm import Host, Kind
from mtlshm._core import ffi, lib

Start = Callable[..., Puppet]

RECORDS = lib.MTLSHM_INSTANCES


def test_record_names_its_process(puppet: Start, segment: str) -> None:
    me = puppet()
    me.claim(5)
    (info,) = look(segment).instances
    with open(f"/proc/{me.pid}/stat") as stat:
        start_ticks = int(stat.read().rsplit(")", 1)[1].split()[19])
    assert info.owner == me.owner()
    assert info.pid == me.pid
    assert info.pid_namespace == os.stat("/proc/self/ns/pid").st_ino
    assert info.start_ticks == start_ticks
    assert info.uid == os.geteuid()
    assert info.comm == "puppet"
    assert info.label == "puppet"
    assert info.hostname == socket.gethostname()[:63]
    assert info.kind == Kind.SHM
    assert info.alive
    assert set(info.lcores) == {5}


def test_unregistering_releases_everything_and_the_handle_is_refused_afterwards(puppet: Start, segment: str) -> None:
    me = puppet()
    owner = me.owner()
    me.claim(5)
    me.claim(6)
    assert me.unregister() == 0
    assert held(segment) == set()
    assert me.snapshot() == 0
    assert me.owner() == 0
    assert me.alive(owner) == 0
    assert me.claim(5) == -EBADF
    assert me.claim_many(1) == -EBADF
    assert me.release(5) == -EBADF
    assert me.release_all() == -EBADF
    assert me.lock(10) == -EBADF
    assert me.unlock() == -EBADF
    assert me.unregister() == -EBADF


def test_a_kind_that_does_not_exist_is_refused(puppet: Start) -> None:
    assert puppet().register(99) == -EINVAL


def test_only_one_daemon_lives_at_a_time(puppet: Start) -> None:
    first, second = puppet(ready=False), puppet(ready=False)
    first.open(1)
    second.open(1)
    assert first.register(Kind.DAEMON) == 0
    assert second.register(Kind.DAEMON) == -EEXIST
    assert second.register() == 0
    first.kill()
    assert second.register(Kind.DAEMON) == 0


def test_two_instances_of_one_process_are_as_separate_as_two_processes(puppet: Start, segment: str) -> None:
    process, other = puppet(), puppet()
    process.claim(5)
    first = process.owner()
    assert process.register() == 0
    assert process.claim(5) == -EBUSY
    assert process.claim(6) == 0
    assert process.unregister() == 0
    assert other.alive(first) == 1
    assert held(segment) == {5}
    assert other.claim(5) == -EBUSY


def test_257th_instance_is_refused_until_one_leaves(puppet: Start, segment: str) -> None:
    crowd = puppet()
    assert crowd.register_many(RECORDS) == RECORDS - 1
    late = puppet(ready=False)
    late.open(1)
    assert late.register() == -EUSERS
    assert crowd.claim(5) == 0  # nothing else is lost
    crowd.unregister()
    assert late.register() == 0
    assert late.claim(5) == 0
    assert len(look(segment).instances) == RECORDS


def test_dead_ones_do_not_count_among_the_256(puppet: Start, segment: str) -> None:
    half, other_half = puppet(), puppet()
    other_half.claim(5)
    assert half.register_many(127) == 127
    assert other_half.register_many(127) == 127
    other_half.kill()
    newcomer = puppet(ready=False)
    newcomer.open(1)
    assert newcomer.register_many(RECORDS) == 128
    assert newcomer.register() == -EUSERS
    snapshot = look(segment)
    assert all(info.alive for info in snapshot.instances)
    assert (snapshot.collected, snapshot.recovered) == (128, 1)
    assert newcomer.claim(5) == 0


@pytest.mark.parametrize("died", [True, False], ids=["died", "left"])
def test_a_reused_record_never_honours_the_old_owner(puppet: Start, segment: str, died: bool) -> None:
    old, observer = puppet(), puppet()
    old.claim(5)
    owner = old.owner()
    if died:
        old.kill()
        assert observer.sweep() == 1
    else:
        old.unregister()
    for when in "free", "reused":
        if when == "reused":
            new = puppet()
            assert index_of(new.owner()) == index_of(owner)
            assert new.owner() != owner
            assert new.claim(5) == 0
        assert observer.alive(owner) == 0
        assert observer.collect(owner) == -ESRCH
        assert observer.evict(5, owner) == -ESRCH
    assert observer.alive(new.owner()) == 1
    assert held(segment) == {5}


def index_of(owner: int) -> int:
    return owner >> lib.MTLSHM_TYPE_BITS & (1 << lib.MTLSHM_INDEX_BITS) - 1


def test_owners_that_cannot_be_are_nobody(puppet: Start) -> None:
    observer = puppet()
    next_generation = observer.owner() + (1 << lib.MTLSHM_TYPE_BITS + lib.MTLSHM_INDEX_BITS)
    for owner in 0, 1, next_generation, 1 << 20 | 256 << 8, 1 << 20 | 4095 << 8, (1 << 63) - 1:
        assert observer.alive(owner) == 0
        assert observer.collect(owner) == -ESRCH
        assert observer.evict(5, owner) == -ESRCH


def test_an_open_segment_is_not_closed_under_an_instance(puppet: Start) -> None:
    me = puppet()
    assert me.close() == -EBUSY
    assert me.claim(5) == 0


def test_when_the_path_is_another_file_nobody_registers_and_nobody_is_mistaken(puppet: Start, segment: str) -> None:
    old = puppet()
    old.claim(5)
    os.unlink(segment)
    new = puppet()
    assert new.claim(5) == 0
    assert old.register() == -ESTALE
    assert old.alive(old.owner()) == -ESTALE
    assert old.sweep() == -ESTALE
    assert old.snapshot() == -ESTALE


def test_the_doorbell_rings_for_every_newcomer(segment: str) -> None:
    """What wakes the daemon: a write(2) to the file, since a change through a mapping makes no event."""
    from inotify_simple import INotify, flags

    with Host(segment) as host, INotify() as inotify:
        inotify.add_watch(segment, flags.MODIFY)
        for _ in range(3):
            with host.register():
                assert [event.mask for event in inotify.read(timeout=DEADLINE * 1000)] == [flags.MODIFY]


def test_long_label_is_cut(segment: str) -> None:
    with Host(segment) as host, host.register("x" * 200):
        assert host.snapshot().instances[0].label == "x" * 63
    assert ffi.sizeof("struct mtlshm_record") % 64 == 0
