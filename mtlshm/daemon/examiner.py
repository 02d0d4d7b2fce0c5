# SPDX-License-Identifier: BSD-3-Clause
"""The examiner: logs that the segment is damaged.

A process that may write the segment may go wrong. Nothing that it writes makes us fall, but an operator should know. A
write(2) to the file is an event. A write through a mapping is none, but each newcomer rings the doorbell, and then the
examiner looks. It looks a while after the event, at most twice a second. It looks twice before it logs anything: a
transient state is no damage.

It repairs nothing except what the reaper repairs anyway. For the rest there is `mtlshm-ctl doctor`.
"""

from __future__ import annotations

import asyncio
import logging

from inotify_simple import flags

from mtlshm import Host
from mtlshm.daemon.watch import Watch
from mtlshm.damage import Damage, What, glance

log = logging.getLogger(__name__)

_AFTER = 0.5  # seconds after an event; and how long damage has to last to be believed
_SAID_AT_ONCE = 5
_WITHOUT_EVENTS = 10.0  # seconds between looks


class Examiner:
    """Watches the segment of `host` from start() to close(), both in the event loop."""

    def __init__(self, host: Host) -> None:
        self._path = host.path
        self._loop = asyncio.get_running_loop()
        self._watch = Watch(host.path, flags.MODIFY, self._on_event, self._on_event, _WITHOUT_EVENTS)
        self._next: asyncio.TimerHandle | None = None
        self._seen: set[Damage] = set()  # at the last look
        self._said: set[Damage] = set()

    def start(self) -> None:
        """Look now, and after each change from now on. OSError if there is no such file."""
        self._watch.start()
        self._look()

    def close(self) -> None:
        """Stop watching."""
        self._watch.close()
        if self._next:
            self._next.cancel()

    def _on_event(self, _: bytes = b"") -> None:
        if self._next is None:
            self._next = self._loop.call_later(_AFTER, self._look)

    def _look(self) -> None:
        self._next = None
        try:
            # That it is too short says the reaper.
            now = {damage for damage in glance(self._path) if not damage.passing and damage.what != What.SHORT}
        except OSError:  # gone: the reaper says so
            return
        lasting = now & self._seen
        self._say(sorted(lasting - self._said, key=lambda damage: (damage.what, damage.index)))
        self._said = lasting
        fresh = now - self._seen
        self._seen = now
        if fresh:
            self._next = self._loop.call_later(_AFTER, self._look)

    def _say(self, damages: list[Damage]) -> None:
        for damage in damages[:_SAID_AT_ONCE]:
            log.error("the segment is damaged: %s; see mtlshm-ctl doctor", damage)
        if (more := len(damages) - _SAID_AT_ONCE) > 0:
            log.error("the segment is damaged in %d more places; see mtlshm-ctl doctor", more)
