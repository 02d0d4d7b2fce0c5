# SPDX-License-Identifier: BSD-3-Clause
"""A duty that starts when it is first needed.

The interfaces are one: they take half as much memory as all the rest of the daemon and double its start, and on many
hosts no client ever names one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, Protocol, TypeVar


class Duty(Protocol):
    """A duty of the daemon, which can be closed."""

    def close(self) -> None:
        """Stop."""


T = TypeVar("T", bound=Duty)


class Lazy(Generic[T]):
    """Makes one duty with `make`, which raises OSError if that cannot be done."""

    def __init__(self, make: Callable[[], Awaitable[T]]) -> None:
        self._make = make
        self._made: T | None = None
        self._making = asyncio.Lock()
        self._untold: list[Callable[[T], None]] = []

    async def get(self) -> T:
        """The duty, from now on. OSError if it cannot be made; the next get() tries again."""
        async with self._making:
            if self._made is None:
                self._made = await self._make()
                for tell in self._untold:
                    tell(self._made)
                self._untold.clear()
        return self._made

    async def now(self) -> T | None:
        """The duty if anybody has needed it: at a start, a client may have needed that of an earlier daemon."""
        async with self._making:
            return self._made

    def tell(self, what: Callable[[T], None]) -> None:
        """Call what() with the duty: now, or once it is made. It is never called if nobody needs the duty."""
        if self._made is not None:
            what(self._made)
        elif self._making.locked():
            self._untold.append(what)

    def peek(self, what: Callable[[T], object]) -> None:
        """Call what() with the duty, if there is one now."""
        if self._made is not None:
            what(self._made)

    def close(self) -> None:
        """Close the duty. Nothing is told any more."""
        made, self._made = self._made, None
        if made is not None:
            made.close()
