# SPDX-License-Identifier: BSD-3-Clause
"""The manager socket: unmodified libmtl draws its lcores from the same table.

Clients come in by a Door, at the socket's path. Each is served by a Connection, which knows the bytes, and a Session,
which knows what they ask for.

A CLIENT DOES NOT END WHEN WE END. Our successor finds its instance in the table, an orphan with no connection, since
libmtl never reconnects; what it holds stays its own until its process dies. With a descriptor store (service.py) the
connections wait there for our successor, with what was asked and not answered, and clients notice nothing.

DESCRIPTORS ARE NOT TAKEN from clients. The kernel drops what is passed to who does not ask for it, but in our name, and
may make us wait for it: for a TCP connection with SO_LINGER as long as its owner likes. Linux 6.16 can refuse them at
the sender's; on an older one any client can stop us for a while.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import resource
import socket
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mtlshm import Host, InstanceInfo, Kind, MtlshmError
from mtlshm.daemon.bounded_log import SELDOM
from mtlshm.daemon.connection import LCORES, Connection, lcores_name
from mtlshm.daemon.deaths import Deaths
from mtlshm.daemon.door import LISTENER, Door, Store
from mtlshm.daemon.eal import Lcores, kept
from mtlshm.daemon.lazy import Lazy
from mtlshm.daemon.loans import Loans
from mtlshm.daemon.observer import Observer
from mtlshm.daemon.peer import why_all_are_unseen
from mtlshm.daemon.reception import Newcomer, Reception
from mtlshm.daemon.selector import Selector
from mtlshm.errors import reason
from mtlshm.kinds import TableOwner
from mtlshm.wire import Dialect

if TYPE_CHECKING:
    from mtlshm.daemon.interfaces import Interfaces

log = logging.getLogger(__name__)

_NO_DESCRIPTOR = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_FOR_WORK = 16  # descriptors that are not for clients: a look into /proc, a command with its files
_FINISH_WITHIN = 15.0  # seconds; a command is killed after 10
_OBSERVER_IDLE = 600.0  # seconds; each newcomer is looked at, and to start it takes the time of hundreds of them
_ACCEPT_AGAIN = 1.0  # seconds; also as soon as a connection ends


class ManagerSocket:
    """Serves `path` from start() to close(), in the event loop. Raises OSError if another daemon does."""

    def __init__(
        self,
        host: Host,
        path: Path,
        mode: int,
        gid: int | None,
        interfaces: Lazy[Interfaces],
        store: Store,
        selector: Selector,
        loans: Loans | None = None,
    ) -> None:
        self.host = host
        self.loans = loans
        self.interfaces = interfaces
        self.observer = Observer(idle=_OBSERVER_IDLE)  # of members: not the one that strangers keep busy
        self.store = store
        self.selector = selector
        self.loop = asyncio.get_running_loop()
        self.null = _open_null()
        self._spare: int | None = None  # a descriptor kept for the pidfd of the next client
        self._path, self._gid = path, gid
        may_register = not store.active  # whoever is registered is kept, which C cannot
        own_gid = os.getegid() if gid is None else gid
        self._reception = Reception(host, own_gid, may_register, selector, self._take_over)
        self._door = Door(path, mode, gid, store, self._accept, self._meet, self._reception.lend)
        self._connections: set[Connection] = set()
        self._orphans = Deaths()  # by their owners in the table
        self._retry: asyncio.TimerHandle | None = None
        self.finishing = False
        self._full = False  # said once, until there is room again

    def start(self) -> None:
        """Adopt what earlier daemons left, then listen."""
        if why := why_all_are_unseen():  # not to answer would hang libmtl; refused, it does without us
            log.error("no client can be served, as its end would not be noticed: %s", why)
        lcores = {name: fd for name, fd in self.store.stored if name.startswith(LCORES)}
        for name, fd in self.store.stored:
            if not name.startswith(LCORES):
                self._resume(name, fd, lcores)
        served = {lcores_name(connection.owner) for connection in self._connections}
        for name, fd in lcores.items():
            os.close(fd)
            if name not in served:
                self.store.forget(name)
        connected = {owner for connection in self._connections for owner in connection.owners}
        for owner in self.host.proxies():
            if owner not in connected:
                self._orphans.adopt(owner, partial(self._orphan, owner), partial(self._bury, owner))
        self._door.open()
        log.info("serving libmtl at %s", self._path)

    async def finish(self) -> None:
        """Begin nothing new, and answer what was begun: a command that is under way is not to be begun again."""
        self.finishing = True
        self._door.leave()
        if self._retry:
            self._retry.cancel()
            self._retry = None
        self._reception.empty()
        for connection in self._connections:
            connection.pause()
        deadline = self.loop.time() + _FINISH_WITHIN
        while work := [connection.work for connection in self._connections if connection.work]:
            left = deadline - self.loop.time()
            if left <= 0:
                log.error("stopping with %d requests under way", len(work))
                return
            await asyncio.wait(work, timeout=left)

    def close(self) -> None:
        """Stop. Instances stay in the table."""
        if self._retry:
            self._retry.cancel()
            self._retry = None  # or gone() would listen again
        self._door.close()
        self._reception.close()
        for connection in list(self._connections):
            connection.leave()
        self._orphans.close()
        self.observer.close()
        for fd in (self.null, self._spare):
            if fd is not None:
                os.close(fd)

    def _resume(self, name: str, fd: int, lcores: dict[str, int]) -> None:
        """Go on with what our predecessor had stored; `lcores` is all that it had of lcore ids."""
        try:
            stored = socket.socket(fileno=fd)
        except OSError as error:
            log.warning("%s, kept by the service manager, is no socket: %s", name, error)
            os.close(fd)
            self.store.forget(name)
            return
        try:
            if name == LISTENER:
                self._door.resume(stored)
                return
            _, number, word = name.split("-")
            owner, dialect = TableOwner(int(number, 16)), Dialect(word)
            connection = Connection(self, stored, self._gid)
            connection.resume(owner, dialect, self._kept(lcores_name(owner), lcores))
        except (ValueError, OSError) as error:
            log.warning("%s, kept by the service manager, cannot be resumed: %s", name, error)
            stored.close()
            self.store.forget(name)
            return
        self._connections.add(connection)

    def _kept(self, name: str, lcores: dict[str, int]) -> Lcores | None:
        """The client's lcore ids that the previous daemon stored; None if there are none or they cannot be read."""
        try:
            return kept(lcores[name]) if name in lcores else None
        except (OSError, ValueError, TypeError) as error:
            log.warning("%s, kept by the service manager, cannot be read: %s", name, error)
            self.store.forget(name)
            return None

    def _orphan(self, owner: TableOwner) -> InstanceInfo | None:
        info = self.host.inspect(owner)
        return info if info and info.kind == Kind.SOCKET else None

    def _bury(self, owner: TableOwner) -> None:
        with suppress(MtlshmError):  # who may write the table has removed it this moment
            self.host.adopt(owner).unregister()

    def _accept(self) -> None:
        try:
            if self._spare is None:
                self._spare = _open_spare()
            client = self._door.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError as error:
            if error.errno not in _NO_DESCRIPTOR:
                raise
            # Whoever waits in the backlog is served once there is room; a refusal would kill it.
            if not self._full:
                why = error.strerror
                log.error("no room for another client, %d are served: %s", len(self._connections), why, extra=SELDOM)
            self._full = True
            self._door.ignore()
            self._retry = self.loop.call_later(_ACCEPT_AGAIN, self._accept_again)
            return
        self._full = False
        os.close(self._spare)
        self._spare = None
        self._meet(client)

    def _meet(self, client: socket.socket) -> None:
        try:
            self._connections.add(Connection(self, client, self._gid))
        except OSError as error:
            log.warning("a client is not served: %s", error.strerror, extra=SELDOM)
            client.close()

    def _take_over(self, newcomer: Newcomer) -> None:
        """From C."""
        if newcomer.peer is None:
            self._meet(newcomer.socket)
            return
        try:
            self._connections.add(Connection(self, newcomer.socket, self._gid, newcomer))
        except OSError as error:
            log.warning("pid %d is served no longer: %s", newcomer.peer.pid, reason(error), extra=SELDOM)
            newcomer.socket.close()
            if newcomer.peer.pidfd is not None:
                os.close(newcomer.peer.pidfd)

    def _accept_again(self) -> None:
        if self._retry:
            self._retry.cancel()
            self._retry = None
        self._door.hear()

    def gone(self, connection: Connection) -> None:
        """A connection has ended."""
        self._connections.discard(connection)
        if self._retry:
            self._accept_again()


def _open_null() -> int:
    return os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)


def _open_spare() -> int:
    """OSError if too few would be left to do something for those who are served."""
    spare = _open_null()  # the lowest that is free
    if spare < resource.getrlimit(resource.RLIMIT_NOFILE)[0] - _FOR_WORK:
        return spare
    os.close(spare)
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
