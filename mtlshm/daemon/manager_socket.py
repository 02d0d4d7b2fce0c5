# SPDX-License-Identifier: BSD-3-Clause
"""The manager socket: unmodified libmtl draws its lcores from the same table.

libmtl blocks in recv() with no time-out, is killed by SIGPIPE when we close on it, and takes the first piece it gets
for a whole reply. So: every whole record is answered, by one send; nobody waits for anybody else; and a connection is
closed only if what came is no record, or its process is dead.

WHO IT IS tells the kernel (SO_PEERPIDFD since Linux 6.5, SO_PEERCRED), never REGISTER. REGISTER makes a proxied
instance for the connection. It ends when the connection is closed, or when the pidfd says that the process is dead,
whichever is first: a child may hold the socket long after. It does not end when we end. Our successor finds it in the
table, an orphan with no connection, since libmtl never reconnects; what it holds stays its own until its process dies.
With a descriptor store (service.py) the connections wait there for our successor, with what was sent meanwhile, and
clients notice nothing; only half a record that we had read is lost.

DESCRIPTORS ARE NOT TAKEN from clients. The kernel drops what is passed to who does not ask for it, but in our name, and
may make us wait for it: for a TCP connection with SO_LINGER as long as its owner likes. Linux 6.16 can refuse them at
the sender's; on an older one any client can stop us for a while.

WHAT TAKES ITS TIME, which is whatever concerns an interface, is done by a task, and nothing is read from that
connection until it is done: replies come in the order of the requests. If the client ends meanwhile, the task goes on,
and what it got is given back after that.

WHICH CPU an lcore id means is looked up in the process (eal.py). If id and CPU differ, the id is noted with the lcore
in the table, in the tag.

AN LCORE THAT THE SAME PROCESS CLAIMED DIRECTLY is granted when its libmtl asks for it, and noted as such in the
tag; giving it back then undoes the note, not the claim.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import resource
import socket
import stat
import struct
from collections import deque
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

from mtlshm import Busy, Host, Instance, InstanceInfo, Kind, LcoreType, MtlshmError, wire
from mtlshm.daemon import eal, process
from mtlshm.daemon.process import Client
from mtlshm.snapshot import GRANTED_TO_ITS_LIBMTL, tag_of_id
from mtlshm.wire import Dialect, Type

if TYPE_CHECKING:
    from mtlshm.net.xsk import XskSocket

log = logging.getLogger(__name__)

# asm-generic/socket.h, Linux 4.13, 6.5 and 6.16; not in Python 3.11
_SO_PEERGROUPS, _SO_PEERPIDFD, _SO_PASSRIGHTS = 59, 77, 83
_UCRED = struct.Struct("iII")  # pid, uid, gid
_GID = struct.Struct("I")
_READ = 16 * wire.SIZE
_BACKLOG = 1024
_NO_DESCRIPTOR = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_FOR_WORK = 16  # descriptors that are not for clients: a look into /proc, a command with its files
_LISTENER = "listener"  # in the store
_FINISH_WITHIN = 15.0  # seconds; a command is killed after 10
_ACCEPT_AGAIN = 1.0  # seconds; also as soon as a connection ends


class Store(Protocol):
    """Keeps descriptors for our successor; see service.py."""

    @property
    def active(self) -> bool: ...
    @property
    def stored(self) -> list[tuple[str, int]]: ...
    def keep(self, name: str, fd: int) -> None: ...
    def forget(self, name: str) -> None: ...


class Interfaces(Protocol):
    """Whoever serves interfaces, queues, flows and port filters; see interfaces.py."""

    async def register(self, client: Client, interfaces: tuple[int, ...]) -> None: ...
    async def request(self, client: Client, kind: int, body: wire.Filter | wire.Interface) -> int: ...
    async def open_xsk(self, client: Client, body: wire.OpenXsk) -> tuple[wire.Xsk, XskSocket]: ...
    def map_of(self, ifindex: int) -> int | None: ...
    def gone(self, client: Client) -> None: ...


# Members of an enumeration take long to look up, and these are needed for every request.
_GET_LCORE, _RESPONSE, _SCH = int(Type.GET_LCORE), int(Type.RESPONSE), int(LcoreType.SCH)

_Result: TypeAlias = "int | tuple[wire.Xsk, XskSocket]"

# Operations before REGISTER are refused in the type of their own reply.
_REPLY_TYPES: dict[int, Type] = {
    Type.IF_GET_QUEUE: Type.IF_QUEUE_ID,
    Type.IF_ADD_FLOW: Type.IF_FLOW_ID,
    Type.OPEN_XSK: Type.XSK,
}


class ManagerSocket:
    """Serves `path` from start() to close(), in the event loop. Raises OSError if another daemon does."""

    def __init__(
        self, host: Host, path: Path, mode: int, gid: int | None, interfaces: Interfaces, store: Store
    ) -> None:
        self.host = host
        self.interfaces = interfaces
        self.store = store
        self.loop = asyncio.get_running_loop()
        self.null = _open_null()
        self._spare: int | None = None  # a descriptor kept for the pidfd of the next client
        self._path, self._mode = path, mode
        self._gid = gid
        self._connections: set[_Connection] = set()
        self._orphans: dict[int, Instance] = {}  # by pidfd
        self._retry: asyncio.TimerHandle | None = None
        self.finishing = False
        self._full = False  # said once, until there is room again
        self._listener: socket.socket | None = None

    def start(self) -> None:
        """Adopt what earlier daemons left, then listen."""
        for name, fd in self.store.stored:
            self._resume(name, fd)
        connected = {connection.owner for connection in self._connections}
        for owner in self.host.proxies():
            if owner not in connected:
                self._adopt(owner)
        if self._listener and not (self._listener.getsockname() == str(self._path) and _is_socket(self._path)):
            self._give_up_listener(self._listener)
        if self._listener:
            _give_access(self._path, self._mode, self._gid)
        else:
            self._listener = _listen(self._path, self._mode, self._gid)
            self.store.keep(_LISTENER, self._listener.fileno())
        self.loop.add_reader(self._listener.fileno(), self._accept)
        log.info("serving libmtl at %s", self._path)

    async def finish(self) -> None:
        """Begin nothing new, and answer what was read: nobody else can, and whoever asked waits for ever."""
        self.finishing = True
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
        if self._listener:
            self.loop.remove_reader(self._listener.fileno())
            if not self.store.active:  # else clients may already be waiting for our successor
                self._path.unlink(missing_ok=True)
            self._listener.close()
        for connection in list(self._connections):
            connection.leave()
        for pidfd, instance in self._orphans.items():
            self.loop.remove_reader(pidfd)
            os.close(pidfd)
            instance.close()
        self._orphans.clear()
        for fd in (self.null, self._spare):
            if fd is not None:
                os.close(fd)

    def _resume(self, name: str, fd: int) -> None:
        """Go on with what our predecessor had stored."""
        try:
            stored = socket.socket(fileno=fd)
        except OSError as error:
            log.warning("%s, kept by the service manager, is no socket: %s", name, error)
            os.close(fd)
            self.store.forget(name)
            return
        try:
            if name == _LISTENER:
                stored.setblocking(False)
                self._listener = stored
                return
            _, owner, dialect = name.split("-")
            connection = _Connection(self, stored, self._gid)
            connection.resume(int(owner, 16), Dialect(dialect))
        except (ValueError, OSError) as error:
            log.warning("%s, kept by the service manager, cannot be resumed: %s", name, error)
            stored.close()
            self.store.forget(name)
            return
        self._connections.add(connection)

    def _give_up_listener(self, listener: socket.socket) -> None:
        """Nobody finds the stored one where we are told to listen now. Those who wait there already are let in."""
        self._listener = None
        self.store.forget(_LISTENER)
        with listener, suppress(OSError):
            while True:
                self._meet(listener.accept()[0])

    def _adopt(self, owner: int) -> None:
        info = self.host.inspect(owner)
        if info is None or info.kind != Kind.SOCKET:
            return
        try:
            instance = self.host.adopt(owner)
            pidfd = process.find(info)
        except LookupError as error:
            log.warning("cannot tell whether %s lives; what it holds stays its own", error)
            return
        except OSError as error:  # no descriptor left; or who may write the table has removed it this moment
            log.error("cannot look after %s (pid %d): %s", info.label, info.pid, error.strerror)
            return
        if pidfd is None:
            log.info("%s (pid %d) died meanwhile: collected", info.label, info.pid)
            instance.unregister()
            return
        self._orphans[pidfd] = instance
        self.loop.add_reader(pidfd, self._bury, pidfd, info.label, info.pid)

    def _bury(self, pidfd: int, label: str, pid: int) -> None:
        self.loop.remove_reader(pidfd)
        os.close(pidfd)
        self._orphans.pop(pidfd).unregister()
        log.info("%s (pid %d) died: collected", label, pid)

    def _accept(self) -> None:
        assert self._listener
        try:
            if self._spare is None:
                self._spare = _open_spare()
            client, _ = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError as error:
            if error.errno not in _NO_DESCRIPTOR:
                raise
            # Whoever waits in the backlog is served once there is room; a refusal would kill it.
            if not self._full:
                log.error("no room for another client, %d are served: %s", len(self._connections), error.strerror)
            self._full = True
            self.loop.remove_reader(self._listener.fileno())
            self._retry = self.loop.call_later(_ACCEPT_AGAIN, self._accept_again)
            return
        self._full = False
        os.close(self._spare)
        self._spare = None
        self._meet(client)

    def _meet(self, client: socket.socket) -> None:
        try:
            self._connections.add(_Connection(self, client, self._gid))
        except OSError as error:
            log.warning("a client left before it was met: %s", error.strerror)
            client.close()

    def _accept_again(self) -> None:
        assert self._listener
        if self._retry:
            self._retry.cancel()
            self._retry = None
        self.loop.add_reader(self._listener.fileno(), self._accept)

    def gone(self, connection: _Connection) -> None:
        """A connection has ended."""
        self._connections.discard(connection)
        if self._retry:
            self._accept_again()


class _Reply(NamedTuple):
    """What one send() takes."""

    record: bytes
    descriptor: int | None = None  # ours, and stays so
    xsk: XskSocket | None = None  # the client's, once it is sent


@lru_cache(maxsize=1024)
def _reply(kind: int, value: int) -> _Reply:
    """Few values make up nearly all answers."""
    return _Reply(wire.encode(kind, wire.Response(value)))


class _Connection:
    """One client. See the head of this file for when it ends."""

    def __init__(self, server: ManagerSocket, client: socket.socket, gid: int | None) -> None:
        self._server = server
        self._socket = client
        self._unread = b""
        self._unsent: deque[_Reply] = deque()
        self.work: asyncio.Task[_Result] | None = None  # on the last request that was read
        self._ended = False
        self._said = ""  # of it in the log, last; nobody fills that by asking again and again
        self._dialect: Dialect | None = None
        self._instance: Instance | None = None
        self._client: Client | None = None  # the same, for whoever serves interfaces
        self.owner = 0
        self._ids: dict[int, int] | None = None  # CPUs by lcore id, once looked up
        self._held: dict[int, int] = {}  # CPUs by lcore id, as granted here
        client.setblocking(False)
        self._pid, self._uid, peer_gid = _UCRED.unpack(
            client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        )
        self._admitted = _may_enter(client, self._uid, peer_gid, gid)
        self._pidfd = _peer_pidfd(client, self._pid)
        server.loop.add_reader(client.fileno(), self._read)
        server.loop.add_reader(self._pidfd, self._died)

    def resume(self, owner: int, dialect: Dialect) -> None:
        """Be the connection of an instance that is in the table already. OSError if it is not."""
        try:
            self._instance = self._server.host.adopt(owner)
        except MtlshmError:
            self._unwatch()
            raise
        self.owner, self._dialect = owner, dialect
        who = process.identify(self._pidfd, self._pid, self._uid, os.uname().nodename)
        self._client = Client(owner, who)
        for lcore in self._server.host.snapshot().lcores:
            shared = lcore.tag & GRANTED_TO_ITS_LIBMTL and self._is_us(lcore.owner)
            if lcore.owner.owner == owner or shared:
                self._held[lcore.id] = lcore.number

    def pause(self) -> None:
        """Read nothing more."""
        self._server.loop.remove_reader(self._socket.fileno())

    def leave(self) -> None:
        """Close the connection; the instance stays in the table."""
        self._unwatch()
        self._ended = True
        self._socket.close()
        for reply in self._unsent:
            if reply.xsk:
                reply.xsk.close()
        self._unsent.clear()
        if self._instance:
            self._instance.close()
        self._server.gone(self)

    def _unwatch(self) -> None:
        self._server.loop.remove_reader(self._socket.fileno())
        self._server.loop.remove_writer(self._socket.fileno())
        self._server.loop.remove_reader(self._pidfd)
        os.close(self._pidfd)

    def _end(self) -> None:
        """Close the connection and give back all that was granted through it."""
        for lcore_id in list(self._held):
            self._put(lcore_id)
        if self._instance:
            assert self._client
            gone = partial(self._server.interfaces.gone, self._client)
            if self.work:  # what it gets there is given back as well
                self.work.add_done_callback(lambda _: gone())
            else:
                gone()
            self._instance.unregister()
            self._instance = None
            self._server.store.forget(self._name())
        self.leave()

    def _name(self) -> str:
        """In the store; _resume() reads it."""
        return f"client-{self.owner:x}-{self._dialect.value if self._dialect else ''}"

    def _died(self) -> None:
        if self._instance:
            log.info("pid %d died: %d lcores given back", self._pid, len(self._held))
        self._end()

    # -- bytes

    def _read(self) -> None:
        try:
            data = self._socket.recv(_READ)
        except BlockingIOError:
            return
        except OSError:  # reset: it closed with our reply unread
            self._end()
            return
        if not data:
            self._end()
            return
        try:
            if len(data) == wire.SIZE and not self._unread:
                self._answer(data)
            else:
                self._unread += data
                self._answer_all()
        except (wire.BadMagic, OSError) as error:
            self._give_up(error)

    def _answer_all(self) -> None:
        """What was read, up to a request that takes its time."""
        while self.work is None and len(self._unread) >= wire.SIZE:
            record, self._unread = self._unread[: wire.SIZE], self._unread[wire.SIZE :]
            self._answer(record)

    def _give_up(self, error: Exception) -> None:
        if isinstance(error, wire.BadMagic):
            log.warning("pid %d speaks something else (magic %s): closed", self._pid, error)
        self._end()  # else: it is gone, with our reply

    def _answer(self, record: bytes) -> None:
        if request := wire.lcore_request(record):
            kind, lcore_id = request
            value = self._get(lcore_id) if kind == _GET_LCORE else self._put(lcore_id)
            self._send(_reply(_RESPONSE, value))
            return
        kind, body = wire.decode(record, self._dialect or Dialect.A)
        match body:
            case wire.Heartbeat(seq):
                self._send(_Reply(wire.encode(Type.HEARTBEAT_ACK, wire.Heartbeat(seq))))
                return
            case wire.Register() | wire.TooManyInterfaces():
                value = self._register(body)
                if value == 0 and isinstance(body, wire.Register) and body.interfaces:
                    self._begin(kind, self._name_interfaces(body.interfaces))
                    return
            case wire.Interface() if kind == Type.IF_XSK_MAP_FD:
                self._send(_Reply(b"\0", self._map_of(body.ifindex)))
                return
            case wire.Filter() | wire.Interface() if self._client:
                self._begin(kind, self._server.interfaces.request(self._client, kind, body))
                return
            case wire.OpenXsk() if self._client:
                self._begin(kind, self._server.interfaces.open_xsk(self._client, body))
                return
            case wire.Filter() | wire.Interface() | wire.OpenXsk():
                value = -errno.EPERM
            case _:
                value = -errno.ENOTSUP
        self._send(_reply(_REPLY_TYPES.get(kind, _RESPONSE), value))

    def _begin(self, kind: int, work: Coroutine[Any, Any, _Result]) -> None:
        """Answer a request of this kind once the work is done."""
        self._server.loop.remove_reader(self._socket.fileno())
        self.work = self._server.loop.create_task(work)
        self.work.add_done_callback(partial(self._done, kind))

    def _done(self, kind: int, work: asyncio.Task[_Result]) -> None:
        self.work = None
        if work.cancelled():  # we are stopping
            return
        reply = self._reply_to(kind, work)
        if self._ended:
            if reply.xsk:
                reply.xsk.close()
            return
        try:
            self._send(reply)
            self._answer_all()
        except (wire.BadMagic, OSError) as failure:
            self._give_up(failure)
            return
        self._go_on_reading()

    def _reply_to(self, kind: int, work: asyncio.Task[_Result]) -> _Reply:
        error = work.exception()
        if error is None:
            result = work.result()
            if isinstance(result, tuple):
                return _Reply(wire.encode(Type.XSK, result[0]), xsk=result[1])
            return _reply(_REPLY_TYPES.get(kind, _RESPONSE), result)
        number = errno.EIO
        if not isinstance(error, OSError):
            log.error("pid %d, request %d: %r", self._pid, kind, error, exc_info=error)
        else:
            number = error.errno or number
            if str(error) != self._said:
                self._said = str(error)
                log.warning("pid %d, %s: %s", self._pid, Type(kind).name, error.strerror or error)
        return _reply(_REPLY_TYPES.get(kind, _RESPONSE), -number)

    def _go_on_reading(self) -> None:
        if not self._unsent and self.work is None and not self._server.finishing:
            self._server.loop.add_reader(self._socket.fileno(), self._read)

    def _send(self, reply: _Reply) -> None:
        if self._unsent:
            self._unsent.append(reply)
            return
        try:
            self._transmit(reply)
        except BlockingIOError:
            # It does not read. Nor do we then, so no more than one reading's worth piles up.
            self._server.loop.remove_reader(self._socket.fileno())
            self._server.loop.add_writer(self._socket.fileno(), self._flush)
            self._unsent.append(reply)
        except OSError:
            self._unsent.append(reply)  # for leave(), which closes what was not sent
            raise

    def _transmit(self, reply: _Reply) -> None:
        if reply.xsk:
            socket.send_fds(self._socket, [reply.record], [reply.xsk.socket, reply.xsk.umem], socket.MSG_NOSIGNAL)
            reply.xsk.close()
        elif reply.descriptor is not None:
            socket.send_fds(self._socket, [reply.record], [reply.descriptor], socket.MSG_NOSIGNAL)
        else:
            self._socket.send(reply.record, socket.MSG_NOSIGNAL)

    def _flush(self) -> None:
        try:
            while self._unsent:
                self._transmit(self._unsent[0])
                self._unsent.popleft()
        except BlockingIOError:
            return
        except OSError:
            self._end()
            return
        self._server.loop.remove_writer(self._socket.fileno())
        self._go_on_reading()

    # -- requests

    def _register(self, body: wire.Register | wire.TooManyInterfaces) -> int:
        if isinstance(body, wire.TooManyInterfaces):
            return -errno.EINVAL
        if not self._admitted:
            log.warning("uid %d (pid %d) is not in the group that may use this socket: refused", self._uid, self._pid)
            return -errno.EACCES
        self._dialect = body.dialect
        if self._instance is None:
            try:
                who = process.identify(self._pidfd, self._pid, self._uid, body.hostname)
                self._instance = self._server.host.register_proxy(Kind.SOCKET, who)
            except OSError as error:  # no record left, or no descriptor
                log.error("cannot register pid %d: %s", self._pid, error.strerror)
                return -(error.errno or errno.EIO)
            self.owner = self._instance.owner
            # By its own word only the table shall call its host.
            self._client = Client(self.owner, replace(who, hostname=os.uname().nodename))
            self._server.store.keep(self._name(), self._socket.fileno())
        return 0

    async def _name_interfaces(self, interfaces: tuple[int, ...]) -> int:
        assert self._client
        await self._server.interfaces.register(self._client, interfaces)
        return 0

    def _map_of(self, ifindex: int) -> int | None:
        """What to hand out instead of a map, if there is none or it is not for this client, depends on the client."""
        known = self._server.interfaces.map_of(ifindex) if self._admitted else None
        if known is not None:
            return known
        # One of dialect A crashes without a descriptor; on what is no BPF map it fails cleanly.
        return self._server.null if self._dialect is Dialect.A else None

    def _get(self, lcore_id: int) -> int:
        if self._instance is None:
            return -errno.EPERM
        if lcore_id in self._held:
            return -errno.EBUSY
        if self._ids is None:
            self._ids = eal.lcores(self._pid)
        cpu = self._ids.get(lcore_id, lcore_id)
        tag = tag_of_id(lcore_id) if cpu != lcore_id else 0
        try:
            try:
                self._instance.claim(cpu, _SCH)
                if tag:
                    self._server.host.tag(cpu, self.owner, tag)
            except Busy:
                if not self._share(cpu, tag):
                    return -errno.EBUSY
        except MtlshmError as error:
            return -errno.EINVAL if error.errno == errno.ERANGE else -(error.errno or errno.EIO)
        self._held[lcore_id] = cpu
        return 0

    def _share(self, cpu: int, tag: int) -> bool:
        """Does the client's own process hold it in the table? Then note that its libmtl has it too."""
        host = self._server.host
        with suppress(MtlshmError):  # its direct owner lets it go this moment
            owner, noted = host.holder(cpu)
            info = host.inspect(owner) if owner else None
            if info and not noted & GRANTED_TO_ITS_LIBMTL and self._is_us(info):
                host.tag(cpu, owner, tag | GRANTED_TO_ITS_LIBMTL)
                return True
        return False

    def _is_us(self, info: InstanceInfo) -> bool:
        """Did the client's process register this one itself? While both live, the PID decides."""
        here = (info.pid, info.pid_namespace) == (self._pid, process.namespace())
        return here and info.kind == Kind.SHM and bool(info.alive)

    def _put(self, lcore_id: int) -> int:
        if self._instance is None:
            return -errno.EPERM
        cpu = self._held.pop(lcore_id, None)
        if cpu is None:
            return -errno.EINVAL
        try:
            self._instance.release(cpu)
        except MtlshmError:  # claimed directly; or taken by an operator meanwhile
            owner, tag = self._server.host.holder(cpu)
            if owner and tag & GRANTED_TO_ITS_LIBMTL:
                with suppress(MtlshmError):  # its direct owner lets it go this moment
                    self._server.host.tag(cpu, owner, 0)
        return 0


