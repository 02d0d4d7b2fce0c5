# SPDX-License-Identifier: BSD-3-Clause
"""Lcores that a client's process claimed directly in the table and its libmtl uses.

libmtl asks the daemon even for an lcore that its own process holds. So it gets that through a second record of the
client's, a tenant of the process's instance: while libmtl has the lcore, it is not the process's to release, and what
libmtl gives back is the process's again. Only the daemon may take what an owner did not hold for tenants.

WHOSE INSTANCE it is, the kernel says: pidfds.is_same().

A SECOND RECORD LASTS as long as it holds something. An earlier daemon's is known by what it says of the process, which
is the same as the first one says, and by its parent, which is another.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from contextlib import suppress

from mtlshm import Host, Instance, InstanceInfo, Kind, LcoreType, MtlshmError, Process
from mtlshm.kinds import NOBODY, TableOwner

_SCH = int(LcoreType.SCH)


class OwnClaims:
    """The direct claims of one client. `is_its` tells whether an instance is the client's process."""

    def __init__(self, host: Host, is_its: Callable[[InstanceInfo], bool]) -> None:
        self._host = host
        self._is_its = is_its
        self._records: dict[TableOwner, Instance] = {}  # by their parents
        self._held: dict[int, Instance] = {}  # by CPUs

    @property
    def owners(self) -> set[TableOwner]:
        """The owners of the client's second records."""
        return {record.owner for record in self._records.values()}

    def take(self, client: Process, cpu: int) -> bool:
        """For its libmtl, if its process holds it. OSError if no record is left."""
        parent, _ = self._host.holder(cpu)
        info = self._host.inspect(parent) if parent else None
        if info is None or not self._is_its(info):
            return False
        record = self._records.get(parent)
        try:
            if record is None:
                record = self._host.register_proxy(Kind.SOCKET, client, parent)
                self._records[parent] = record
            record.take(cpu, parent, _SCH)
        except MtlshmError as error:
            self._tidy()
            if error.errno == errno.ESRCH:  # its owner lets it go this moment, or ends
                return False
            raise
        self._held[cpu] = record
        return True

    def owner(self, cpu: int) -> TableOwner:
        """The owner of the second record that holds the CPU; 0: none does."""
        return self._held[cpu].owner if cpu in self._held else NOBODY

    def give_back(self, cpu: int) -> bool:
        """To its process. False if it came from elsewhere."""
        record = self._held.pop(cpu, None)
        if record is None:
            return False
        with suppress(MtlshmError):  # an operator has taken it
            record.release(cpu)
        self._tidy()
        return True

    def resume(self, first: InstanceInfo) -> dict[int, int]:
        """Takes over the claims of a client of an earlier daemon; returns the CPUs by lcore id.

        With several connections of one process it cannot be told which has what: then they are left to the process's
        end, like those of a client that has none.
        """
        snapshot = self._host.snapshot()
        same = [info for info in snapshot.instances if info.kind == Kind.SOCKET and _who(info) == _who(first)]
        seconds = {info.owner for info in same if info.parent not in (0, first.parent)}
        if len(same) > len(seconds) + 1:
            return {}
        found: dict[int, int] = {}
        for info in same:
            if info.owner in seconds:
                with suppress(MtlshmError):  # who may write the table has removed it this moment
                    record = self._records[info.parent] = self._host.adopt(info.owner)
                    for lcore in snapshot.lcores:
                        if lcore.owner.owner == info.owner:
                            self._held[lcore.number] = record
                            found[lcore.id] = lcore.number
        self._tidy()
        return found

    def leave(self) -> None:
        """They stay in the table."""
        for record in self._records.values():
            record.close()

    def _tidy(self) -> None:
        """End those that hold nothing."""
        used = {id(record) for record in self._held.values()}
        for parent, record in list(self._records.items()):
            if id(record) not in used:
                del self._records[parent]
                record.unregister()


def _who(info: InstanceInfo) -> tuple[int, ...]:
    return info.pid, info.pid_namespace, info.start_ticks, info.pidfd_inode
