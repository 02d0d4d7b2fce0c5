# SPDX-License-Identifier: BSD-3-Clause
"""event.c: what happened last is told, whoever did it, and whatever lies in the ring."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lab.damages import poke
from lab.processes import DEADLINE, Puppet
from mtlshm import CpuSet, Event, EventKind, Follower, Host, Kind, MtlshmError
from mtlshm._core import ffi, lib

Start = Callable[..., Puppet]

RING = int(lib.MTLSHM_EVENTS)
ENTRY = int(ffi.sizeof("struct mtlshm_event"))
AT = int(ffi.offsetof("struct mtlshm_segment", "events"))


def kinds(events: list[Event]) -> list[EventKind]:
    return [event.kind for event in events]


def write(segment: str, offset: int, data: bytes) -> None:
    with open(segment, "r+b") as file:
        file.seek(offset)
        file.write(data)


def test_an_instance_is_told_from_registration_to_end(host: Host) -> None:
    before = time.time()
    with host.register("encoder", cpus=range(64)) as me:
        owner = me.owner
        lcores = me.claim_many(1)
    registered, claimed, ended = host.events()
    assert kinds([registered, claimed, ended]) == [EventKind.REGISTERED, EventKind.CLAIMED, EventKind.ENDED]
    for number, event in enumerate((registered, claimed, ended)):
        assert (event.number, event.owner, event.label, event.pid) == (number, owner, "encoder", os.getpid())
        assert (event.hostname, event.uid) == (os.uname().nodename, os.getuid())
        assert event.comm == Path("/proc/self/comm").read_text().strip()
        assert event.pid_namespace == os.stat("/proc/self/ns/pid").st_ino
        assert before <= event.when <= time.time()
    assert (registered.lcores, claimed.lcores, ended.lcores) == (CpuSet(), lcores, lcores)


def test_what_happened_without_a_daemon_is_there_for_who_comes_later(puppet: Start, segment: str) -> None:
    victim = puppet()
    victim.claim(1)
    victim.claim(2)
    victim.kill()
    successor = puppet()
    assert successor.sweep() == 1
    with Host(segment, create=False, read_only=True) as host:
        *_, died = (event for event in host.events() if event.pid == victim.pid)
    assert (died.kind, died.lcores, died.instance_kind) == (EventKind.DIED, CpuSet((1, 2)), Kind.SHM)


def test_single_claims_and_releases_write_none(host: Host) -> None:
    with host.register("worker", cpus=range(64)) as me:
        before = host.events()[-1].number
        for lcore in range(8):
            me.claim(lcore)
            me.release(lcore)
        assert host.events()[-1].number == before


def test_tenants_parents_and_reservations_are_told(host: Host) -> None:
    made = host.reserve("studio", 2, cpus=range(64))
    with host.register("tenant", parent=made.owner, cpus=range(64)) as tenant:
        tenant.claim_many(1)
    with host.register("evicted", cpus=range(64)) as victim:
        victim.claim(9)
        host.evict(9, victim.owner)
        evicted = host.events()[-1]
    host.end(made.owner)
    told = host.events()
    assert (evicted.kind, evicted.owner, evicted.lcores) == (EventKind.EVICTED, victim_owner(told), CpuSet((9,)))
    assert (told[0].kind, told[0].text, told[0].lcores) == (EventKind.RESERVED, "studio", made.lcores)
    back = next(event for event in told if event.label == "tenant" and event.kind == EventKind.ENDED)
    assert back.parent == made.owner
    assert (told[-1].kind, told[-1].instance_kind, told[-1].text) == (EventKind.ENDED, Kind.RESERVATION, "studio")
    assert {event.label for event in told} == {"studio", "tenant", "evicted"}  # the maker's is none


def victim_owner(told: list[Event]) -> int:
    return next(event.owner for event in told if event.label == "evicted")


def test_who_takes_the_semaphore_from_the_dead_is_told(puppet: Start, host: Host) -> None:
    holder, next_one = puppet(), puppet()
    assert holder.lock(0) == 0
    holder.kill()
    assert next_one.lock(100) == 1
    (takeover,) = (event for event in host.events() if event.kind == EventKind.TAKEOVER)
    assert takeover.pid == next_one.pid


def test_the_ring_keeps_the_last(host: Host) -> None:
    for number in range(RING + 10):
        host.tell(EventKind.NIC, "eth0", f"change {number}")
    told = host.events()
    assert [event.text for event in told] == [f"change {number}" for number in range(10, RING + 10)]
    assert told[0].number == 10
    assert [event.number for event in host.events(RING)] == list(range(RING, RING + 10))
    assert host.events(RING + 10) == []


def test_only_changes_of_interfaces_can_be_told_and_texts_are_cut(host: Host, segment: str) -> None:
    with pytest.raises(MtlshmError):
        host.tell(EventKind.DIED, "eth0", "no")
    host.tell(EventKind.XDP, "i" * 100, "t" * 100)
    (event,) = host.events()
    assert (event.label, event.text) == ("i" * 63, "t" * 63)
    with Host(segment, read_only=True) as visitor, pytest.raises(MtlshmError):
        visitor.tell(EventKind.XDP, "eth0", "no")


@pytest.mark.parametrize("counter", [0, 1, RING - 1, RING, 2**32, 2**63])
def test_garbage_in_the_ring_is_told_as_lost_and_stops_nobody(host: Host, segment: str, counter: int) -> None:
    chance = random.Random(counter)
    write(segment, AT, chance.randbytes(RING * ENTRY))
    poke(segment, "header", "events", value=counter)
    assert {event.kind for event in host.events()} <= {EventKind.LOST}
    follower = Follower(host.events)
    follower.look()
    follower.look()
    with host.register("worker", cpus=range(64)) as me:
        me.claim_many(1)
        assert "worker" in {event.label for event in follower.look()}
    from mtlshm.damage import examine

    assert examine(segment) == []


@pytest.mark.parametrize("word", range(ENTRY // 8))
def test_an_entry_with_one_word_changed_is_lost(host: Host, segment: str, word: int) -> None:
    host.tell(EventKind.NIC, "eth0", "one")
    host.tell(EventKind.NIC, "eth0", "two")
    with open(segment, "rb") as file:
        file.seek(AT + word * 8)
        value = bytearray(file.read(8))
    value[random.Random(word).randrange(8)] ^= 0x80
    write(segment, AT + word * 8, bytes(value))
    assert kinds(host.events()) == [EventKind.LOST, EventKind.NIC]


def test_an_entry_that_is_not_whole_has_until_the_next_look(host: Host, segment: str) -> None:
    follower = Follower(host.events)
    host.tell(EventKind.NIC, "eth0", "one")
    with open(segment, "rb") as file:
        file.seek(AT)
        entry = file.read(ENTRY)
    host.tell(EventKind.NIC, "eth0", "two")
    write(segment, AT, bytes(ENTRY))
    assert follower.look() == []
    write(segment, AT, entry)  # its writer was at work
    assert [event.text for event in follower.look()] == ["one", "two"]

    host.tell(EventKind.NIC, "eth0", "three")
    host.tell(EventKind.NIC, "eth0", "four")
    write(segment, AT + 2 * ENTRY, bytes(ENTRY))
    assert follower.look() == []
    assert [(event.kind, event.text) for event in follower.look()] == [(EventKind.LOST, ""), (EventKind.NIC, "four")]
    assert follower.look() == []


def test_processes_that_write_at_once_lose_nothing(puppet: Start, host: Host) -> None:
    crowd = [puppet(ready=False) for _ in range(8)]
    for each in crowd:
        assert each.open(1) == 0
    rounds = RING // len(crowd) // 2 - 1
    for _ in range(rounds):
        for each in crowd:
            each.tell("register")
        assert {each.answer() for each in crowd} == {0}
        for each in crowd:
            each.tell("unregister")
        assert {each.answer() for each in crowd} == {0}
    told = host.events()
    assert [event.number for event in told] == list(range(2 * rounds * len(crowd)))
    for each in crowd:
        assert [event.kind for event in told if event.pid == each.pid] == [
            EventKind.REGISTERED,
            EventKind.ENDED,
        ] * rounds


def test_claims_and_releases_are_counted(puppet: Start, host: Host) -> None:
    first, second = puppet(), puppet()
    assert first.claim(1) == first.claim(2) == first.release(1) == 0
    assert second.claim(3) == second.claim(4) == 0
    found = host.snapshot()
    assert (found.claims, found.releases) == (4, 1)
    assert first.unregister() == 0  # gives back the other
    second.kill()
    deadline = time.monotonic() + DEADLINE
    while host.sweep() < 1:
        assert time.monotonic() < deadline
    found = host.snapshot()
    assert (found.claims, found.releases, found.recovered) == (4, 2, 2)
    with host.register("worker", cpus=range(64)) as me:
        me.claim_many(1)
        me.release_all()
    found = host.snapshot()
    assert (found.claims, found.releases) == (5, 3)


def test_what_a_daemon_claims_for_others_is_not_counted(puppet: Start, host: Host) -> None:
    keeper = puppet(ready=False)
    assert keeper.open(1) == keeper.register_proxy(Kind.SOCKET, 0) == keeper.claim(1) == 0
    assert host.snapshot().claims == 0
