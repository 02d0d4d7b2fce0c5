# SPDX-License-Identifier: BSD-3-Clause
"""The event loop's selector, which does in C what needs no thought; cffi_build/selector/selector.h says how and why.

Otherwise it is the one that asyncio has by itself. What the event loop watches for reading may be lent to it with what
belongs to it, and is taken back as soon as the event loop no longer watches it: a number must not outlive what it stood
for. What is lent is C's only while select() runs.
"""

from __future__ import annotations

import math
import os
import select
import selectors
from typing import TYPE_CHECKING, Any

from mtlshm import Host
from mtlshm._core import ffi, lib
from mtlshm.daemon.grants import Grants
from mtlshm.errors import check
from mtlshm.kinds import TableOwner

if TYPE_CHECKING:
    from _typeshed import FileDescriptorLike

_AT_ONCE = 64  # events; those of descriptors are told in turn
_LONGEST = 24 * 3600.0  # seconds; the event loop asks again

_Ready = list[tuple[selectors.SelectorKey, int]]


class Death:
    """An instance that registered itself, to be collected at its end."""

    def __init__(self, host: Host, owner: TableOwner) -> None:
        self.c = ffi.new("struct death *", {"host": host.handle, "owner": owner})

    @property
    def met(self) -> bool:
        """Whether the C half has seen the death."""
        return bool(self.c.met)

    @property
    def took(self) -> float:
        """How many seconds that took C, if it did it."""
        return float(self.c.took_ns * 1e-9)

    def freed(self) -> int:
        """How many lcores that freed; errors as of Host.collect(). It is told once."""
        self.c.met = 0
        return check(self.c.result, f"owner {self.c.owner:#x}")


class Selector(selectors.EpollSelector):
    """For one event loop, in whose thread all of this is called."""

    def __init__(self) -> None:
        super().__init__()
        self._c = ffi.gc(lib.selector_new(self.fileno()), lib.selector_free)
        if self._c == ffi.NULL:
            raise MemoryError
        self._happened = ffi.new("struct selector_event[]", _AT_ONCE)
        self._lent: dict[int, Any] = {}  # C has their addresses

    def lend(self, fd: int, session: Grants) -> None:
        """Let C answer what it can of what comes in at a socket, until take_back()."""
        self._lend(fd, lib.SELECTOR_SOCKET, session.c)

    def lend_process(self, pidfd: int, session: Grants) -> None:
        """Let C free what the session's instance holds when its client dies."""
        self._lend(pidfd, lib.SELECTOR_PROCESS, session.c)

    def lend_instance(self, pidfd: int, death: Death) -> None:
        """Let C collect an instance when its process dies."""
        self._lend(pidfd, lib.SELECTOR_INSTANCE, death.c)

    def lend_segment(self, inotify: int) -> None:
        """Let deaths that C can see be told before what inotify says of the segment."""
        self._lend(inotify, lib.SELECTOR_SEGMENT, ffi.NULL)

    def lend_door(self, listener: int, door: Any) -> None:
        """Let C let in those who knock there; reception.py has the other side of it."""
        self._lend(listener, lib.SELECTOR_DOOR, door)

    def empty(self, door: Any) -> None:
        """Let go of all that C has let in."""
        lib.door_empty(self._c, door)

    def take_back(self, fd: int) -> None:
        """Tell everything that happens there. Nothing happens if it is not lent."""
        if self._lent.pop(fd, None) is not None:
            lib.selector_lend(self._c, fd, lib.SELECTOR_NOTHING, ffi.NULL)

    def _lend(self, fd: int, kind: int, what: Any) -> None:
        assert fd in self.get_map()
        if code := lib.selector_lend(self._c, fd, kind, what):
            raise OSError(-code, os.strerror(-code))
        self._lent[fd] = what

    def unregister(self, fileobj: FileDescriptorLike) -> selectors.SelectorKey:  # noqa: D102
        key = super().unregister(fileobj)
        self.take_back(key.fd)
        return key

    def select(self, timeout: float | None = None) -> _Ready:  # noqa: D102
        ms = -1 if timeout is None else math.ceil(min(max(timeout, 0), _LONGEST) * 1000)
        count = lib.selector_wait(self._c, ms, self._happened, _AT_ONCE)
        if count < 0:
            raise OSError(-count, os.strerror(-count))
        ready: _Ready = []
        watched = self.get_map()
        for event in self._happened[0:count]:
            # A hang-up or an error is told to whoever is there, as asyncio's own selector does.
            events = selectors.EVENT_WRITE if event.events & ~select.EPOLLIN else 0
            events |= selectors.EVENT_READ if event.events & ~select.EPOLLOUT else 0
            if key := watched.get(event.fd):
                ready.append((key, events & key.events))
        return ready
