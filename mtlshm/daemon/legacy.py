# SPDX-License-Identifier: BSD-3-Clause
"""The legacy bridge: processes on libmtl's System V table draw their lcores from ours.

mtlshm/legacy/lending.py says how an lcore gets from one table into the other, and why nothing is lost whenever we are
killed; mtlshm/legacy what that table is, and how its owners' lives are known. Here is what makes both agree.

ONE LOOK does everything: it goes through both tables under the legacy lock, and repairs what it finds, whether that is
a moment old or from before our start. It needs no memory but the tables. For each lcore it finds, and does:

    legacy table     our table                 then
    reserved         anybody's, or free        nothing
    reserved         the pool's, a process's   a process was killed while it moved it: brought home
    not active       the pool's                it is lent
    not active       a process's               given back: the pool's again, or brought home
    not active       anybody's, or free        the table is new, or was zeroed: reserve
    a process's      that process's            nothing
    a process's      the pool's, another's     it was taken: the process's
    a process's      free                      taken with no daemon there: the process's
    a process's      anybody's                 a CLASH: reported, and both left alone
    a dead one's     the pool's, a process's   given back
    a dead one's     anybody's, or free        reserve

WHEN TO LOOK. libmtl and mtlshm-ctl open, lock and close the lock file for each change, and inotify tells of the close.
It does so up to half a millisecond before the kernel drops the lock. So if the lock is held we look again after 2, 20
and 200 ms and more, but not for ever: a process that holds it longer will still close it. A pidfd tells of each death.
If we want an lcore that is taken, for a loan or because of a clash, the ends of instances are events too. We keep the
lock file open, or each look would cause the next. Without an event there is no timer. But a shortage that keeps us from
looking, such as of descriptors, ends without an event: then we try again until it is over. Anyone can cause such events
without end, so after each look we rest ten times as long as it took.

A CLASH happens only if a legacy process started on a fresh table while no daemon ran. It ends when either side releases
the lcore; if ours does, the lcore is claimed for the process at the next look.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import time
from contextlib import suppress
from pathlib import Path

from mtlshm import Busy, CpuSet, Host, Instance, LcoreType
from mtlshm.daemon.legacy_events import Events
from mtlshm.daemon.legacy_owners import Owner, Owners
from mtlshm.kinds import NOBODY, TableOwner
from mtlshm.legacy import LegacyError
from mtlshm.legacy.entry import RESERVATION, Entry
from mtlshm.legacy.lending import LENT_BY_HAND, bring_home, hand_over, lend, open_pool
from mtlshm.legacy.lock import LegacyLock
from mtlshm.legacy.table import LegacyTable

log = logging.getLogger(__name__)

_AGAIN = (0.002, 0.020, 0.200, 2.0, 20.0)  # seconds, each after the one before
_REST, _LONGEST_REST = 0.020, 1.0  # seconds between two looks
_LOCK_AGAIN = (0.001, 0.01, 0.1, 0.5)  # seconds; libmtl has it for microseconds
_FIRST_ANSWERS_WITHIN = 5.0  # seconds; who needs no legacy table shall not wait long for our start
_SHORTAGE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


class Legacy:
    """Looks after the table `key` from start() to close(), both in the event loop.

    `lent` is which lcores to lend, as far as they are free, or how many shall be there for the taking at any time;
    of these, none is lent while no more than `spare` are free. With `leave` it stops by itself as soon as nothing is
    lent any more.
    """

    def __init__(
        self, host: Host, lent: int | CpuSet, key: int, lock: Path, *, spare: int = 0, leave: bool = False
    ) -> None:
        self._host = host
        self._leave = leave
        self._closed = False
        self._wish = lent
        self._spare = spare
        self._key = key
        self._size = host.snapshot().size
        if isinstance(lent, CpuSet) and (absent := lent - range(self._size)):
            log.warning("lcores %s are not in the table, and not lent", absent)
        self._lock = LegacyLock(lock, create=True)
        self._loop = asyncio.get_running_loop()
        self._events = Events(self._on_events)
        self._next_look: asyncio.TimerHandle | None = None
        self._rest_until = 0.0
        self._ask_not_before = 0.0
        self._table: LegacyTable | None = None
        self._pool: Instance | None = None
        self._owners = Owners(host, self._on_death)
        self._asking: asyncio.Task[None] | None = None
        self._asked: dict[int, Entry] = {}  # by lcore, at the last look: whose owners we do not know
        self._clashes: set[tuple[int, TableOwner, tuple[str, str, int]]] = set()
        self._shut_out = False  # was the lock somebody else's?
        self._wanting = False  # is there an lcore that we would claim, if it were free?
        self._troubles: set[str] = set()  # what kept the last look from its end, in general or for some lcores
        self._said: set[str] = set()  # of them in the log, before that look

    async def start(self) -> None:
        """Take over what is there. LegacyError, and it is closed, if that table cannot be used; what is in the way for
        a while, such as having no descriptor left, is waited for."""
        self._events.hear()
        try:
            self._try()
        except OSError as error:
            if isinstance(error, LegacyError) and error.errno not in _SHORTAGE:
                self.close()
                error.strerror = f"{error.strerror}; without that table: --legacy off"
                raise
            self._suffer(error, "cannot look after the legacy table")
        if self._is_left():
            return
        if self._shut_out:
            log.info("legacy table: its lock is held; waiting for it")
        self._go_on(0)
        deadline = self._loop.time() + _FIRST_ANSWERS_WITHIN
        while self._asking and (left := deadline - self._loop.time()) > 0:
            await asyncio.wait([self._asking], timeout=left)

    def close(self) -> None:
        """Stop. Reservations and loans stay as they are."""
        if self._closed:
            return
        self._closed = True
        self._events.close()
        if self._next_look:
            self._next_look.cancel()
        if self._asking:
            self._asking.cancel()
        self._owners.close()
        with suppress(OSError):  # somebody has put something else in the lock's place
            if self._pool and self._lock.try_take():  # else somebody may be about to lend
                if not self._pool.lcores:
                    self._pool.unregister()
                self._lock.give()
        if self._table:
            self._table.close()
        self._lock.close()

    async def hand_over(self, lcore: int, to: Instance, kind: int) -> bool:
        """Give one that is lent, and that no legacy process uses, to an instance; False if that cannot be done soon."""
        for pause in _LOCK_AGAIN:
            if self._table and not self._closed and self._lock.try_take():
                break
            await asyncio.sleep(pause)
        else:
            return False
        try:
            if self._table is None or self._table.removed or self._pool is None:
                return False
            if lcore >= self._table.size or self._table.entries()[lcore] or self._holder(lcore) != self._pool.owner:
                return False
            hand_over(to, self._table, lcore, self._pool.owner, kind)
        finally:
            self._lock.give()
        self._look_later(0)  # another may be lent, or this one again when it is free
        return True

    # -- when to look

    def _on_events(self, of_the_segment: bool) -> None:
        if of_the_segment:
            self._look_later(0)  # not before its lcores can be claimed
        else:
            self._look()

    def _on_death(self) -> None:
        if self._table:  # else he is found dead while we take over what is there
            self._look()

    def _look(self, step: int = 0) -> None:
        used = time.thread_time()
        if self._loop.time() < self._rest_until:
            self._events.ignore()  # what happens meanwhile is seen by that look
            self._look_at(self._rest_until, step)
            return
        self._events.hear()
        try:
            self._try()
        except OSError as error:
            self._suffer(error, "cannot look after the legacy table")
        if self._is_left():
            return
        used = time.thread_time() - used  # not how long it took: then who stops us for a while would have us rest long
        self._rest_until = self._loop.time() + min(max(_REST, 10 * used), _LONGEST_REST)
        if self._troubles:
            step = min(step, len(_AGAIN) - 1)  # the last again and again
        self._go_on(step)

    def _go_on(self, step: int) -> None:
        if self._asks() and not self._shut_out:
            if not self._asking:  # else there will be a look when that is answered
                self._asking = self._loop.create_task(self._ask(step))
        elif self._unsettled():
            self._look_later(step)

    def _is_left(self) -> bool:
        """Whether all loans have come home, so that the duty is over."""
        if not self._leave or self._shut_out or self._troubles or self._pool is None or self._owners:
            return False
        if any(self._lent(self._holder(lcore)) for lcore in range(self._size)):
            return False
        log.info("legacy table: nothing is lent any more, and it is left alone")
        self.close()
        return True

    def _suffer(self, error: OSError, what: str) -> None:
        """Look again for it, and say it once until it is over; of descriptors, whichever step wanted one."""
        text = error.strerror or str(error)
        trouble = "descriptors" if error.errno in (errno.EMFILE, errno.ENFILE) else text
        if trouble not in self._troubles | self._said:
            log.error("%s: %s", what, text)
        self._troubles.add(trouble)

    def _unsettled(self) -> bool:
        """May another look find something new, though nothing tells us of it?"""
        return self._shut_out or self._wanting or self._owners.some_unseen or bool(self._troubles)

    def _look_later(self, step: int) -> None:
        if step < len(_AGAIN):
            self._look_at(self._loop.time() + _AGAIN[step], step + 1)

    def _look_at(self, when: float, step: int) -> None:
        if self._next_look:
            self._next_look.cancel()
        self._next_look = self._loop.call_at(when, self._look, step)

    def _try(self) -> None:
        """Look, if the lock is to be had."""
        self._said, self._troubles = self._troubles, set()
        self._lock.reopen()
        self._lock.be_the_only_daemon()
        self._events.watch_lock(self._lock.path)
        self._shut_out = not self._lock.try_take()
        if self._shut_out:
            self._troubles = self._said  # they are not over
            return
        try:
            self._settle(self._attach())
        finally:
            self._lock.give()
        self._events.watch_segment(self._host.path, self._wanting)

    # -- one look

    def _attach(self) -> LegacyTable:
        """The table, which somebody may have removed since; the first time, whatever an earlier daemon left."""
        if self._table and not self._table.removed:
            return self._table
        if self._table:
            log.warning("legacy table: somebody has removed it; making another")
            self._table.close()
            self._table = None
        table = LegacyTable(self._key, create=True)
        try:
            if self._pool is None:
                self._owners.adopt()
                self._pool = open_pool(self._host, self._key)
        except BaseException:
            table.close()
            raise
        self._owners.unplace()
        self._table = table  # not before all of that is done, or the next look would take it for done
        log.info("legacy table %#x: %d lcores", self._key, table.size)
        return table

    def _settle(self, table: LegacyTable) -> None:
        assert self._pool
        self._asked.clear()
        self._owners.place(table)
        self._wanting = False
        entries = table.entries()
        # Where the table is larger than ours, there is nothing to say about most of it.
        lcores = [n for n, entry in enumerate(entries) if n < self._size or entry is not RESERVATION]
        for lcore in lcores:  # what nothing else protects comes first
            if entries[lcore] is None and not self._lent(self._holder(lcore)):
                table.reserve(lcore)
                entries[lcore] = RESERVATION
        available: set[int] = set()
        given_back: set[int] = set()
        clashes: set[tuple[int, TableOwner, tuple[str, str, int]]] = set()
        present: set[Owner] = set()
        for lcore in lcores:
            entry, holder = entries[lcore], self._holder(lcore)
            if entry and not entry.reserved:
                try:
                    who = self._owners.owner_of(table, entry)
                except LookupError:  # it is in nobody's reach until we know
                    self._asked[lcore] = entry
                    continue
                except OSError as error:  # no record for it, or no descriptor; it is in nobody's reach meanwhile
                    self._suffer(error, f"lcore {lcore}: cannot tell whose it is")
                    continue
                if who:
                    present.add(who)
                    if lcore < self._size and not self._pass_to(who, lcore, entry):
                        clashes.add((lcore, holder, entry.owner))
                    continue
            if not self._lent(holder):
                if entry and not entry.reserved:
                    table.reserve(lcore)
                    entries[lcore] = RESERVATION
            elif entry and entry.reserved:
                self._host.evict(lcore, holder)
            elif entry is None and holder == self._pool.owner:
                available.add(lcore)
            else:
                given_back.add(lcore)
        self._balance(table, entries, available, given_back)
        for lcore in range(table.size, self._size):  # they were lent to a larger one
            if self._lent(holder := self._holder(lcore)):
                self._host.evict(lcore, holder)
        self._report(clashes | {clash for clash in self._clashes if clash[0] in self._asked})
        holders = {self._holder(lcore) for lcore in range(self._size)}
        self._owners.forget_all_but(present, holders, only_dead=bool(self._asked))
        self._owners.forget_answer(all_known=not self._asked)

    def _holder(self, lcore: int) -> TableOwner:
        return self._host.holder(lcore)[0] if lcore < self._size else NOBODY

    def _lent(self, holder: TableOwner) -> bool:
        """Whether the legacy table decides about an lcore of this holder."""
        if self._pool and holder == self._pool.owner:
            return True
        return self._owners.is_here(holder)

    def _pass_to(self, who: Owner, lcore: int, entry: Entry) -> bool:
        """In our table as well; False if it is another's there."""
        kind = entry.type if entry.type in LcoreType.__members__.values() else LcoreType.APP
        holder = self._holder(lcore)
        if holder == who.instance.owner:
            return True
        if self._lent(holder):
            who.instance.take(lcore, holder, kind)
            return True
        try:
            who.instance.claim(lcore, kind)
        except Busy:
            return False
        log.info("%s (pid %d) has lcore %d by the legacy table: taken over", who.name, who.pid, lcore)
        return True

    def _balance(
        self, table: LegacyTable, entries: list[Entry | None], available: set[int], given_back: set[int]
    ) -> None:
        """Keep what was given back or bring it home, and lend what is missing."""
        assert self._pool
        reclaimed = sum(entry.reclaimed for entry in entries if entry and entry is not RESERVATION)

        def wanted(lcore: int) -> bool:
            if isinstance(self._wish, int):
                return len(available) < self._wish - reclaimed
            return lcore in self._wish

        for lcore in self._surplus(available, reclaimed):
            bring_home(self._host, table, lcore, self._pool.owner)
            available.discard(lcore)
        for lcore in sorted(given_back):
            holder = self._holder(lcore)
            if wanted(lcore):
                if holder != self._pool.owner:
                    self._pool.take(lcore, holder)
                table.clear(lcore)
                available.add(lcore)
            else:
                bring_home(self._host, table, lcore, holder)

        room = self._size  # for so many more
        if isinstance(self._wish, int):
            if not wanted(-1):
                return
            # Claims by policy begin at the other end.
            candidates = sorted(self._host.topology().online, reverse=True)
            if self._spare:
                free = sum(lcore < self._size and not self._holder(lcore) for lcore in candidates)
                room = max(0, free - self._spare)
        else:
            candidates = sorted(self._wish)
        for lcore in candidates:
            if lcore >= min(len(entries), self._size) or lcore in available or not wanted(lcore):
                continue
            entry = entries[lcore]
            if entry and entry.reserved and not entry.reclaimed:
                if room > 0 and lend(self._pool, table, lcore):
                    room -= 1
                    available.add(lcore)
                    log.debug("lcore %d lent to legacy processes", lcore)
                else:
                    self._wanting = True
        self._wanting &= not isinstance(self._wish, int) or wanted(-1)

    def _surplus(self, available: set[int], reclaimed: int) -> list[int]:
        """Lcores that an earlier daemon chose to lend and that this one takes back."""
        ours = sorted(lcore for lcore in available if not self._host.holder(lcore)[1] & LENT_BY_HAND)
        if isinstance(self._wish, CpuSet):
            return [lcore for lcore in ours if lcore not in self._wish]
        return ours[: max(0, len(ours) - max(0, self._wish - reclaimed))]

    def _report(self, clashes: set[tuple[int, TableOwner, tuple[str, str, int]]]) -> None:
        for lcore, holder, (hostname, user, pid) in sorted(clashes - self._clashes):
            info = self._host.inspect(holder)
            name = f"{info.label} (pid {info.pid} on {info.hostname})" if info else "somebody"
            log.warning(
                "lcore %d has two owners: %s, and by the legacy table pid %d of %s on %s, which started with no daemon "
                "there; stop one of them",
                *(lcore, name, pid, user, hostname),
            )
        for lcore in {clash[0] for clash in self._clashes} - {clash[0] for clash in clashes}:
            log.info("lcore %d no longer has two owners", lcore)
        self._clashes = clashes
        self._wanting |= bool(clashes)

    # -- who they are

    def _asks(self) -> bool:
        return bool(self._asked) or self._owners.some_unplaced

    async def _ask(self, step: int) -> None:
        """Asks the observer, which reads other processes' memory maps; looks again; then rests twice as long."""
        try:
            await asyncio.sleep(self._ask_not_before - self._loop.time())
            began = self._loop.time()
            try:
                if self._table:
                    await self._owners.ask(self._table, self._asked.values())
            finally:
                self._asking = None
            took = self._loop.time() - began
            self._ask_not_before = began + took + min(2 * took, _LONGEST_REST)
        except OSError as error:
            self._suffer(error, "legacy table: for some entries, cannot tell whose it is")
            self._look_later(min(step, len(_AGAIN) - 1))
        else:
            self._look(step)
