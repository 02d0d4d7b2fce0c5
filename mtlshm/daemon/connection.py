# SPDX-License-Identifier: BSD-3-Clause
"""The bytes of one client of the manager socket: requests come in, and each has its reply.

libmtl blocks in recv() with no time-out, is killed by SIGPIPE when we close on it, and takes the first piece it gets
for a whole reply. So: every whole record is answered, in order, by one send; nobody waits for anybody else; and a
connection is closed only if what came is no record, or its process is dead.

A REQUEST STAYS IN THE SOCKET until its reply is about to be sent: it is peeked at, answered, taken out, and the reply
sent. So whatever kills us takes no request with it, if the service manager keeps the connection: our successor finds
it there and does it, maybe again. What the client had got by then and was not told of is its own until it ends. The
request is taken out first and the reply sent then: between these two system calls a request can be lost. The other way
round it could be answered twice, and the client would misread all that follows. Only half a record has to be taken out
at once, or it would wake us for ever; it is lost if we are killed before the rest has come. And a reply that waits
because the client has hundreds unread is lost with us; libmtl reads each before it asks again.

ONE REQUEST A TURN. A client that sends many at a time waits for its turn like all others: the event loop goes round and
answers one of each.

C ANSWERS FIRST, and lets in most clients (reception.py). While we watch the socket for reading, it is lent to the
selector, which answers in the same way what it can, and leaves us the rest (selector.py). Never do both have it: we
take it back for half a record, for work, and for a reply that waits.

While a request is worked on, or its reply waits for the client to read, nothing is read from that connection. If the
client ends meanwhile, the work goes on, and what it got is given back after that.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Coroutine
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

from mtlshm import Host, wire
from mtlshm.cpuset import counted
from mtlshm.daemon import requests
from mtlshm.daemon.door import Store
from mtlshm.daemon.eal import Lcores
from mtlshm.daemon.lazy import Lazy
from mtlshm.daemon.loans import Loans
from mtlshm.daemon.observer import Observer
from mtlshm.daemon.peer import meet
from mtlshm.daemon.reception import Newcomer
from mtlshm.daemon.reply import Reply
from mtlshm.daemon.selector import Selector
from mtlshm.daemon.session import Session
from mtlshm.errors import reason
from mtlshm.kinds import TableOwner
from mtlshm.wire import Dialect

if TYPE_CHECKING:
    from mtlshm.daemon.interfaces import Interfaces

log = logging.getLogger(__name__)

LCORES = "lcores-"  # in the store
_REST = 64 * wire.SIZE  # of what is no record, read before we close


def lcores_name(owner: TableOwner) -> str:
    """In the store, of what was found of a client's lcore ids."""
    return f"{LCORES}{owner:x}"


class Server(Protocol):
    """The part of the manager socket that a connection needs; see manager_socket.py."""

    host: Host
    interfaces: Lazy[Interfaces]
    loans: Loans | None
    observer: Observer
    store: Store
    loop: asyncio.AbstractEventLoop
    selector: Selector  # the loop's
    null: int  # a descriptor of /dev/null
    finishing: bool  # nothing more is to be begun

    def gone(self, connection: Connection) -> None:
        """A connection has ended, and has closed its socket."""


