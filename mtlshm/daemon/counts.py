# SPDX-License-Identifier: BSD-3-Clause
"""What the daemon counts of what it did since it started: the only place for that. metrics.py gives names to it.

To count costs an addition whether anybody asks or not, and what clients choose adds no entry beyond a fixed number.
"""

from __future__ import annotations

import errno
from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field

from mtlshm._core import lib
from mtlshm.wire import Type

UNKNOWN = 0  # a type of request that there is not
BOUNDS = (0.0001, 0.001, 0.01, 0.1, 1.0, 10.0)  # seconds


@dataclass(slots=True)
class Durations:
    """How many were no longer than each of BOUNDS, and longer than the one before."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))
    total: float = 0.0

    def add(self, seconds: float) -> None:
        """One more."""
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.total += seconds


@dataclass(slots=True)
class Counts:
    """The counters of one daemon."""

    requests: Counter[tuple[int, int]] = field(default_factory=Counter)  # by type, and 0 or a negative errno
    freed: Durations = field(default_factory=Durations)  # from when we heard of a death until what it held was free

    def request(self, kind: int, answer: int) -> None:
        """One was answered."""
        self.requests[kind, min(answer, 0)] += 1

    def answered(self) -> Counter[tuple[int, int]]:
        """Requests, and those that C has answered."""
        c, get, put = lib.session_counts, int(Type.GET_LCORE), int(Type.PUT_LCORE)
        by_c = {
            (int(Type.REGISTER), 0): c.registered,
            (int(Type.HEARTBEAT), 0): c.heartbeats,
            (get, 0): c.granted,
            (get, -errno.EBUSY): c.busy,
            (put, 0): c.given_back,
            (put, -errno.EINVAL): c.invalid,
        }
        return self.requests + Counter(by_c)


COUNTS = Counts()  # a process is one daemon
