# SPDX-License-Identifier: BSD-3-Clause
"""What the daemon does to interfaces, put into the segment's events for people: see mtlshm/events.py."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import suppress

from mtlshm import EventKind, Process

Tell = Callable[[EventKind, str, str], None]
"""Host.tell()."""


class InterfaceEvents:
    """Writes events by ifindex. A segment that cannot be written stops no interface: the reaper reports it."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._names: dict[int, str] = {}  # of interfaces told of: one that is gone has its last name

    def xdp(self, ifindex: int, text: str) -> None:
        """Write what became of its XDP programs."""
        self._write(EventKind.XDP, ifindex, text)

    def nic(self, ifindex: int, text: str, client: Process) -> None:
        """Write what became of its queues or flow rules, and for which client."""
        self._write(EventKind.NIC, ifindex, f"{text}: {client.label} (pid {client.pid})")

    def _write(self, kind: EventKind, ifindex: int, text: str) -> None:
        with suppress(OSError):
            self._names[ifindex] = socket.if_indextoname(ifindex)
        with suppress(OSError):
            self._tell(kind, self._names.get(ifindex, str(ifindex)), text)

    def gone(self, ifindex: int) -> None:
        """Write that an interface has gone, and forget its name."""
        self.xdp(ifindex, "gone, with all that clients had of it")
        self._names.pop(ifindex, None)
