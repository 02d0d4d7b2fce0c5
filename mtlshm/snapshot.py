# SPDX-License-Identifier: BSD-3-Clause
"""The table at a moment, as plain data."""

from __future__ import annotations

from enum import IntEnum
from typing import Any, NamedTuple

from mtlshm._core import ffi
from mtlshm.cpuset import CpuSet
from mtlshm.kinds import Kind, LcoreType, TableOwner


class Process(NamedTuple):
    """Who a process is, as the one who registers it sees it. Texts that are too long are cut."""

    pid: int
    pid_namespace: int
    start_ticks: int
    pidfd_inode: int
    uid: int
    comm: str
    hostname: str
    label: str


class InstanceInfo(NamedTuple):
    """One registered instance; what it says of itself is for people and decides nothing."""

    owner: TableOwner  # names it in the table: record index and generation in one number
    parent: TableOwner  # the owner that it draws lcores from; 0: none
    kind: Kind | int
    alive: bool | None  # False: dead and not yet collected; None: could not be asked
    pid: int  # as the process sees itself, in pid_namespace
    pid_namespace: int  # inode of its /proc/self/ns/pid, 0 if unknown
    start_ticks: int  # when the process started, in clock ticks since boot
    pidfd_inode: int  # of a pidfd on it, 0 if unknown; before Linux 6.9 that of all pidfds
    uid: int
    comm: str
    hostname: str
    label: str
    key: str  # of a reservation; else empty
    age: float  # seconds since it registered
    lcores: CpuSet

    @classmethod
    def from_c(cls, c: Any, now_ns: int, lcores: CpuSet = CpuSet()) -> InstanceInfo:  # noqa: B008 - immutable
        """From a `struct mtlshm_instance_info`."""
        return cls(
            owner=c.owner,
            parent=c.parent,
            kind=member(Kind, c.kind),
            alive=None if c.alive < 0 else bool(c.alive),
            pid=c.process.pid,
            pid_namespace=c.process.pid_namespace,
            start_ticks=c.process.start_ticks,
            pidfd_inode=c.process.pidfd_inode,
            uid=c.process.uid,
            comm=text_of(c.process.comm),
            hostname=text_of(c.process.hostname),
            label=text_of(c.process.label),
            key=text_of(c.key),
            age=_age(now_ns, c.registered_ns),
            lcores=lcores,
        )


_ID_MASK = 0xFFFF  # in a tag: lcore id + 1, or 0


def tag_of_id(lcore_id: int) -> int:
    """The tag for an lcore that its owner knows by another number."""
    return lcore_id + 1


class Lcore(NamedTuple):
    """One lcore that is held."""

    number: int
    type: LcoreType | int
    age: float  # seconds since it was claimed, to the second; that of its owner if a tenant has given it back
    tag: int  # the daemon's note on it, 0 if none

    @property
    def id(self) -> int:
        """By what number its owner knows it; other than the CPU's if the owner's libmtl numbers its lcores itself."""
        return (self.tag & _ID_MASK) - 1 if self.tag & _ID_MASK else self.number

    owner: InstanceInfo


class Snapshot(NamedTuple):
    """Instances and held lcores, consistent pair by pair: each lcore's owner is among the instances."""

    created: float  # when the segment was made, seconds of the epoch
    size: int  # lcores in the table, held or free
    instances: tuple[InstanceInfo, ...]
    lcores: tuple[Lcore, ...]
    semaphore: InstanceInfo | None  # who holds it
    registered: int  # counters since the segment was made: instances registered,
    collected: int  # dead ones collected,
    recovered: int  # lcores freed from them,
    takeovers: int  # times the semaphore was taken from a dead holder,
    claims: int  # lcores claimed by instances that registered themselves,
    releases: int  # and those of them that they gave back, but not what was collected from the dead

    @property
    def daemon(self) -> InstanceInfo | None:
        """The daemon that serves the segment, if one lives."""
        return next((i for i in self.instances if i.kind == Kind.DAEMON and i.alive), None)

    @classmethod
    def from_c(cls, c: Any) -> Snapshot:
        """From a `struct mtlshm_snapshot`."""
        held: dict[int, list[int]] = {}
        lcores = ffi.unpack(c.lcores, c.lcore_count)
        for number, lcore in enumerate(lcores):
            if lcore.instance >= 0:
                held.setdefault(lcore.instance, []).append(number)
        instances = tuple(
            InstanceInfo.from_c(info, c.taken_ns, CpuSet(held.get(position, ())))
            for position, info in enumerate(ffi.unpack(c.instances, c.instance_count))
        )
        return cls(
            created=c.created_ns / 1e9,
            size=c.lcore_count,
            instances=instances,
            lcores=tuple(
                Lcore(
                    number,
                    member(LcoreType, lcore.type),
                    min((c.taken - lcore.since) % 2**32, instances[lcore.instance].age),
                    lcore.tag,
                    instances[lcore.instance],
                )
                for number, lcore in enumerate(lcores)
                if lcore.instance >= 0
            ),
            semaphore=next((i for i in instances if i.owner == c.semaphore), None),
            registered=c.registered,
            collected=c.collected,
            recovered=c.recovered,
            takeovers=c.takeovers,
            claims=c.claims,
            releases=c.releases,
        )


def member(enum: type[IntEnum], value: int) -> Any:
    """The member; or the bare number, if a damaged table has one that means nothing."""
    return enum(value) if value in enum.__members__.values() else value


def _age(now_ns: int, then_ns: int) -> float:
    """Seconds; both are modulo 2**64, and in a damaged table the future is possible."""
    elapsed = (now_ns - then_ns) % 2**64
    return elapsed / 1e9 if elapsed < 2**63 else 0.0


def text_of(chars: Any) -> str:
    """Of a C array that ends with NUL, fit for a terminal."""
    return printable(bytes(ffi.string(chars)).decode(errors="replace"))


def printable(text: str) -> str:
    """What somebody calls himself, fit for a terminal or a log: no control characters, no line ends."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
