# SPDX-License-Identifier: BSD-3-Clause
"""Events on the legacy table's lock file, which every libmtl opens, locks and closes for whatever it does, and on ours.

A segment of ours is closed for writing when an instance ends; that is watched only as long as an lcore is wanted.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from inotify_simple import INotify, flags, parse_events

_CLOSED = flags.CLOSE_WRITE | flags.CLOSE_NOWRITE
_REPLACED = flags.ATTRIB | flags.MOVE_SELF | flags.DELETE_SELF
_DO_NOT_FOLLOW = flags.DONT_FOLLOW  # anyone may put a link there, to a file system that does not answer
_EVENTS_AT_ONCE = 4096  # bytes


class Events:
    """Calls `heard` in the event loop, from hear() to ignore() or close(); with True if all came from the segment."""

    def __init__(self, heard: Callable[[bool], None]) -> None:
        self._heard = heard
        self._loop = asyncio.get_running_loop()
        self._inotify = INotify(nonblocking=True)
        self._lock_watch: int | None = None
        self._segment_watch: int | None = None

    def hear(self) -> None:
        """Call from now on, also for what happened meanwhile."""
        self._loop.add_reader(self._inotify.fileno(), self._read)

    def ignore(self) -> None:
        """Call no more; what happens is kept until hear()."""
        self._loop.remove_reader(self._inotify.fileno())

    def close(self) -> None:
        """Watch nothing any more."""
        self.ignore()
        self._inotify.close()

    def watch_lock(self, path: Path) -> None:
        """Watch the file that is there now, and no other. OSError, above all if none is."""
        mask = _CLOSED | _REPLACED | _DO_NOT_FOLLOW
        watch = self._inotify.add_watch(path, mask)  # the same, if it is the same file
        if self._lock_watch not in (None, watch):
            with suppress(OSError):  # gone by itself, with the file; but who replaced it may have kept that
                self._inotify.rm_watch(self._lock_watch)
        self._lock_watch = watch

    def watch_segment(self, path: str, wanted: bool) -> None:
        """Watch the segment's file, or no longer. OSError if it cannot be watched."""
        if wanted and self._segment_watch is None:
            self._segment_watch = self._inotify.add_watch(path, flags.CLOSE_WRITE)
        elif not wanted and self._segment_watch is not None:
            with suppress(OSError):  # gone by itself, with the file
                self._inotify.rm_watch(self._segment_watch)
            self._segment_watch = None

    def _read(self) -> None:
        events = parse_events(os.read(self._inotify.fileno(), _EVENTS_AT_ONCE))
        self._heard(all(event.wd == self._segment_watch for event in events))
