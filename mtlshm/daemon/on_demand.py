# SPDX-License-Identifier: BSD-3-Clause
"""Interfaces, served from when a client first names one.

What it takes to serve them is half as much memory as all the rest of the daemon, and doubles its start; and on many
hosts no client ever names one.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from mtlshm import wire
from mtlshm.daemon.process import Client
from mtlshm.wire import Type

if TYPE_CHECKING:
    from mtlshm.daemon.interfaces import Interfaces
    from mtlshm.net.xsk import XskSocket

log = logging.getLogger(__name__)


class OnDemand:
    """What `make` makes, once it is needed; with no `make`, no interface is known. For the rest see interfaces.py."""

    def __init__(self, make: Callable[[], Awaitable[Interfaces]] | None) -> None:
        self._make = make
        self._served: Interfaces | None = None
        self._making = asyncio.Lock()
        self._gone: list[Client] = []  # while it is being made

    async def start(self) -> Interfaces:
        """From now on. OSError if they cannot be served; the next who needs them tries again."""
        if self._make is None:
            raise OSError(errno.ENODEV, "interfaces are not served")
        async with self._making:
            if self._served is None:
                self._served = await self._make()
                for client in self._gone:
                    self._served.gone(client)
                self._gone.clear()
        return self._served

    async def _once_made(self) -> Interfaces | None:
        """If it is being made: at a start, a client may have named its interface to an earlier daemon."""
        async with self._making:
            return self._served

    def close(self) -> None:
        """Stop. Everything stays in place for our successor."""
        served, self._served = self._served, None  # who ends from now on is for our successor
        if served:
            served.close()

    async def register(self, client: Client, interfaces: tuple[int, ...]) -> bool:
        """Serve these to a client. False if not all can be served, which is logged."""
        try:
            served = await self.start()
        except OSError as error:
            log.error("interfaces %s: %s", ", ".join(map(str, interfaces)), error.strerror or error)
            return False
        return await served.register(client, interfaces)

    async def request(self, client: Client, kind: int, body: wire.Filter | wire.Interface) -> int:
        """Its answer: 0, an id, or OSError; ENODEV (EINVAL of a flow to delete) if no interface is served."""
        served = await self._once_made()
        if served is None:
            number = errno.EINVAL if kind == Type.IF_DEL_FLOW else errno.ENODEV
            raise OSError(number, "no client has named an interface that is served")
        return await served.request(client, kind, body)

    async def open_xsk(self, client: Client, body: wire.OpenXsk) -> tuple[wire.Xsk, XskSocket]:
        """A queue, which becomes the client's, and a socket bound to it; or OSError."""
        return await (await self.start()).open_xsk(client, body)

    async def map_of(self, ifindex: int) -> int | None:
        """The descriptor of the interface's xsks_map, which stays ours; None if it is not served."""
        served = await self._once_made()
        return served.map_of(ifindex) if served else None

    def gone(self, client: Client) -> None:
        """The client has ended; what it had is free."""
        if self._served:
            self._served.gone(client)
        elif self._making.locked():
            self._gone.append(client)
