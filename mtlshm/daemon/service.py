# SPDX-License-Identifier: BSD-3-Clause
"""The service manager, if there is one: sd_notify(3), and its file-descriptor store.

Descriptors in the store outlive us: systemd keeps them while it restarts us, and hands them to the next process
together with their names (sd_listen_fds(3)). Without a service manager all of this does nothing.

By itself systemd drops a connection when the other side has closed it. FDPOLL=0 tells it not to (since version 246):
while none of us runs nobody would see the end, and the next would hold the client for one that has no connection and
owns its lcores until its process dies. So they leave the store only when we say so, or with the service when it is
stopped.

By hand rather than with a package, since those that pass descriptors need libsystemd and its headers to install.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping

log = logging.getLogger(__name__)

_FIRST_DESCRIPTOR = 3  # SD_LISTEN_FDS_START


class Service:
    """What the environment says of the service manager."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._address = environment.get("NOTIFY_SOCKET", "")
        self._heard = True  # said once, until it is heard again
        self.stored: list[tuple[str, int]] = []  # name, descriptor
        if environment.get("LISTEN_PID") == str(os.getpid()):
            names = environment.get("LISTEN_FDNAMES", "").split(":")
            count = int(environment.get("LISTEN_FDS", "0"))
            for name, fd in zip(names, range(_FIRST_DESCRIPTOR, _FIRST_DESCRIPTOR + count), strict=False):
                os.set_inheritable(fd, False)
                self.stored.append((name, fd))

    @property
    def active(self) -> bool:
        """Is there one? Whether it stores anything cannot be known."""
        return bool(self._address)

    def notify(self, state: str) -> None:
        """Tell it something, such as READY=1."""
        self._send(state)

    def keep(self, name: str, fd: int) -> None:
        """Store a descriptor under a name of [A-Za-z0-9-]."""
        self._send(f"FDSTORE=1\nFDPOLL=0\nFDNAME={name}", fd)

    def forget(self, name: str) -> None:
        """Drop it from the store."""
        self._send(f"FDSTOREREMOVE=1\nFDNAME={name}")

    def forget_all(self) -> None:
        """Drop and close what was stored, as nobody serves it any more."""
        for name, fd in self.stored:
            self.forget(name)
            os.close(fd)
        self.stored.clear()

    def _send(self, state: str, *descriptors: int) -> None:
        if not self._address:
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notifier:
                notifier.connect(address)
                socket.send_fds(notifier, [state.encode()], list(descriptors))
            self._heard = True
        except OSError as error:  # our clients shall not suffer from that
            if self._heard:
                log.error("the service manager at %s does not listen: %s", self._address, error.strerror or error)
            self._heard = False
