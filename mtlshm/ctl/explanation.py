# SPDX-License-Identifier: BSD-3-Clause
"""Why a claim by policy got these lcores and no others: cffi_build/place.c in words, for one choice."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mtlshm import Cpu, CpuSet, InstanceInfo, LcoreType, Snapshot, Topology
from mtlshm.ctl import wording
from mtlshm.ctl.families import Families
from mtlshm.ctl.policy import Demand
from mtlshm.kinds import NOBODY, TableOwner

_NOT_ENOUGH = "taken because there were not enough others"


@dataclass(frozen=True, slots=True)
class Explanation:
    """Of the lcores that a demand got, or would get, on this host. `me` is the owner that has them, 0 if nobody has;
    `parent` is the one that they come from, or 0."""

    demand: Demand
    lcores: CpuSet
    topology: Topology
    snapshot: Snapshot
    me: int = 0
    parent: TableOwner = NOBODY

    def lines(self) -> Iterator[str]:
        """One for each lcore."""
        cpus = {cpu.cpu: cpu for cpu in self.topology.cpus}
        for number in sorted(self.lcores):
            if cpu := cpus.get(number):  # else it has just gone offline
                yield f"lcore {number}: {'; '.join(self._reasons(cpu))}"

    def _reasons(self, cpu: Cpu) -> Iterator[str]:
        yield self._node(cpu)
        yield self._cache(cpu)
        if self.topology.isolated:
            yield "isolated" if cpu.isolated else f"not isolated, {_NOT_ENOUGH}"
        siblings = self.topology.siblings(cpu) - {cpu.cpu}
        yield "; ".join(self._sibling(sibling) for sibling in sorted(siblings)) or "no SMT sibling"
        if cpu.cpu == 0:
            yield f"CPU 0, {_NOT_ENOUGH}"
        if self.demand.main and cpu.cpu == min(self.lcores):
            yield "libmtl's main lcore, which it hands to nobody"

    def _node(self, cpu: Cpu) -> str:
        text, wish = f"NUMA node {cpu.node}", self.demand
        if wish.node is None:
            return text
        if wish.device is None:
            return f"{text}, as asked for"
        if cpu.node == wish.node:
            return f"{text}, that of {wish.device}"
        return f"{text}, not that of {wish.device} ({wish.node}), {_NOT_ENOUGH}"

    def _cache(self, cpu: Cpu) -> str:
        """From a cache that has enough, the one with least to spare; so what it had tells why."""
        sharing = CpuSet(c.cpu for c in self.topology.cpus if (c.llc, c.node) == (cpu.llc, cpu.node))
        free = CpuSet(
            number for number in sharing & self._usable() if number in self.lcores or not self._holder(number)
        )
        return f"cache of CPUs {sharing}: {len(free)} free, {len(free & self.lcores)} taken"

    def _usable(self) -> CpuSet:
        mask = self.demand.mask
        return (mask & Families(self.snapshot).pool(self.parent)[0] if self.parent else mask) | self.lcores

    def _sibling(self, sibling: int) -> str:
        text = f"SMT sibling {sibling}"
        if sibling in self.lcores:
            return f"{text} taken as well"
        if holder := self._holder(sibling):
            return f"{text} held by {wording.name(holder)}, {_NOT_ENOUGH}"
        return f"{text} free"

    def _holder(self, number: int) -> InstanceInfo | None:
        """The owner that stands in the way. For a tenant, what its parent holds is free."""
        for lcore in self.snapshot.lcores:
            if lcore.number == number:
                ours = lcore.owner.owner == self.parent and lcore.type == LcoreType.LEASE
                return None if ours or lcore.owner.owner == self.me else lcore.owner
        return None
