# SPDX-License-Identifier: BSD-3-Clause
"""The reaper frees the lcores of a dead process at once.

Nothing depends on it but speed. Any client that needs an lcore of a dead process takes it without us; we see to it
that nobody has to, and that the table shows who lives. So an event that is missed costs a delay, never a core.

There are two sources of events, and one proof.

  inotify on the segment's file. A newcomer writes one byte with pwrite(): IN_MODIFY. When the mapping that pins a
    life lock goes, the kernel closes the file behind it: IN_CLOSE_WRITE. It covers every end of an instance (death,
    exec, unregister) in every PID namespace, but does not say whose it was, and it may come up to half a millisecond
    before the lock is dropped: __fput() notifies first and unlocks then (Linux 6.18). Hence after it we look again,
    and again 2, 20 and 200 ms later; a look is one C call for all instances.

  A pidfd for each process whose PID we can see. It says who, and it comes after the lock is gone (exit_notify() runs
    after the address space and the files are dropped). It misses an exec, which ends an instance too.

    The selector collects as soon as it comes, and we are told then. It lets what inotify says wait for it, a
    millisecond at most: see cffi_build/selector/selector.c.

  The proof is the life lock, and only that: Host.collect() refuses the living. So it does not matter if a PID was
    that of another process by the time we opened it: the event would be late or for nothing, not wrong. Opened first
    and asked after, the lock also tells that the process had not died before there was anything to report it.

With no event there is no timer: an idle reaper never wakes. Where inotify cannot be used (watch.py) it looks every
second: a death that a pidfd tells of is known at once none the less.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import resource
from collections.abc import Callable
from dataclasses import dataclass

from inotify_simple import flags, parse_events

from mtlshm import Busy, Host, MtlshmError, namespaces
from mtlshm.cpuset import counted
from mtlshm.daemon.bounded_log import SELDOM
from mtlshm.daemon.counts import COUNTS
from mtlshm.daemon.selector import Death, Selector
from mtlshm.daemon.watch import Watch
from mtlshm.errors import reason
from mtlshm.kinds import TableOwner

log = logging.getLogger(__name__)

_LOOKS = (0.002, 0.020, 0.200)  # seconds after a file was closed, each after the one before
_MODIFY, _CLOSE_WRITE = int(flags.MODIFY), int(flags.CLOSE_WRITE)
_EVENTS = _MODIFY | _CLOSE_WRITE | flags.ATTRIB | flags.MOVE_SELF | flags.DELETE_SELF
_WITHOUT_EVENTS = 1.0  # seconds between looks
_SPARE_DESCRIPTORS = 8  # not for pidfds: asking a life lock takes one


@dataclass(slots=True)
class _Watch:
    label: str
    pid: int
    pidfd: int | None  # None: not in our PID namespace, or no descriptor left
    death: Death  # by the pidfd


class Reaper:
    """Watches `host` from start() to close(); both must run in the event loop.

    `spare` is the daemon's own owner, which needs no watching. `lost` is called once if the segment's file is no longer
    the one we have open: then there is nothing left to do here.
    """

    def __init__(self, host: Host, spare: TableOwner, lost: Callable[[MtlshmError], None], selector: Selector) -> None:
        self._host = host
        self._spare = spare
        self._lost = lost
        self._selector = selector
        self._loop = asyncio.get_running_loop()
        self._namespace = _pid_namespace()
        self._watched: dict[TableOwner, _Watch] = {}
        self._unseen: set[TableOwner] = set()  # those of them that have no pidfd
        self._heard: float | None = None  # when the file was closed, by somebody who may have died, until all looks
        self._next_look: asyncio.TimerHandle | None = None
        self._understanding: asyncio.Handle | None = None
        watched = selector.lend_segment
        self._watch_file = Watch(host.path, _EVENTS, self._on_segment, self._look, _WITHOUT_EVENTS, watched)

    def start(self) -> None:
        """Watch, then catch up on what happened before: in this order nothing falls between."""
        self._watch_file.start()
        self._look()

    def close(self) -> None:
        """Stop watching. What is in the table stays."""
        self._watch_file.close()
        for pending in self._next_look, self._understanding:
            if pending:
                pending.cancel()
        for owner in list(self._watched):
            self._forget(owner)

    def __len__(self) -> int:
        return len(self._watched)

    def _on_segment(self, events: bytes) -> None:
        # A pidfd that became readable together with this goes first: it knows whom to collect.
        self._understanding = self._loop.call_soon(self._understand, events)

    def _understand(self, events: bytes) -> None:
        seen = 0
        for event in parse_events(events):
            seen |= event.mask
        if seen & _CLOSE_WRITE:
            self._heard = self._loop.time()
            for owner in list(self._unseen):
                self._collect(owner)
            self._look_later(0)
        if seen & _MODIFY:
            self._meet_newcomers()
        if seen & ~(_CLOSE_WRITE | _MODIFY):  # moved, removed, or events were lost
            self._look()

    def _look_later(self, step: int) -> None:
        if self._next_look:
            self._next_look.cancel()
        self._next_look = self._loop.call_later(_LOOKS[step], self._look, step + 1)

    def _look(self, step: int = len(_LOOKS)) -> None:
        """Collect whoever is dead, whatever we know of it, and bring our list up to date.

        One that is due later stays due, and known to close().
        """
        if step < len(_LOOKS):
            self._look_later(step)
        try:
            collected = self._host.sweep()
        except MtlshmError as error:
            self._report(error)
            return
        if collected:
            if self._heard is not None:  # else it died before we listened, or where we hear of nothing
                for _ in range(collected):
                    COUNTS.freed.add(self._loop.time() - self._heard)
            log.info("collected %d dead instance%s", collected, "s" if collected > 1 else "")
        if step == len(_LOOKS):
            self._heard = None
        self._meet_newcomers()

    def _meet_newcomers(self) -> None:
        try:
            present = set(self._host.owners())
            self._host.alive(self._spare)  # asks the file as well: was it cut short?
        except MtlshmError as error:
            self._report(error)
            return
        present.discard(self._spare)
        for owner in self._watched.keys() - present:
            if self._watched[owner].death.met:  # by C, a moment ago
                self._collect(owner)
            else:
                self._forget(owner)
        for owner in present - self._watched.keys():
            self._watch(owner)

    def _watch(self, owner: TableOwner) -> None:
        try:
            info = self._host.inspect(owner)
            if info is None:
                return
            pidfd = _open_pidfd(info.pid) if info.pid_namespace == self._namespace else None
            death = Death(self._host, owner)
            self._watched[owner] = _Watch(info.label, info.pid, pidfd, death)
            if pidfd is None:
                self._unseen.add(owner)
            alive = self._host.alive(owner)
        except MtlshmError as error:
            self._report(error)
            if owner in self._watched:  # whether it lives will be asked again
                self._forget(owner)
            return
        log.debug("watching %s (pid %d%s)", info.label, info.pid, "" if pidfd is not None else ", by its lock only")
        if not alive:
            self._collect(owner)
        elif pidfd is not None:
            self._loop.add_reader(pidfd, self._collect, owner)
            self._selector.lend_instance(pidfd, death)

    def _collect(self, owner: TableOwner) -> None:
        """Its process may have died: free what it held, if the lock agrees."""
        watch = self._watched[owner]
        heard = self._loop.time() - watch.death.took
        try:
            freed = watch.death.freed() if watch.death.met else self._host.collect(owner)
        except Busy:
            # Lives; or its pidfd says dead but a child made by vfork() still uses the address space. The file's
            # close will tell.
            self._drop_pidfd(owner)
            return
        except MtlshmError as error:
            if error.errno != errno.ESRCH:  # else somebody collected it before us
                self._drop_pidfd(owner)  # it would be readable again at once, and for ever
                self._report(error)
                return
            freed = None
        self._forget(owner)
        if freed is not None:
            COUNTS.freed.add(self._loop.time() - heard)
            log.info("%s (pid %d) died: %s freed", watch.label, watch.pid, counted(freed))

    def _forget(self, owner: TableOwner) -> None:
        self._drop_pidfd(owner)
        self._unseen.discard(owner)
        del self._watched[owner]

    def _drop_pidfd(self, owner: TableOwner) -> None:
        """From now on it is watched by its lock only."""
        watch = self._watched[owner]
        if watch.pidfd is not None:
            self._loop.remove_reader(watch.pidfd)
            os.close(watch.pidfd)
            watch.pidfd = None
            self._unseen.add(owner)

    def _report(self, error: MtlshmError) -> None:
        if error.errno in (errno.ESTALE, errno.EBADMSG):
            self._lost(error)
        else:  # such as no descriptor left: clients collect for themselves, and the next event tries again
            log.error("cannot look after the table: %s", reason(error), extra=SELDOM)


def _open_pidfd(pid: int) -> int | None:
    try:
        pidfd = os.pidfd_open(pid)
        if pidfd < resource.getrlimit(resource.RLIMIT_NOFILE)[0] - _SPARE_DESCRIPTORS:
            return pidfd
        os.close(pidfd)
        return None
    except OSError as error:
        if error.errno != errno.ESRCH:  # dead already: the life lock tells
            why = reason(error)
            log.warning("no pidfd for pid %d, watching it by its lock only: %s", pid, why, extra=SELDOM)
        return None


def _pid_namespace() -> int:
    try:
        return namespaces.own("pid")
    except OSError:  # no /proc: nobody can be proven to be in our namespace
        return -1