class Connection:
    """Answers one client in the event loop, from when it is made until the client ends or leave().

    It ends when the connection is closed, or when its process is dead, whichever is first: a child may hold the socket
    long after. OSError if it has ended already, or if no descriptor is left.
    """

    def __init__(
        self, server: Server, client: socket.socket, gid: int | None, newcomer: Newcomer | None = None
    ) -> None:
        self._server = server
        self._socket = client
        self._half = b""  # of a record, taken out already
        self._unsent: Reply | None = None  # as the client does not read
        self._ended = False
        self._stores_lcores = False
        self.work: asyncio.Task[Reply] | None = None  # on the first request in the socket
        client.setblocking(False)
        # Or a byte that was sent out of band would wake us, and not be there when we peek (Linux 5.15).
        client.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        self._peer = (newcomer and newcomer.peer) or meet(client, gid)
        self._session = Session(
            server.host,
            server.interfaces,
            server.observer,
            self._peer,
            server.null,
            self._keep,
            self._forget,
            self._keep_lcores,
            server.loans,
            newcomer and newcomer.grants,
        )
        if newcomer and newcomer.instance and newcomer.dialect:
            self._session.introduce(newcomer.instance, newcomer.dialect)
        self._listen()
        if self._peer.pidfd is not None:
            server.loop.add_reader(self._peer.pidfd, self._died)
            server.selector.lend_process(self._peer.pidfd, self._session.grants)
        if record := self._session.grants.unsent():
            self._wait_for_room(Reply(record))

    @property
    def owner(self) -> TableOwner:
        """Its instance in the table, or 0."""
        return self._session.owner

    @property
    def owners(self) -> set[TableOwner]:
        """The client's owners in the table."""
        return self._session.owners

    def resume(self, owner: TableOwner, dialect: Dialect, lcores: Lcores | None) -> None:
        """Be the connection of an instance that is in the table already; `lcores` is what the store has of it. OSError
        if it is not in the table."""
        self._stores_lcores = lcores is not None
        try:
            self._session.resume(owner, dialect, lcores)
        except OSError:
            self._unwatch()
            raise

    def pause(self) -> None:
        """Read nothing more, nor does C."""
        self._server.loop.remove_reader(self._socket.fileno())

    def leave(self) -> None:
        """Close the connection; the instance stays in the table."""
        self._close()
        self._session.leave()

    def _close(self) -> None:
        self._unwatch()
        self._ended = True
        self._socket.close()
        if self._unsent:
            self._unsent.close()
        self._server.gone(self)

    def _unwatch(self) -> None:
        self._server.loop.remove_reader(self._socket.fileno())
        self._server.loop.remove_writer(self._socket.fileno())
        if self._peer.pidfd is not None:
            self._server.loop.remove_reader(self._peer.pidfd)
            os.close(self._peer.pidfd)

    def _end(self) -> None:
        """Close the connection and give back all that was granted through it."""
        give_back = self._session.end()
        if self.work:  # what it gets there is given back as well
            self.work.add_done_callback(lambda _: give_back())
        else:
            give_back()
        if self.owner:
            self._forget()
        self._close()

    def _keep(self) -> None:
        self._server.store.keep(self._name(), self._socket.fileno())

    def _keep_lcores(self, lcores: Lcores) -> None:
        """To be found under its owner, like the connection itself."""
        if self._stores_lcores or not self._server.store.active:
            return
        try:
            fd = lcores.keep()
        except OSError as error:
            log.error("pid %d: its lcore ids are not kept for the next daemon: %s", self._peer.pid, reason(error))
            return
        self._server.store.keep(lcores_name(self.owner), fd)
        self._stores_lcores = True
        os.close(fd)

    def _forget(self) -> None:
        self._server.store.forget(self._name())
        if self._stores_lcores:
            self._server.store.forget(lcores_name(self.owner))
            self._stores_lcores = False

    def _name(self) -> str:
        """In the store; ManagerSocket reads it."""
        dialect = self._session.dialect
        return f"client-{self.owner:x}-{dialect.value if dialect else ''}"

    def _died(self) -> None:
        if self.owner:
            log.info("pid %d died: %s given back", self._peer.pid, counted(self._session.lcores))
        self._end()

    # -- requests

    def _listen(self) -> None:
        self._server.loop.add_reader(self._socket.fileno(), self._read)
        self._lend()

    def _lend(self) -> None:
        """C answers what it can, from the first byte of a record on, as long as we watch the socket for reading."""
        self._server.selector.lend(self._socket.fileno(), self._session.grants)

    def _read(self) -> None:
        """Something that C has left to us."""
        if self._session.grants.over:
            self._end()
            return
        if record := self._session.grants.unsent():
            self._wait_for_room(Reply(record))
            return
        try:
            arrived = self._socket.recv(wire.SIZE - len(self._half), socket.MSG_PEEK)
        except BlockingIOError:
            return
        except OSError:  # reset: it closed with our reply unread
            self._end()
            return
        if not arrived:
            self._end()
            return
        try:
            self._answer(self._half + arrived)
        except (wire.BadMagic, OSError) as error:
            self._give_up(error)

    def _answer(self, record: bytes) -> None:
        """A request that is in the socket; or take out the part of it that has come."""
        if len(record) < wire.SIZE:
            self._take(len(record) - len(self._half))
            self._half = record
            self._server.selector.take_back(self._socket.fileno())  # the next byte is none of a record's first
            return
        in_pieces = bool(self._half)
        answer = requests.answer(self._session, record)
        if isinstance(answer, Reply):
            self._send(answer)
            if in_pieces and self._unsent is None:
                self._lend()
        else:
            self._begin(answer)

    def _take(self, length: int) -> None:
        """Out of the socket. What comes with descriptors comes in pieces."""
        while length:
            taken = len(self._socket.recv(length))
            if not taken:
                raise ConnectionResetError
            length -= taken

    def _begin(self, work: Coroutine[Any, Any, Reply]) -> None:
        """Reply once the work is done."""
        self.pause()
        self.work = self._server.loop.create_task(work)
        self.work.add_done_callback(self._done)

    def _done(self, work: asyncio.Task[Reply]) -> None:
        self.work = None
        if work.cancelled():  # we are stopping
            return
        reply = work.result()
        if self._ended:
            reply.close()
            return
        try:
            self._send(reply)
        except OSError as error:
            self._give_up(error)
            return
        self._go_on_reading()

    def _give_up(self, error: Exception) -> None:
        if isinstance(error, wire.BadMagic):
            log.warning("pid %d speaks something else (magic %s): closed", self._peer.pid, error)
            with suppress(OSError):
                self._socket.recv(_REST)  # or it would hear of a reset, not of the end
        self._end()  # else: it is gone, with our reply

    def _go_on_reading(self) -> None:
        if self._unsent is None and self.work is None and not self._server.finishing:
            self._listen()

    # -- replies

    def _send(self, reply: Reply) -> None:
        """To the first request in the socket, which is taken out."""
        self._unsent = reply  # for _close(), should it not be sent
        self._take(wire.SIZE - len(self._half))
        self._half = b""
        try:
            self._transmit(reply)
        except BlockingIOError:
            self._wait_for_room(reply)

    def _wait_for_room(self, reply: Reply) -> None:
        """The client does not read. Nor do we then."""
        self._unsent = reply
        self.pause()
        self._server.loop.add_writer(self._socket.fileno(), self._flush)

    def _transmit(self, reply: Reply) -> None:
        if descriptors := reply.given or reply.lent:
            socket.send_fds(self._socket, [reply.record], descriptors, socket.MSG_NOSIGNAL)
            reply.close()
        else:
            self._socket.send(reply.record, socket.MSG_NOSIGNAL)
        self._unsent = None

    def _flush(self) -> None:
        assert self._unsent
        try:
            self._transmit(self._unsent)
        except BlockingIOError:
            return
        except OSError:
            self._end()
            return
        self._server.loop.remove_writer(self._socket.fileno())
        self._go_on_reading()
