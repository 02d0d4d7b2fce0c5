# SPDX-License-Identifier: BSD-3-Clause
"""The last events in a segment: registrations, claims by policy, ends, deaths, evictions, changes of interfaces.

Each process writes its own into a ring in the segment, so they are there also if no daemon ran. Single claims and
releases are not told. cffi_build/event.c says how the ring works.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Any, NamedTuple

from mtlshm._core import lib
from mtlshm.cpuset import CpuSet
from mtlshm.kinds import Kind, TableOwner
from mtlshm.snapshot import member, text_of


class EventKind(IntEnum):
    """The kinds of events."""

    LOST = lib.MTLSHM_EVENT_LOST  # that there was one: its writer has not finished, was killed, or was overtaken
    REGISTERED = lib.MTLSHM_EVENT_REGISTERED
    ENDED = lib.MTLSHM_EVENT_ENDED  # unregistered; of a proxied one, a daemon ended it
    DIED = lib.MTLSHM_EVENT_DIED  # was dead, and was collected
    KEPT = lib.MTLSHM_EVENT_KEPT  # ended or died, and its record is kept for its tenants
    CLAIMED = lib.MTLSHM_EVENT_CLAIMED  # by policy
    RESERVED = lib.MTLSHM_EVENT_RESERVED
    EVICTED = lib.MTLSHM_EVENT_EVICTED  # an lcore was taken away from it
    TAKEOVER = lib.MTLSHM_EVENT_TAKEOVER  # it took the semaphore from a dead holder
    XDP = lib.MTLSHM_EVENT_XDP
    NIC = lib.MTLSHM_EVENT_NIC


class Event(NamedTuple):
    """One event. What a process says of itself is for people and decides nothing."""

    number: int  # from 0; numbers order events, times do not
    kind: EventKind
    when: float  # seconds of the epoch
    owner: TableOwner  # whom it is about; 0: no instance
    parent: TableOwner  # where its lcores come from and go to; 0: they are free
    instance_kind: Kind | int
    pid: int  # as the process sees itself, in pid_namespace; 0 if no process is known
    pid_namespace: int
    uid: int
    comm: str
    hostname: str
    label: str  # of XDP and NIC the interface
    text: str  # of XDP and NIC what was done; of a reservation its key
    lcores: CpuSet  # claimed, or given up

    @classmethod
    def from_c(cls, c: Any) -> Event:
        """From a `struct mtlshm_event`."""
        return cls(
            number=c.number,
            kind=EventKind(c.kind),
            when=c.when_ns / 1e9,
            owner=c.owner,
            parent=c.parent,
            instance_kind=member(Kind, c.instance_kind),
            pid=c.pid,
            pid_namespace=c.pid_namespace,
            uid=c.uid,
            comm=text_of(c.comm),
            hostname=text_of(c.hostname),
            label=text_of(c.label),
            text=text_of(c.text),
            lcores=CpuSet.from_c(c.lcores),
        )


class Follower:
    """Reads events again and again, and returns each once, from the oldest that is there.

    An event that is not whole may be complete a moment later: it is told as lost, by its kind, if it is not so at the
    next look, and what came after it waits until then. Nobody is waited for longer. `events` is that of a Host.
    """

    def __init__(self, events: Callable[[int], list[Event]]) -> None:
        self._events = events
        self._next = 0
        self._suspect = -1  # the number of the event that was not whole at the last look

    def look(self, *, last: bool = False) -> list[Event]:
        """Return the new events. With `last`, events that are not whole are reported as lost at once."""
        found = self._events(self._next)
        told: list[Event] = []
        for event in found:
            if event.kind == EventKind.LOST and event.number > self._suspect and not last:
                self._suspect = found[-1].number  # all that are not whole now have until the next look
                break
            told.append(event)
        if told:
            self._next = told[-1].number + 1
        return told
