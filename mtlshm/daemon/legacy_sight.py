# SPDX-License-Identifier: BSD-3-Clause
"""The processes attached to the legacy table, as an observer sees them.

Only memory maps tell, which others can make as long as they like; so the answer comes later, when the table may have
changed. It still says who is there. That somebody is not there, it says only as long as nobody has come or gone.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property

from mtlshm.daemon.observer import Observer
from mtlshm.legacy.attached import owners
from mtlshm.legacy.entry import Entry
from mtlshm.legacy.table import LegacyTable
from mtlshm.strangers import Attached


@dataclass(frozen=True)
class Sight:
    """The result of a look at a table."""

    table: LegacyTable
    stamp: tuple[int, int, int]  # before
    asked: frozenset[tuple[str, str, int]]  # owners of entries
    attached: tuple[Attached, ...] = ()
    mappings: int = -1

    @property
    def complete(self) -> bool:
        """Was nobody else attached?"""
        return self.mappings == self.stamp[0]

    @cached_property
    def find(self) -> Callable[[str, int], Attached | None]:
        """Finds an entry's owner by host name and PID."""
        return owners(self.attached)

    @property
    def answered(self) -> bool:
        """Or was there no time?"""
        return self.mappings >= 0


async def look(observer: Observer, table: LegacyTable, entries: Collection[Entry], pids: list[int]) -> Sight:
    """For the owners of entries, and for processes that we know. OSError if there is no observer."""
    here = os.uname().nodename
    before = table.stamp()
    asked = frozenset(entry.owner for entry in entries)
    with suppress(LookupError):
        answer = await observer.ask(
            "census",
            of=asdict(table.where),
            count=before[0],
            first=[*pids, *(entry.pid for entry in entries if entry.hostname == here)],
            inner=[entry.pid for entry in entries],
            whole=any(entry.hostname != here for entry in entries),
        )
        if answer:
            attached = tuple(Attached(**process) for process in answer["attached"])
            return Sight(table, before, asked, attached, answer["mappings"])
    return Sight(table, before, asked)
