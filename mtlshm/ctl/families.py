# SPDX-License-Identifier: BSD-3-Clause
"""Parents and tenants in a snapshot."""

from __future__ import annotations

from mtlshm import CpuSet, InstanceInfo, Kind, LcoreType, Snapshot
from mtlshm.ctl import wording
from mtlshm.kinds import TableOwner

_DEPTH = 8  # MTLSHM_DEPTH: a longer chain, or a circle, is damage


class Families:
    """Parents and tenants in one snapshot."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._known = {info.owner: info for info in snapshot.instances}
        self._parents = {info.parent for info in snapshot.instances}

    def __bool__(self) -> bool:
        """Whether there is any tenant, or any lcore held for tenants."""
        return (
            self._parents > {0}
            or any(info.kind == Kind.RESERVATION for info in self._snapshot.instances)
            or any(lcore.type == LcoreType.LEASE for lcore in self._snapshot.lcores)
        )

    def parent(self, info: InstanceInfo) -> InstanceInfo | None:
        """The one it draws lcores from; None: it has none, or that is gone."""
        return self._known.get(info.parent)

    def tenants(self, owner: TableOwner) -> list[InstanceInfo]:
        """The instances that claim lcores of this owner, and their tenants in turn."""
        if owner not in self._parents:  # as most
            return []
        return [info for info in self._snapshot.instances if self._descends(info, owner)]

    def lent(self, owner: TableOwner) -> CpuSet:
        """The lcores that its tenants hold, including their tenants."""
        return CpuSet(number for info in self.tenants(owner) for number in info.lcores)

    def _descends(self, info: InstanceInfo, owner: TableOwner) -> bool:
        above: InstanceInfo | None = info
        for _ in range(_DEPTH):
            if above is None or not above.parent:
                return False
            if above.parent == owner:
                return True
            above = self.parent(above)
        return False

    def kept(self, info: InstanceInfo) -> bool:
        """Whether it is dead and its record is kept, so that lcores of its tenants can go back to its own parent."""
        return info.alive is False and bool(info.parent) and info.owner in self._parents

    def state(self, info: InstanceInfo) -> str:
        """The state as wording.state() says it, or "kept"."""
        return "kept" if self.kept(info) else wording.state(info)

    def pool(self, owner: TableOwner) -> tuple[CpuSet, CpuSet]:
        """The lcores that tenants of this owner can have at all, and those of them that are free now."""
        held = self._snapshot.lcores
        free = CpuSet(one.number for one in held if one.owner.owner == owner and one.type == LcoreType.LEASE)
        return free | CpuSet(one.number for one in held if one.owner.parent == owner), free
