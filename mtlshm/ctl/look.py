# SPDX-License-Identifier: BSD-3-Clause
"""One look at all that `status` shows: the table, the host's CPUs, and where the processes are.

What only some need is imported where they need it: a look at an empty table is over before that would be.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from mtlshm import CpuSet, Host, InstanceInfo, Kind, Lcore, LcoreType, Snapshot
from mtlshm.ctl import cpu_use
from mtlshm.ctl.families import Families
from mtlshm.ctl.whereabouts import Where, whereabouts
from mtlshm.kinds import TableOwner
from mtlshm.topology import numa_nodes

if TYPE_CHECKING:
    from mtlshm.previous_layout import PreviousHost

_LAST = 1 << 32  # after all lcores

ORDERS: dict[str, Callable[[InstanceInfo], Any]] = {
    "lcores": lambda info: min(info.lcores, default=_LAST),
    "count": lambda info: -len(info.lcores),
    "owner": lambda info: (info.key or info.label).casefold(),
    "pid": lambda info: info.pid,
    "age": lambda info: -info.age,
}


class Choice(NamedTuple):
    """Which owners are shown, and in what order."""

    order: str = "lcores"  # one of ORDERS
    owner: str = ""  # part of a name, or a PID; '': all

    def pick(self, found: Snapshot, where: Mapping[TableOwner, Where]) -> list[InstanceInfo]:
        """The instances of a snapshot to show."""
        shown = [info for info in found.instances if self._wants(info, where.get(info.owner))]
        shown.sort(key=ORDERS["lcores"])
        return sorted(shown, key=ORDERS[self.order])

    def _wants(self, info: InstanceInfo, where: Where | None) -> bool:
        if self.owner.isdecimal():
            return int(self.owner) in (info.pid, where.pid if where else info.pid)
        names = (info.label, info.comm, info.key, info.hostname, where.container if where else "")
        return any(self.owner in name for name in names)


class Look(NamedTuple):
    """The result of one look at the table."""

    path: str
    snapshot: Snapshot
    families: Families
    online: CpuSet
    nodes: Mapping[int, int]  # NUMA node by CPU
    where: Mapping[TableOwner, Where]
    use: Mapping[int, float | None] | None  # per cent by CPU; None: not measured
    shown: list[InstanceInfo]

    @classmethod
    def take(cls, host: Host | PreviousHost, choice: Choice, use: Mapping[int, float | None] | None = None) -> Look:
        """Now."""
        snapshot = host.snapshot()
        where = whereabouts(snapshot.instances)
        online = cpu_use.online() if use is None else CpuSet(use)
        shown = choice.pick(snapshot, where)
        return cls(host.path, snapshot, Families(snapshot), online, numa_nodes(), where, use, shown)

    @property
    def lent(self) -> CpuSet:
        """To libmtl's own table, whether somebody there uses them or not."""
        return CpuSet(lcore.number for lcore in self.snapshot.lcores if lcore.owner.kind == Kind.POOL)

    @property
    def held(self) -> CpuSet:
        """By all others."""
        return CpuSet(lcore.number for lcore in self.snapshot.lcores) - self.lent

    @property
    def free(self) -> CpuSet:
        """The free lcores among the online ones."""
        return self.online - self.held - self.lent

    @property
    def lcores(self) -> list[Lcore]:
        """The lcores of the owners that are shown, in their order."""
        place = {info.owner: n for n, info in enumerate(self.shown)}
        mine = [lcore for lcore in self.snapshot.lcores if lcore.owner.owner in place]
        return sorted(mine, key=lambda lcore: place[lcore.owner.owner])

    def node(self, lcores: CpuSet) -> CpuSet:
        """The NUMA nodes of these, as far as they are known."""
        return CpuSet(self.nodes[number] for number in lcores if number in self.nodes)

    def pid(self, info: InstanceInfo) -> int | None:
        """On this host; None: not known."""
        return self.where[info.owner].pid if info.owner in self.where else None

    def container(self, info: InstanceInfo) -> str:
        """Or, of a process in one that cannot be seen, its host name; '' if it is in none."""
        if info.owner in self.where and (found := self.where[info.owner].container):
            return found
        return "" if info.hostname == os.uname().nodename or info.kind == Kind.RESERVATION else info.hostname


def purpose(lcore: Lcore) -> str:
    """What the lcore is for. A process uses lcores for tenants itself, as long as no tenant has claimed them."""
    if lcore.type == LcoreType.LEASE and lcore.owner.kind == Kind.SHM:
        return name(LcoreType.APP)
    return name(lcore.type)


def purpose_and_lease(lcore: Lcore) -> str:
    """The same, and that tenants may claim it."""
    found = purpose(lcore)
    return found + " (lease)" * (lcore.type == LcoreType.LEASE and found != "lease")


def name(value: Any) -> str:
    """The name of a member of an enumeration; the bare number if a damaged table has an unknown one."""
    return value.name.lower() if hasattr(value, "name") else str(value)
