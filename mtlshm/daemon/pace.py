# SPDX-License-Identifier: BSD-3-Clause
"""A limit for repeating what another program may undo again and again."""

from __future__ import annotations

from collections import deque


class Pace:
    """So many times at once, and no more than that within so many seconds."""

    def __init__(self, times: int, seconds: float) -> None:
        self._seconds = seconds
        self._done: deque[float] = deque(maxlen=times)

    def wait(self, now: float) -> float:
        """0: do it now, and it is counted. Else ask again after so many seconds."""
        if len(self._done) == self._done.maxlen and (left := self._done[0] + self._seconds - now) > 0:
            return left
        self._done.append(now)
        return 0.0
