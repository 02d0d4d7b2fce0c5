# SPDX-License-Identifier: BSD-3-Clause
"""Legacy processes that hold lcores: whose an entry is, and the instance that stands for its owner in our table.

mtlshm/legacy/attached.py says how an owner is found. What only the memory maps of others tell, an observer finds out;
its answer is for the next look.

WHO IS DYING has no memory map any more, while the kernel still counts its attachment: for milliseconds, with many huge
pages for seconds. Then nobody can say whose entry it is, and an owner that we do not see is made up for it; the end
of the attachment is no event. So while there is such an owner, each event is followed by looks up to 20 s later.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from mtlshm import Host, Instance, InstanceInfo, Kind, MtlshmError, Process
from mtlshm.daemon import process
from mtlshm.daemon.deaths import Deaths
from mtlshm.daemon.legacy_sight import Sight, look
from mtlshm.daemon.observer import Observer
from mtlshm.kinds import TableOwner
from mtlshm.legacy.entry import Entry
from mtlshm.legacy.table import LegacyTable
from mtlshm.strangers import Attached

log = logging.getLogger(__name__)

_OUTDATED = 32  # answers in a row, for entries; then who is not found is hidden
_NO_UID = 2**32 - 1
_MOST_OWNERS = 128  # half of the records: anyone may write that table


@dataclass(slots=True, eq=False)
class Owner:
    """A legacy process that holds lcores, and its instance."""

    instance: Instance
    name: str
    pid: int  # as we see it; of one we do not see, as it sees itself
    dead: bool = False
    # on a table that somebody has removed: what is in this one is not its word; None: the observer will tell
    elsewhere: bool | None = False


class Owners:
    """All of them, from when they are met until they have nothing left. `died` is called when one has died."""

    def __init__(self, host: Host, died: Callable[[], None]) -> None:
        self._host = host
        self._died = died
        self._owners: dict[TableOwner, Owner] = {}  # by the owner of its instance
        self._deaths = Deaths()  # likewise; of those that we see
        self._known: dict[tuple[str, str, int], Owner] = {}  # those that we see, by Entry.owner
        self._observer = Observer()
        self._seen: Sight | None = None  # what the observer answered; for one look
        self._outdated = 0  # answers in a row

    def __len__(self) -> int:
        return len(self._owners)

    @property
    def some_unseen(self) -> bool:
        """Whether there is an owner whose death nothing announces."""
        return any(not owner.dead and number not in self._deaths for number, owner in self._owners.items())

    @property
    def some_unplaced(self) -> bool:
        """Whether there is an owner whose table only the observer can find out."""
        return any(owner.elsewhere is None for owner in self._owners.values())

    def is_here(self, holder: TableOwner) -> bool:
        """Whether the holder is one of these owners, and the table decides about its lcores."""
        owner = self._owners.get(holder)
        return owner is not None and (owner.dead or owner.elsewhere is False)

    def unplace(self) -> None:
        """The table is another than before."""
        for number, owner in self._owners.items():
            owner.elsewhere = None if self._deaths.concern(number) else False
        self._known.clear()

    async def ask(self, table: LegacyTable, entries: Collection[Entry]) -> None:
        """Asks the observer, which reads other processes' memory maps, for the next look. OSError if there is none."""
        unplaced = [owner.pid for owner in self._owners.values() if owner.elsewhere is None]
        self._seen = await look(self._observer, table, entries, unplaced)

    def forget_answer(self, *, all_known: bool) -> None:
        """A look is over, which found all owners or not."""
        self._seen = None
        if all_known:
            self._outdated = 0

    def close(self) -> None:
        """Stop watching them. Their instances stay in the table."""
        self._observer.close()
        self._deaths.close()
        for owner in self._owners.values():
            owner.instance.close()

    def _on_death(self, owner: Owner) -> None:
        owner.dead = True
        self._died()

    def place(self, table: LegacyTable) -> None:
        """Note who is on that table, if the observer's answer says so."""
        if self._seen and self._seen.table is table and self._seen.answered:
            here = {process.pid for process in self._seen.attached}
            for owner in self._owners.values():
                if owner.elsewhere is None:
                    owner.elsewhere = owner.pid not in here

    def owner_of(self, table: LegacyTable, entry: Entry) -> Owner | None:
        """Whose entry it is; None if he is dead. LookupError if we have to ask. A newcomer with the PID of one whose
        death we have not heard of yet is taken for him; that costs nobody anything, and once we hear of it we ask
        again.
        """
        known = self._known.get(entry.owner)
        if known and not known.dead:
            return known
        seen = self._seen
        if seen is None or seen.table is not table or entry.owner not in seen.asked:
            raise LookupError
        found = seen.find(entry.hostname, entry.pid)
        if found:
            owner = next((o for n, o in self._owners.items() if self._deaths.concern(n) and o.pid == found.pid), None)
            if not owner:
                self._check_room()
                owner = self._meet(found, entry)
            if owner:
                self._known[entry.owner] = owner
                return owner
        elif table.stamp() == seen.stamp:  # nobody has come meanwhile
            return None if seen.complete else self._unseen(entry)
        self._outdated += 1  # it has died this moment, or somebody else has come or gone
        if self._outdated > _OUTDATED:
            return self._unseen(entry)
        raise LookupError

    def _check_room(self) -> None:
        if len(self._owners) >= _MOST_OWNERS:
            raise OSError(errno.EUSERS, f"{_MOST_OWNERS} legacy processes have some already")

    def _meet(self, found: Attached, entry: Entry) -> Owner | None:
        """None if it is dead."""
        pid = found.pid
        try:
            uid = os.stat(f"/proc/{pid}").st_uid
            pidfd = process.to_keep(os.pidfd_open(pid))
        except (FileNotFoundError, ProcessLookupError):
            return None
        try:
            if not process.is_that(pidfd, pid, found.pidfd_inode, found.start_ticks):
                os.close(pidfd)
                return None
            identity = process.identify(pidfd, pid, uid, entry.hostname, found.start_ticks)
            instance = self._host.register_proxy(Kind.LEGACY, identity)
        except BaseException:
            os.close(pidfd)
            raise
        owner = self._add(instance, identity)
        self._deaths.watch(instance.owner, identity, pidfd, partial(self._on_death, owner))
        return owner

    def _unseen(self, entry: Entry) -> Owner:
        """Somebody whose process is hidden from us; he lives for as long as he has entries and anybody is hidden."""
        for owner in self._owners.values():
            unseen = not owner.dead and owner.instance.owner not in self._deaths
            if unseen and (owner.name, owner.pid) == (_unseen_name(entry), entry.pid):
                return owner
        self._check_room()
        log.warning("legacy table: pid %d of %s on %s is not seen from here", entry.pid, entry.user, entry.hostname)
        identity = Process(entry.pid, 0, 0, 0, _NO_UID, entry.comm, entry.hostname, _unseen_name(entry))
        instance = self._host.register_proxy(Kind.LEGACY, identity)
        return self._add(instance, identity)

    def adopt(self) -> None:
        """What an earlier daemon knew: all of them, or OSError, and those that are left the next time. Or the lcores of
        the others would be taken for anybody's."""
        for number in self._host.proxies():
            if number in self._owners:
                continue
            info = self._host.inspect(number)
            if info and info.kind == Kind.LEGACY:
                with suppress(MtlshmError):  # who may write the table has removed it this moment
                    owner = self._add(self._host.adopt(number), info)
                    self._deaths.adopt(number, partial(_same, info), partial(self._on_death, owner))

    def _add(self, instance: Instance, who: Process | InstanceInfo) -> Owner:
        owner = self._owners[instance.owner] = Owner(instance, who.label, who.pid)
        return owner

    def forget_all_but(self, present: set[Owner], holders: set[TableOwner], *, only_dead: bool) -> None:
        """End the instances of those who have no entry left and are not among the holders in our table."""
        for number, owner in list(self._owners.items()):
            if owner not in present and number not in holders and (owner.dead or not only_dead):
                if not owner.dead:
                    log.info("%s (pid %d) has no lcore left", owner.name, owner.pid)
                self._deaths.forget(number)
                owner.instance.unregister()
                del self._owners[number]
        self._known = {key: owner for key, owner in self._known.items() if owner.instance.owner in self._owners}


def _same(info: InstanceInfo) -> InstanceInfo:
    return info


def _unseen_name(entry: Entry) -> str:
    return f"{entry.user}@{entry.hostname}"[:63]
