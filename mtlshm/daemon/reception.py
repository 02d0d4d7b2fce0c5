# SPDX-License-Identifier: BSD-3-Clause
"""Clients that C lets in, until they are Python's; cffi_build/selector/newcomer.c says which, and why.

Most that come in and go again without an lcore are never Python's.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from typing import NamedTuple

from mtlshm import Host, Instance, namespaces, pidfds
from mtlshm._core import ffi, lib
from mtlshm.daemon.grants import Grants
from mtlshm.daemon.peer import Peer
from mtlshm.daemon.selector import Selector
from mtlshm.wire import Dialect


class Newcomer(NamedTuple):
    """A client that C has let in, and of which it knows nothing any more."""

    socket: socket.socket
    peer: Peer | None  # None: C could not tell who that is, and has read nothing
    grants: Grants
    instance: Instance | None  # if it is registered, without a lease
    dialect: Dialect | None


class Reception:
    """Lets C let in members of the group `gid` from start() to close(), both in the event loop. It registers them if it
    `may`. `met` gets those who need Python."""

    def __init__(self, host: Host, gid: int, may: bool, selector: Selector, met: Callable[[Newcomer], None]) -> None:
        self._host, self._selector, self._met = host, selector, met
        self._loop = asyncio.get_running_loop()
        self._bell = os.eventfd(0, os.EFD_CLOEXEC)  # at which nothing happens
        try:
            namespace = namespaces.own("pid")
        except OSError:  # no /proc
            may, namespace = False, 0
        self.c = ffi.new(
            "struct door *",
            {
                "host": host.handle,
                "bell": self._bell,
                "gid": gid,
                "may_register": may,
                "pid_namespace": namespace,
                "no_pidfs": pidfds.SHARED_INODE,
            },
        )
        self._loop.add_reader(self._bell, self._meet)

    def lend(self, listener: int) -> None:
        """Whoever knocks there, C lets in, as long as the event loop watches it."""
        self._selector.lend_door(listener, self.c)

    def empty(self) -> None:
        """All that C has let in so far are Python's."""
        self._selector.empty(self.c)
        self._meet()

    def close(self) -> None:
        """No listener may be lent any more."""
        self.empty()
        self._loop.remove_reader(self._bell)
        os.close(self._bell)

    def _meet(self) -> None:
        while (c := lib.door_next(self.c)) != ffi.NULL:
            try:
                newcomer = self._newcomer(c)
            finally:
                lib.newcomer_free(c)
            self._met(newcomer)

    def _newcomer(self, c: ffi.CData) -> Newcomer:
        peer = Peer(c.pid, c.uid, c.pidfd, admitted=True) if c.pidfd >= 0 else None
        instance = None if c.session.instance == ffi.NULL else self._host.proxied(c.session.instance)
        dialect = (Dialect.B if c.dialect_b else Dialect.A) if instance else None
        return Newcomer(socket.socket(fileno=c.socket), peer, Grants(self._host, c.session), instance, dialect)
