# SPDX-License-Identifier: BSD-3-Clause
"""The rows of the ledger."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address
from typing import NewType

from mtlshm.kinds import TableOwner
from mtlshm.net.flow import FlowSpec, FlowType
from mtlshm.snapshot import Process

LedgerOwner = NewType("LedgerOwner", int)
"""The number of an owner in the ledger, which gives each number once. It is no owner of the table."""
QueueNumber = NewType("QueueNumber", int)
"""The number of a queue of an interface. Nobody owns queue 0: packets that no rule steers arrive there."""

CHOSEN_BY_DRIVER = 1 << 31
"""From here on, numbers of flows whose place is not known; the kernel has no places beyond."""
_PLACE_0 = CHOSEN_BY_DRIVER - 1  # the number of a flow whose rule is at 0, which on the manager socket is no number


@dataclass(frozen=True, slots=True)
class Owner:
    """A registration."""

    id: LedgerOwner
    token: TableOwner  # its instance in the segment, for people
    process: Process
    leaving: bool  # it has ended, and not all that it had could be taken away yet


@dataclass(frozen=True, slots=True)
class Use:
    """An interface that somebody wants served."""

    ifindex: int
    kept: bool  # whoever uses it: an administrator wants it
    owners: tuple[LedgerOwner, ...]


@dataclass(frozen=True, slots=True)
class Queue:
    """A queue of an interface, from 1 on, and the number of its owner."""

    ifindex: int
    queue: QueueNumber
    owner: LedgerOwner


@dataclass(frozen=True, slots=True)
class Flow:
    """A flow rule of ours. If it is not complete, it may or may not be in the NIC."""

    ifindex: int
    location: int  # its number for its owner: where it is in the NIC, but see `place`
    queue: QueueNumber
    owner: LedgerOwner
    spec: FlowSpec
    complete: bool

    @property
    def place(self) -> int | None:
        """Where it is in the NIC; None if the driver is to choose, and it is not complete."""
        if self.location >= CHOSEN_BY_DRIVER:
            return None
        return 0 if self.location == _PLACE_0 else self.location


def number_at(place: int) -> int:
    """The number of a flow whose rule is at this place in the NIC."""
    return place or _PLACE_0


@dataclass(frozen=True, slots=True)
class PortReference:
    """A UDP port of an interface that an owner has asked for `count` times."""

    ifindex: int
    port: int
    owner: LedgerOwner
    count: int


@dataclass(frozen=True, slots=True)
class State:
    """All of it, at one moment."""

    owners: tuple[Owner, ...]
    uses: tuple[Use, ...]
    queues: tuple[Queue, ...]
    flows: tuple[Flow, ...]
    ports: tuple[PortReference, ...]


def flow_of_row(
    ifindex: int,
    location: int,
    queue: QueueNumber,
    owner: LedgerOwner,
    complete: int,
    number: int,
    source: str | None,
    destination: str | None,
    source_port: int,
    destination_port: int,
) -> Flow:
    """From a row of the table `flows`, in the order of the columns that Ledger.flows() asks for."""
    addresses = [ip_address(text) if text else None for text in (source, destination)]
    spec = FlowSpec(FlowType(number), addresses[0], addresses[1], source_port, destination_port)
    return Flow(ifindex, location, queue, owner, spec, bool(complete))
