# SPDX-License-Identifier: BSD-3-Clause
"""What a check found: a state, the fact, and the command that mends it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any


class State(StrEnum):
    """Only a failure makes an exit status 1."""

    OK = "ok"
    WARNING = "warning"
    FAILURE = "failure"
    UNKNOWN = "not known"


@dataclass(frozen=True, slots=True)
class Verdict:
    """The verdict of one check."""

    check: str
    state: State
    text: str
    advice: str | None = None  # harms nobody, whoever follows it

    def as_json(self) -> dict[str, Any]:
        """A plain object."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.text}; {self.advice}" if self.advice else self.text
