# SPDX-License-Identifier: BSD-3-Clause
"""A log that nobody can fill: of lines from one place in the sources only so many come out in a minute.

Clients decide how often much of what is logged happens: that they come, are refused and die. If more came than may come
out, then for as long as it goes on like this one line a minute comes out, with the number of those left out.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

_MOST = 300  # lines from one place: all instances may die at once
_MOST_TROUBLES = 30  # warnings and errors
_WHILE = 60.0  # seconds

SELDOM = {"most": 1}  # `extra` of a line that says the same each time


@dataclass(slots=True)
class _Place:
    since: float
    most: int  # in this while
    lines: int = 0


class Bounded(logging.Filter):
    """For a handler. Leaves out what is too much, and says so. What is for debugging comes out whole."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._places: dict[tuple[str, int], _Place] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to log the record, to which a note is added if others like it are left out."""
        if record.levelno < logging.INFO:
            return True
        now = self._clock()
        most = getattr(record, "most", _MOST if record.levelno < logging.WARNING else _MOST_TROUBLES)
        place = self._places.setdefault((record.pathname, record.lineno), _Place(now, most))
        if now - place.since > _WHILE:
            if (left_out := place.lines - place.most) > 0:
                _add(record, f"({left_out} like this one were left out)")
            place.since, place.most, place.lines = now, 1 if place.lines > most else most, 0
        place.lines += 1
        if place.lines == place.most > 1:
            _add(record, f"(more like this one are left out for {_WHILE:g} s)")
        return place.lines <= place.most


def _add(record: logging.LogRecord, remark: str) -> None:
    record.msg, record.args = f"{record.getMessage()} {remark}", None
