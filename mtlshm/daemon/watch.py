# SPDX-License-Identifier: BSD-3-Clause
"""A file or directory that is watched: by inotify, or else by looking every now and then.

inotify instances are few: 128 for each user by default, which all containers on a host may share; and others can use
them all up. Then we look again and again, which is what wakes us for nothing, and try each time to do without.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections.abc import Callable

from inotify_simple import INotify

log = logging.getLogger(__name__)

_NONE_LEFT = (errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.ENOMEM)
_EVENTS_AT_ONCE = 65536  # bytes


class Watch:
    """Watches `path` from start() to close(), in the event loop.

    `on_events` gets what inotify says. Where there is no inotify, `on_time` is called every `seconds` instead, and once
    more when there is again: nothing falls between. `watched` is told the descriptor that the event loop watches.
    """

    _missing = False  # said once for all of them

    def __init__(
        self,
        path: str,
        mask: int,
        on_events: Callable[[bytes], None],
        on_time: Callable[[], None],
        seconds: float,
        watched: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._path, self._mask = path, mask
        self._on_events, self._on_time = on_events, on_time
        self._seconds = seconds
        self._watched = watched
        self._loop = asyncio.get_running_loop()
        self._inotify: INotify | None = None
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """From now on. OSError if there is no such file."""
        try:
            self._begin()
        except OSError as error:
            if error.errno not in _NONE_LEFT:
                raise
            if not Watch._missing:
                Watch._missing = True
                log.warning(
                    "inotify cannot be used (%s); looking every %g s instead. To mend that, raise "
                    "fs.inotify.max_user_instances, or max_user_watches",
                    os.strerror(error.errno),
                    self._seconds,
                )
            self._timer = self._loop.call_later(self._seconds, self._tick)

    def close(self) -> None:
        """Watch no longer. Idempotent."""
        if self._timer:
            self._timer.cancel()
            self._timer = None
        if self._inotify:
            self._loop.remove_reader(self._inotify.fileno())
            self._inotify.close()
            self._inotify = None

    def _begin(self) -> None:
        inotify = INotify(nonblocking=True)
        try:
            inotify.add_watch(self._path, self._mask)
        except OSError:
            inotify.close()
            raise
        self._inotify = inotify
        self._loop.add_reader(inotify.fileno(), self._read)
        self._watched(inotify.fileno())

    def _read(self) -> None:
        assert self._inotify
        self._on_events(os.read(self._inotify.fileno(), _EVENTS_AT_ONCE))

    def _tick(self) -> None:
        self._timer = None
        try:
            self._begin()
        except OSError:  # none is left still; or the file is gone, which `on_time` finds out
            self._timer = self._loop.call_later(self._seconds, self._tick)
        else:
            if Watch._missing:
                Watch._missing = False
                log.info("inotify can be used again")
        self._on_time()
