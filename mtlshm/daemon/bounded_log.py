# SPDX-License-Identifier: BSD-3-Clause
"""A log that nobody can fill: of lines from one place in the sources only so many come out in a while.

Clients decide how often much of what is logged happens: that they come, are refused and die.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

_MOST = 300  # lines from one place: all instances may die at once
_WHILE = 60.0  # seconds


@dataclass(slots=True)
class _Place:
    since: float
    lines: int = 0


class Bounded(logging.Filter):
    """For a handler. Leaves out what is too much, and says so. What is for debugging comes out whole."""

    def __init__(self) -> None:
        super().__init__()
        self._places: dict[tuple[str, int], _Place] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.INFO:
            return True
        now = time.monotonic()
        place = self._places.setdefault((record.pathname, record.lineno), _Place(now))
        if now - place.since > _WHILE:
            if (left_out := place.lines - _MOST) > 0:
                _add(record, f"({left_out} like this one were left out)")
            place.since, place.lines = now, 0
        place.lines += 1
        if place.lines == _MOST:
            _add(record, f"(more like this one are left out for {_WHILE:g} s)")
        return place.lines <= _MOST


def _add(record: logging.LogRecord, remark: str) -> None:
    record.msg, record.args = f"{record.getMessage()} {remark}", None
