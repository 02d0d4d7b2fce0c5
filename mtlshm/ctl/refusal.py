# SPDX-License-Identifier: BSD-3-Clause
"""The reason for a refused claim in numbers: lcores asked for, lcores free, and the holders of the rest."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from mtlshm import CpuSet, Host, InstanceInfo, MtlshmError, Snapshot
from mtlshm.cpuset import counted
from mtlshm.ctl import wording
from mtlshm.ctl.families import Families
from mtlshm.ctl.policy import Demand
from mtlshm.kinds import NOBODY, TableOwner

_LEASE = "MTLSHM_LEASE"
_HOLDERS = 5  # named; the table has them all
_EXPLAINED = (errno.EBUSY, errno.ERANGE)


@contextmanager
def explained(host: Host, demand: Demand, parent: TableOwner) -> Iterator[None]:
    """Explains a refused claim by policy within. `parent` is the owner whose lcores are claimed, or 0."""
    try:
        yield
    except MtlshmError as error:
        if error.errno not in _EXPLAINED:
            raise
        try:
            text = _numbers(host, demand, parent, ever=error.errno == errno.EBUSY)
        except OSError:  # it cannot be looked at now
            raise error from None
        raise type(error)(error.errno, text) from None


def _numbers(host: Host, demand: Demand, parent: TableOwner, *, ever: bool) -> str:
    topology, snapshot = host.topology(), host.snapshot()
    families = Families(snapshot)
    mask, node = demand.mask, None if demand.device else demand.node
    usable = CpuSet(c.cpu for c in topology.cpus if c.cpu in mask and node in (None, c.node))
    lent = CpuSet()  # what the parent holds for its tenants is free for them
    if parent:
        leased, lent = families.pool(parent)
        usable &= leased
    holders: dict[int, tuple[InstanceInfo, set[int]]] = {}
    for lcore in snapshot.lcores:
        if lcore.number in usable - lent:
            holders.setdefault(lcore.owner.owner, (lcore.owner, set()))[1].add(lcore.number)
    free = usable - {number for _, numbers in holders.values() for number in numbers}
    where = "" if node is None else f" on NUMA node {node}"
    whose = f"that this process may use{f' of the lease of {_whose(snapshot, parent)}' if parent else ''}"
    text = f"{counted(demand.count)}{where} asked for, {len(free)} free of the {len(usable)} {whose}"
    if len(free) >= demand.count:
        text += f", too few for --smt {demand.smt.name.lower()}"
    if demand.main:
        text += "; one of them is for libmtl's main lcore"
    if demand.listed:
        text += "; CPU 0 is left out, as libmtl hands it to nobody"
    if not ever:
        text += "; ask for fewer, or " + ("lease more" if parent else "widen the affinity mask or cpuset")
    held = [f"{CpuSet(numbers)} by {_holder(info)}" for info, numbers in holders.values()]
    if held:
        more = f", {len(held) - _HOLDERS} more (mtlshm-ctl status)" if len(held) > _HOLDERS else ""
        text += f"; held: {', '.join(held[:_HOLDERS])}{more}"
    return text


def _whose(snapshot: Snapshot, owner: TableOwner) -> str:
    return next((wording.name(info) for info in snapshot.instances if info.owner == owner), "one that has ended")


def _holder(info: InstanceInfo) -> str:
    return wording.name(info) + (", which is dead: mtlshm-ctl gc" if info.alive is False else "")


def inherited(host: Host) -> TableOwner:
    """The owner that a registration now would make its parent: $MTLSHM_LEASE, or 0."""
    lease = os.environ.get(_LEASE)
    return host.parse_lease(lease) if lease else NOBODY


@contextmanager
def lease_explained() -> Iterator[None]:
    """Explains a refused registration within, if $MTLSHM_LEASE is the cause."""
    try:
        yield
    except MtlshmError as error:
        lease = os.environ.get(_LEASE)
        if not lease or error.errno not in (errno.EINVAL, errno.ESRCH, errno.ELOOP):
            raise
        text = {
            errno.EINVAL: "is no lease",
            errno.ESRCH: "is a lease that has ended, or one of another segment",
            errno.ELOOP: "is a lease too many below others",
        }[error.errno]
        advice = f"start this from where the lease is, or unset {_LEASE} to claim what is free"
        raise type(error)(error.errno, f"{_LEASE}={lease} {text}: {advice}") from None


@contextmanager
def holder_named(host: Host, lcore: int) -> Iterator[None]:
    """Names the holder if a claim of one lcore within is refused."""
    try:
        yield
    except MtlshmError as error:
        if error.errno != errno.EBUSY:
            raise
        try:
            owner, _ = host.holder(lcore)
            info = host.inspect(owner) if owner else None
        except OSError:
            info = None
        if info is None:  # gone meanwhile
            raise error from None
        raise type(error)(error.errno, f"lcore {lcore}: held by {wording.name(info)}") from None
