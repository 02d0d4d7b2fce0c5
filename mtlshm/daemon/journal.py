# SPDX-License-Identifier: BSD-3-Clause
"""Log lines as the journal wants them: with a priority in front, sd-daemon(3), and no time, which it has itself."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping

_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}


def goes_to_journal(fd: int, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether systemd connected the descriptor to the journal. The variable alone is no proof: children inherit it."""
    status = os.fstat(fd)
    return environment.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


class JournalFormatter(logging.Formatter):
    """A priority for each line, as to the journal each is a message."""

    def format(self, record: logging.LogRecord) -> str:
        """The record without time and level."""
        priority = _PRIORITIES.get(record.levelno, 6)
        return "\n".join(f"<{priority}>{line}" for line in super().format(record).splitlines())
