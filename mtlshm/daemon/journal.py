# SPDX-License-Identifier: BSD-3-Clause
"""The log, which nobody fills.

Whoever may speak to us, or write the segment or libmtl's table, can cause lines, and make each another. To see to it at
each place that logs is too much to ask; so of each place only so many lines are written a minute. Nothing else that is
said is lost in them, and how many were left out is said with the next.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from dataclasses import dataclass

_MOST = 300  # lines; all instances may die at once
_WITHIN = 60.0  # seconds


@dataclass(slots=True)
class _Place:
    since: float = 0.0  # time.monotonic()
    lines: int = 0


class Sparing(logging.Filter):
    """For a handler. Lines below INFO are asked for, and all written."""

    def __init__(self) -> None:
        super().__init__()
        self._places: defaultdict[tuple[str, int], _Place] = defaultdict(_Place)

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.INFO:
            return True
        place = self._places[record.pathname, record.lineno]
        now = time.monotonic()
        if now - place.since >= _WITHIN:
            if place.lines > _MOST:
                self._add(record, f"and {place.lines - _MOST} more before, left out")
            place.since, place.lines = now, 0
        place.lines += 1
        if place.lines == _MOST:
            self._add(record, f"more are left out for up to {_WITHIN:g} s")
        return place.lines <= _MOST

    def _add(self, record: logging.LogRecord, remark: str) -> None:
        record.msg, record.args = "%s (%s)", (record.getMessage(), remark)