def _open_null() -> int:
    return os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)


def _open_spare() -> int:
    """OSError if too few would be left to do something for those who are served."""
    spare = _open_null()  # the lowest that is free
    if spare < resource.getrlimit(resource.RLIMIT_NOFILE)[0] - _FOR_WORK:
        return spare
    os.close(spare)
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def _may_enter(client: socket.socket, uid: int, peer_gid: int, gid: int | None) -> bool:
    """Root, we ourselves, and members of the group; the socket file's mode says the same at the door."""
    if uid in (0, os.geteuid()):
        return True
    try:
        supplementary = client.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 1024)  # Python takes no more: 256 groups
    except OSError as error:
        if error.errno != errno.ERANGE:
            raise
        supplementary = b""
    groups = {peer_gid, *(group for (group,) in _GID.iter_unpack(supplementary))}
    return (os.getegid() if gid is None else gid) in groups


def _peer_pidfd(client: socket.socket, pid: int) -> int:
    try:
        pidfd = client.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
        os.set_inheritable(pidfd, False)
        return pidfd
    except OSError as error:
        if error.errno != errno.ENOPROTOOPT:  # before Linux 6.5; ESRCH, EINVAL: it is dead already
            raise
    # The PID may have changed hands between connect() and here, if its process died meanwhile and its child goes on
    # with the socket. That cannot be told on such a kernel.
    return os.pidfd_open(pid)


