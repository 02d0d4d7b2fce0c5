# SPDX-License-Identifier: BSD-3-Clause
"""Whether the node can prepare claims at all, as the last call showed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator


class Condition:
    """Good until something goes wrong that is no fault of a claim, and again once a claim goes well."""

    def __init__(self) -> None:
        self._trouble = ""
        self._changed = asyncio.Event()

    def good(self) -> None:
        """A claim went well."""
        self._set("")

    def bad(self, why: str) -> None:
        """A claim failed, as any other would now."""
        self._set(why)

    async def changes(self) -> AsyncIterator[str]:
        """What is wrong now, empty if nothing is; and again each time that changes."""
        while True:
            said, changed = self._trouble, self._changed
            yield said
            if said == self._trouble:
                await changed.wait()

    def _set(self, trouble: str) -> None:
        if trouble != self._trouble:
            self._trouble = trouble
            self._changed.set()
            self._changed = asyncio.Event()
