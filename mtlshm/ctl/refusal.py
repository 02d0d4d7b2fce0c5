# SPDX-License-Identifier: BSD-3-Clause
"""Why a claim was refused, in numbers: how many lcores were asked for, how many are free, and who holds the rest."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from mtlshm import CpuSet, Host, InstanceInfo, MtlshmError, Smt
from mtlshm.ctl import wording

_HOLDERS = 5  # named; the table has them all
_EXPLAINED = (errno.EBUSY, errno.ERANGE)


@contextmanager
def explained(host: Host, count: int, node: int | None, smt: Smt) -> Iterator[None]:
    """Of a claim by policy within."""
    try:
        yield
    except MtlshmError as error:
        if error.errno not in _EXPLAINED:
            raise
        try:
            text = _numbers(host, count, node, smt, ever=error.errno == errno.EBUSY)
        except OSError:  # it cannot be looked at now
            raise error from None
        raise type(error)(error.errno, text) from None


def _numbers(host: Host, count: int, node: int | None, smt: Smt, *, ever: bool) -> str:
    topology, snapshot = host.topology(), host.snapshot()
    mask = os.sched_getaffinity(0)
    usable = CpuSet(c.cpu for c in topology.cpus if c.cpu in mask and node in (None, c.node))
    holders: dict[int, tuple[InstanceInfo, set[int]]] = {}
    for lcore in snapshot.lcores:
        if lcore.number in usable:
            holders.setdefault(lcore.owner.owner, (lcore.owner, set()))[1].add(lcore.number)
    free = usable - {number for _, numbers in holders.values() for number in numbers}
    where = "" if node is None else f" on NUMA node {node}"
    text = f"{count} lcores{where} asked for, {len(free)} free of the {len(usable)} that this process may use"
    if len(free) >= count:
        text += f", too few for --smt {smt.name.lower()}"
    if not ever:
        text += "; ask for fewer, or widen the affinity mask or cpuset"
    held = [f"{CpuSet(numbers)} by {wording.name(info)}" for info, numbers in holders.values()]
    if held:
        more = f", {len(held) - _HOLDERS} more (mtlshm-ctl status)" if len(held) > _HOLDERS else ""
        text += f"; held: {', '.join(held[:_HOLDERS])}{more}"
    return text


@contextmanager
def holder_named(host: Host, lcore: int) -> Iterator[None]:
    """Of a claim of one lcore within."""
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