def _listen(path: Path, mode: int, gid: int | None) -> socket.socket:
    """A listening socket at `path`; a file that nobody listens at is replaced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        if _is_socket(path):
            if _answers(path):
                raise OSError(errno.EADDRINUSE, f"{path}: another daemon serves it; stop it first")
            path.unlink(missing_ok=True)
        with suppress(OSError):  # ENOPROTOOPT: a kernel that does not know it
            listener.setsockopt(socket.SOL_SOCKET, _SO_PASSRIGHTS, 0)  # connections inherit it
        # Nobody else may connect before the mode is set.
        previous = os.umask(0o777)
        try:
            listener.bind(str(path))
        finally:
            os.umask(previous)
        _give_access(path, mode, gid)
        listener.listen(_BACKLOG)
        return listener
    except BaseException:
        listener.close()
        raise


def _give_access(path: Path, mode: int, gid: int | None) -> None:
    """To the socket that was just made. Not to what a link may lead to that somebody else has put there since."""
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if not stat.S_ISSOCK(os.fstat(fd).st_mode):
            raise OSError(errno.ESTALE, f"{path}: somebody has replaced it; name a --socket in a directory of ours")
        if gid is not None:
            os.chown(f"/proc/self/fd/{fd}", -1, gid)
        os.chmod(f"/proc/self/fd/{fd}", mode)
    finally:
        os.close(fd)


def _is_socket(path: Path) -> bool:
    try:
        return stat.S_ISSOCK(path.stat().st_mode)
    except FileNotFoundError:
        return False


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(str(path))
        except BlockingIOError:  # its backlog is full
            return True
        except (ConnectionRefusedError, FileNotFoundError):
            return False
    return True
