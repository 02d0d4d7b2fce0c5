# SPDX-License-Identifier: BSD-3-Clause
"""The service manager's watchdog, sd_watchdog_enabled(3): told by a timer of the event loop that the loop goes round.

If something in it hangs, nothing is told, and the service manager starts the next daemon, which finds all that this one
served. The timer also tells in words what is served, so that `systemctl status` shows it. It wakes nobody else; without
a watchdog there is no timer.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping

from mtlshm import Host, Kind, MtlshmError
from mtlshm.daemon.service import Service

_NO_CLIENTS = {Kind.DAEMON, Kind.POOL, Kind.RESERVATION}


class Watchdog:
    """Nothing, if no service manager asks for it."""

    def __init__(self, host: Host, service: Service, environment: Mapping[str, str] = os.environ) -> None:
        self._host = host
        self._service = service
        self._timer: asyncio.TimerHandle | None = None
        asked = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        microseconds = environment.get("WATCHDOG_USEC", "") if asked else ""
        # Half of what it waits for, as the manual says.
        self._interval = int(microseconds) / 2e6 if microseconds.isdecimal() else 0.0

    def start(self) -> None:
        """From now on."""
        if self._interval:
            self._tell()

    def close(self) -> None:
        """Be silent."""
        if self._timer:
            self._timer.cancel()

    def status(self) -> str:
        """The STATUS= text: what is served."""
        try:
            snapshot = self._host.snapshot()
        except MtlshmError:
            return "the segment cannot be read: mtlshm-ctl doctor says why"
        clients = sum(info.alive is not False and info.kind not in _NO_CLIENTS for info in snapshot.instances)
        held = sum(lcore.owner.kind != Kind.POOL for lcore in snapshot.lcores)
        return f"{clients} client{'s' * (clients != 1)}, {held} lcore{'s' * (held != 1)} held"

    def _tell(self) -> None:
        self._service.beat(f"WATCHDOG=1\nSTATUS={self.status()}")
        self._timer = asyncio.get_running_loop().call_later(self._interval, self._tell)
