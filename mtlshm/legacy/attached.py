# SPDX-License-Identifier: BSD-3-Clause
"""The processes attached to the legacy table, and the owners of its entries.

WHO LIVES is not to be had from the entry, since PID and host name are those of the owner's container. But an owner is
attached for as long as it owns, and attached is what has the segment in its memory map (strangers.py). So each PID
namespace below ours is seen into, and a PID that has been given out again does not deceive. Containers use the same low
PIDs; of those attached with the right one, a container with another host name is not the owner's (our own host may
have been renamed, so there the name is not held against anybody). Where the kernel counts more attachments than we
find, somebody is hidden from us, and then an entry whose owner was not found is not taken for dead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from mtlshm import strangers
from mtlshm.legacy.table import LegacyTable
from mtlshm.strangers import Attached


def census(table: LegacyTable) -> tuple[tuple[Attached, ...], bool]:
    """The attached processes, and whether these are all. The caller holds the lock. It may take seconds."""
    before = table.stamp()
    found = strangers.census(table.where, before[0])
    return found.attached, found.mappings == before[0] and table.stamp() == before


def owners(attached: Iterable[Attached]) -> Callable[[str, int], Attached | None]:
    """A function that finds the owner of an entry by its host name and PID, however many entries there are.

    If several processes are possible, it finds one of them: all have to be dead for the owner to be.
    """
    exact: dict[tuple[str | None, int], Attached] = {}
    possible: dict[int, Attached] = {}
    for one in attached:
        exact.setdefault((one.hostname, one.inner_pid), one)
        if one.same_host or one.hostname is None:
            possible.setdefault(one.inner_pid, one)
    return lambda hostname, pid: exact.get((hostname, pid)) or possible.get(pid)
