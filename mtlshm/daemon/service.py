# SPDX-License-Identifier: BSD-3-Clause
"""The service manager, if there is one: sd_notify(3), and its file-descriptor store.

Descriptors in the store outlive us: systemd keeps them while it restarts us, and hands them to the next process
together with their names (sd_listen_fds(3)). Without a service manager all of this does nothing.

By itself systemd drops a connection when the other side has closed it. FDPOLL=0 tells it not to (since version 246):
while none of us runs nobody would see the end, and the next would hold the client for one that has no connection and
owns its lcores until its process dies. So they leave the store only when we say so, or with the service when it is
stopped.

NOBODY WAITS FOR IT. A service manager that is stopped or busy does not read, and the queue of its socket is short. What
it cannot be told now waits until there is room, in order, with descriptors of its own. That is never much: it is not
told at all of what is to be forgotten before it was told to keep it.

By hand rather than with a package, since those that pass descriptors need libsystemd and its headers to install.
"""

from __future__ import annotations

import asyncio
import logging
import os
import select
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import NamedTuple

from mtlshm.errors import reason

log = logging.getLogger(__name__)

_FIRST_DESCRIPTOR = 3  # SD_LISTEN_FDS_START
_LAST_WORDS = 1.0  # seconds in which it can read what waits when we end


class _Message(NamedTuple):
    state: str
    descriptor: int | None = None  # ours
    keeps: str = ""  # under this name


class Service:
    """The service manager, as the environment describes it."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._address = environment.get("NOTIFY_SOCKET", "")
        self._heard = True  # said once, until it is heard again
        self._waiting: list[_Message] = []
        self._notifier: socket.socket | None = None  # which tells us when there is room
        self.stored: list[tuple[str, int]] = []  # name, descriptor
        if environment.get("LISTEN_PID") == str(os.getpid()):
            names = environment.get("LISTEN_FDNAMES", "").split(":")
            count = int(environment.get("LISTEN_FDS", "0"))
            for name, fd in zip(names, range(_FIRST_DESCRIPTOR, _FIRST_DESCRIPTOR + count), strict=False):
                os.set_inheritable(fd, False)
                self.stored.append((name, fd))

    @property
    def active(self) -> bool:
        """Whether there is a service manager. It never tells whether it stores descriptors."""
        return bool(self._address)

    def notify(self, state: str) -> None:
        """Tell it something, such as READY=1."""
        self._send(state)

    def beat(self, state: str) -> None:
        """Tell it what is stale a moment later. Left out while it does not read."""
        if self._address and not self._waiting:
            self._told(state)

    def keep(self, name: str, fd: int) -> None:
        """Store a descriptor under a name of [A-Za-z0-9-]."""
        self._send(f"FDSTORE=1\nFDPOLL=0\nFDNAME={name}", fd, name)

    def forget(self, name: str) -> None:
        """Drop it from the store."""
        if untold := next((message for message in self._waiting if message.keeps == name), None):
            self._waiting.remove(untold)
            _close(untold)
        else:
            self._send(f"FDSTOREREMOVE=1\nFDNAME={name}")

    def forget_all(self) -> None:
        """Drop and close what was stored, as nobody serves it any more."""
        for name, fd in self.stored:
            self.forget(name)
            os.close(fd)
        self.stored.clear()

    def close(self) -> None:
        """Tell it what waits, if it is only slow."""
        end = time.monotonic() + _LAST_WORDS
        while self._notifier and (left := end - time.monotonic()) > 0:
            poll = select.poll()
            poll.register(self._notifier, select.POLLOUT)
            if poll.poll(left * 1000):
                self._go_on()
        self._unwatch()
        for message in self._waiting:
            _close(message)
        self._waiting.clear()

    def _send(self, state: str, descriptor: int | None = None, keeps: str = "") -> None:
        if not self._address:
            return
        if not self._waiting and self._told(state, descriptor):
            return
        try:
            own = None if descriptor is None else os.dup(descriptor)
        except OSError as error:
            log.error("the service manager cannot be told to keep a connection: %s", reason(error))
            return
        self._waiting.append(_Message(state, own, keeps))

    def _go_on(self) -> None:
        """There is room."""
        while self._waiting:
            if not self._told(self._waiting[0].state, self._waiting[0].descriptor):
                return
            _close(self._waiting.pop(0))
        self._unwatch()

    def _told(self, state: str, descriptor: int | None = None) -> bool:
        """True also if it cannot be told at all; False if it does not read, and we wait for that."""
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        notifier = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            notifier.setblocking(False)  # send_fds() of Python 3.11 does not pass flags on
            notifier.connect(address)
            socket.send_fds(notifier, [state.encode()], [] if descriptor is None else [descriptor])
            self._heard = True
        except BlockingIOError:
            self._complain("does not read")
            self._watch(notifier)
            return False
        except OSError as error:  # our clients shall not suffer from that
            self._complain(f"does not listen: {reason(error)}")
        notifier.close()
        return True

    def _complain(self, what: str) -> None:
        if self._heard:
            log.error("the service manager at %s %s", self._address, what)
        self._heard = False

    def _watch(self, notifier: socket.socket) -> None:
        """A new one each time, as the service manager may have made its own anew."""
        self._unwatch()
        self._notifier = notifier
        with suppress(RuntimeError):  # not in the event loop
            asyncio.get_running_loop().add_writer(notifier, self._go_on)

    def _unwatch(self) -> None:
        if self._notifier:
            with suppress(RuntimeError):
                asyncio.get_running_loop().remove_writer(self._notifier)
            self._notifier.close()
            self._notifier = None


def _close(message: _Message) -> None:
    if message.descriptor is not None:
        os.close(message.descriptor)
