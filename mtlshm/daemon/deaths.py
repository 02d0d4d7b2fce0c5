# SPDX-License-Identifier: BSD-3-Clause
"""Deaths: of processes that do not map the table, above all of those that an earlier daemon met.

A pidfd tells of a death. For each process one is open here, and its end is told once.

ADOPTION is the same for all that an earlier daemon left, be it in the table or in the ledger. Who is dead already is
told of at once. If it cannot be told now, mostly as too few descriptors are left, we ask again until it can: nothing
else would. If it can never be told from here, since an earlier daemon saw the process in another PID namespace, that is
said, and what the process has stays its own.

If there are too few descriptors for ever, this is slower, but works: who is asked for once a second is found dead, too.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from functools import partial

from mtlshm import InstanceInfo, Process
from mtlshm.daemon import process

log = logging.getLogger(__name__)

_AGAIN = 1.0  # seconds

Who = Callable[[], "InstanceInfo | Process | None"]


class Deaths:
    """Watches processes in the event loop, each under a key of its owner's, until it is dead, forget() or close()."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._pidfds: dict[int, int] = {}
        self._unsettled: dict[int, Callable[[], None]] = {}
        self._again: asyncio.TimerHandle | None = None
        self._said = False  # that there are some

    def adopt(self, key: int, who: Who, died: Callable[[], None]) -> None:
        """Call died() once the process is dead, which may be before we return. `who` looks up what an earlier daemon
        knew of it: None if that is nobody any more; or OSError, and it is asked again."""
        self._unsettled[key] = partial(self._settle, key, who, died)
        self._try(key)

    def watch(self, key: int, who: InstanceInfo | Process, pidfd: int, died: Callable[[], None]) -> None:
        """Call died() once that process is dead. The pidfd is ours from now on."""
        self._pidfds[key] = pidfd
        self._loop.add_reader(pidfd, self._died, key, who, died)

    def __contains__(self, key: int) -> bool:
        """Whether the death of this key is watched by a pidfd."""
        return key in self._pidfds

    def concern(self, key: int) -> bool:
        """Do we watch it, or will we once that can be done?"""
        return key in self._pidfds or key in self._unsettled

    def forget(self, key: int) -> None:
        """Nobody asks any more."""
        self._unsettled.pop(key, None)
        if (pidfd := self._pidfds.pop(key, None)) is not None:
            self._loop.remove_reader(pidfd)
            os.close(pidfd)

    def close(self) -> None:
        """Stop watching all of them. Nothing is told any more."""
        for key in [*self._pidfds, *self._unsettled]:
            self.forget(key)
        if self._again:
            self._again.cancel()

    def _died(self, key: int, who: InstanceInfo | Process, died: Callable[[], None]) -> None:
        self.forget(key)
        log.info("%s (pid %d) died", who.label, who.pid)
        died()

    def _try(self, key: int) -> None:
        try:
            self._unsettled[key]()
        except OSError as error:
            if not self._said:
                log.error("cannot tell yet whether all that an earlier daemon met live: %s", error.strerror or error)
            self._said = True
            self._again = self._again or self._loop.call_later(_AGAIN, self._try_all)

    def _try_all(self) -> None:
        self._again = None
        for key in list(self._unsettled):
            if key in self._unsettled:  # one death may be the end of others
                self._try(key)
        if not self._unsettled:
            self._said = False

    def _settle(self, key: int, who: Who, died: Callable[[], None]) -> None:
        """OSError if it has to be asked again."""
        pidfd = None
        if known := who():
            try:
                pidfd = process.find(known)
            except LookupError as error:
                log.warning("cannot tell whether %s lives; what it has stays its own", error)
                known = None
        self._unsettled.pop(key, None)
        if known and pidfd is not None:
            self.watch(key, known, pidfd, died)
        elif known:
            self._died(key, known, died)
