# SPDX-License-Identifier: BSD-3-Clause
"""What one client of the manager socket asks for, and what it is told.

REGISTER makes a proxied instance for it. That ends with the session or stays when we stop, to be found by our
successor: connection.py says when.

WHAT TAKES ITS TIME, which is whatever concerns an interface, is work to be awaited; all else is answered at once.

WHICH CPU an lcore id means is looked up in the process (eal.py). If id and CPU differ, the id is noted with the lcore
in the table, in the tag.

AN LCORE THAT THE SAME PROCESS CLAIMED DIRECTLY is granted when its libmtl asks for it, and noted as such in the
tag; giving it back then undoes the note, not the claim.

DESCRIPTORS that go with a reply are its own until it is closed, but for /dev/null: a reply may have to wait for its
client to read, and a number that is closed meanwhile would soon stand for something that is none of its business.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from mtlshm import Busy, Host, Instance, InstanceInfo, Kind, LcoreType, MtlshmError, wire
from mtlshm.daemon import eal, process
from mtlshm.daemon.bounded_log import SELDOM
from mtlshm.daemon.observer import Observer
from mtlshm.daemon.peer import Peer
from mtlshm.daemon.process import Client
from mtlshm.errors import reason
from mtlshm.kinds import NOBODY, TableOwner
from mtlshm.snapshot import GRANTED_TO_ITS_LIBMTL, tag_of_id
from mtlshm.wire import Dialect, Type

if TYPE_CHECKING:
    from mtlshm.net.xsk import XskSocket

log = logging.getLogger(__name__)


class Interfaces(Protocol):
    """Whoever serves interfaces, queues, flows and port filters; see interfaces.py."""

    async def register(self, client: Client, interfaces: tuple[int, ...]) -> bool:
        """A client will use these. False if not all can be served, which is logged."""

    async def request(self, client: Client, kind: int, body: wire.Filter | wire.Interface) -> int:
        """Its answer: 0, an id, or OSError."""

    async def open_xsk(self, client: Client, body: wire.OpenXsk) -> tuple[wire.Xsk, XskSocket]:
        """A queue, which becomes the client's, and a socket bound to it; or OSError."""

    async def map_of(self, ifindex: int) -> int | None:
        """The descriptor of the interface's xsks_map, which stays theirs; None if it is not served."""

    def gone(self, client: Client) -> None:
        """The client has ended; what it had is free."""


class Loans(Protocol):
    """Whoever lends lcores to legacy processes; see legacy.py."""

    async def hand_over(self, lcore: int, to: Instance, kind: int) -> bool:
        """Give an lcore that is lent and unused to an instance. False if that cannot be done soon."""


class Reply(NamedTuple):
    """What one send() takes."""

    record: bytes
    given: tuple[int, ...] = ()  # descriptors, the client's once it is sent
    lent: tuple[int, ...] = ()  # instead: descriptors that stay ours, and are closed after all connections
    kept: tuple[int, ...] = ()  # descriptors that are not sent, but closed after those given

    def close(self) -> None:
        """It was sent, or will not be."""
        for descriptor in (*self.given, *self.kept):
            os.close(descriptor)


# Members of an enumeration take long to look up, and these are needed for every request.
_GET_LCORE, _RESPONSE, _SCH = int(Type.GET_LCORE), int(Type.RESPONSE), int(LcoreType.SCH)

# Operations before REGISTER are refused in the type of their own reply.
_REPLY_TYPES: dict[int, Type] = {
    Type.IF_GET_QUEUE: Type.IF_QUEUE_ID,
    Type.IF_ADD_FLOW: Type.IF_FLOW_ID,
    Type.OPEN_XSK: Type.XSK,
}


@lru_cache(maxsize=1024)
def _response(kind: int, value: int) -> Reply:
    """Few values make up nearly all answers."""
    return Reply(wire.encode(kind, wire.Response(value)))


def _reply(kind: int, value: int) -> Reply:
    """To a request of this kind."""
    return _response(_REPLY_TYPES.get(kind, _RESPONSE), value)


class Session:
    """One client, from when it is met until end() or leave().

    `null` is a descriptor of /dev/null that outlasts us. `registered` is called when the client has become the instance
    `owner`, and `withdrawn` when it is about to be that no longer, though it is still connected.
    """

    def __init__(
        self,
        host: Host,
        interfaces: Interfaces,
        observer: Observer,
        peer: Peer,
        null: int,
        registered: Callable[[], None],
        withdrawn: Callable[[], None],
        loans: Loans | None,
    ) -> None:
        self._loans = loans
        self._host = host
        self._interfaces = interfaces
        self._observer = observer
        self._peer = peer
        self._null = null
        self._registered = registered
        self._withdrawn = withdrawn
        self._instance: Instance | None = None
        self._client: Client | None = None  # the same, for whoever serves interfaces
        self._lcores: eal.Lcores | None = None  # once looked up
        self._held: dict[int, int] = {}  # CPUs by lcore id, as granted here
        self._refused: set[int] = set()  # lcores that are lent, of which that is said
        self._said = ""  # of it in the log, last, which is not repeated
        self.dialect: Dialect | None = None
        self.owner = NOBODY  # 0: not registered

    def resume(self, owner: TableOwner, dialect: Dialect) -> None:
        """Be that of an instance that is in the table already. OSError if it is not."""
        self._instance = self._host.adopt(owner)
        self.owner, self.dialect = owner, dialect
        if self._peer.pidfd is None:
            raise OSError(errno.EPERM, self._peer.unseen)
        who = process.identify(self._peer.pidfd, self._peer.pid, self._peer.uid, os.uname().nodename)
        self._client = Client(owner, who)
        for lcore in self._host.snapshot().lcores:
            shared = lcore.tag & GRANTED_TO_ITS_LIBMTL and self._is_us(lcore.owner)
            if lcore.owner.owner == owner or shared:
                self._held[lcore.id] = lcore.number

    def end(self) -> Callable[[], None]:
        """Give back all that was granted. What is returned does so with what it has of interfaces, and is to be called
        once no work for it is left."""
        for lcore_id in list(self._held):
            self._put(lcore_id)
        if self._instance is None or self._client is None:
            return lambda: None
        self._instance.unregister()
        self._instance = None  # for work that is not done yet
        return partial(self._interfaces.gone, self._client)

    def leave(self) -> None:
        """Everything stays in the table."""
        if self._instance:
            self._instance.close()

    @property
    def lcores(self) -> int:
        """How many it was granted here."""
        return len(self._held)

    def answer(self, record: bytes) -> Reply | Coroutine[Any, Any, Reply]:
        """A whole record's reply, or the work that leads to it, which raises nothing. Raises wire.BadMagic."""
        if request := wire.lcore_request(record):
            kind, lcore_id = request
            if kind != _GET_LCORE:
                return _response(_RESPONSE, self._put(lcore_id))
            if self._lcores is None and self._instance:
                self._lcores = eal.at_once(self._peer.pid)
                if self._lcores is None:
                    return self._work(kind, self._get_later(lcore_id))
                self._check_lcores()
            return self._grant(lcore_id)
        kind, body = wire.decode(record, self.dialect or Dialect.A)
        client = self._client
        match body:
            case wire.Heartbeat(seq):
                return Reply(wire.encode(Type.HEARTBEAT_ACK, wire.Heartbeat(seq)))
            case wire.Register() | wire.TooManyInterfaces():
                new = self._instance is None
                value = self._register(body)
                if value == 0 and isinstance(body, wire.Register) and body.interfaces:
                    assert self._client
                    return self._work(kind, self._name_interfaces(self._client, body.interfaces, new))
            case wire.Interface() if kind == Type.IF_XSK_MAP_FD:
                return self._map_of(body.ifindex)
            case wire.Filter() | wire.Interface() if client:
                return self._work(kind, self._request(client, kind, body))
            case wire.OpenXsk() if client:
                return self._work(kind, self._open_xsk(client, body))
            case wire.Filter() | wire.Interface() | wire.OpenXsk():
                value = -errno.EPERM
            case _:
                value = -errno.ENOTSUP
        return _reply(kind, value)

    async def _work(self, kind: int, work: Awaitable[Reply]) -> Reply:
        """Whatever goes wrong is an answer, too."""
        try:
            return await work
        except OSError as error:
            number = error.errno or errno.EIO
            if str(error) != self._said:
                self._said = str(error)
                log.warning("pid %d, %s: %s", self._peer.pid, Type(kind).name, reason(error))
        except Exception:
            number = errno.EIO
            log.exception("pid %d, request %d", self._peer.pid, kind)
        return _reply(kind, -number)

    def _register(self, body: wire.Register | wire.TooManyInterfaces) -> int:
        if isinstance(body, wire.TooManyInterfaces):
            return -errno.EINVAL
        pid, uid = self._peer.pid, self._peer.uid
        if not self._peer.admitted:
            log.warning("uid %d (pid %d) is not in the group that may use this socket: refused", uid, pid)
            return -errno.EACCES
        if self._peer.pidfd is None:
            log.warning("pid %d is refused: %s", pid, self._peer.unseen, extra=SELDOM)
            return -errno.EPERM
        if self._instance is None:
            self.dialect = body.dialect
            try:
                who = process.identify(self._peer.pidfd, pid, uid, body.hostname)
                self._instance = self._host.register_proxy(Kind.SOCKET, who)
            except OSError as error:  # no record left, or no descriptor
                log.error("cannot register pid %d: %s", pid, reason(error))
                return -(error.errno or errno.EIO)
            self.owner = self._instance.owner
            # By its own word only the table shall call its host.
            self._client = Client(self.owner, replace(who, hostname=os.uname().nodename))
            self._registered()
        return 0

    async def _name_interfaces(self, client: Client, interfaces: tuple[int, ...], new: bool) -> Reply:
        if await self._interfaces.register(client, interfaces):
            return _reply(Type.REGISTER, 0)
        pid, named = self._peer.pid, ", ".join(map(str, interfaces))
        if self.dialect is Dialect.A:
            # It would go on with the System V table, unseen. So it gets lcores here, and errors for the interface.
            text = "pid %d is registered, though not all of interfaces %s are served: what it asks for there is refused"
            log.warning(text, pid, named)
            return _reply(Type.REGISTER, 0)
        log.warning("pid %d is not registered, as not all of interfaces %s are served", pid, named)
        if new and self._instance:  # else it was registered before, or has ended meanwhile
            self._withdrawn()
            self._instance.unregister()
            self._interfaces.gone(client)
            self._instance = self._client = self.dialect = None
            self.owner = NOBODY
        return _reply(Type.REGISTER, -errno.ENODEV)

    async def _request(self, client: Client, kind: int, body: wire.Filter | wire.Interface) -> Reply:
        return _reply(kind, await self._interfaces.request(client, kind, body))

    async def _open_xsk(self, client: Client, body: wire.OpenXsk) -> Reply:
        answer, xsk = await self._interfaces.open_xsk(client, body)
        kept = () if xsk.channel is None else (xsk.channel,)
        return Reply(wire.encode(Type.XSK, answer), given=(xsk.socket, xsk.umem), kept=kept)

    async def _map_of(self, ifindex: int) -> Reply:
        """What to hand out instead of a map, if there is none or it is not for this client, depends on the client."""
        if self._peer.admitted:
            try:
                if (known := await self._interfaces.map_of(ifindex)) is not None:
                    return Reply(b"\0", given=(os.dup(known),))
            except OSError as error:  # no descriptor is left
                log.error("pid %d gets no map: %s", self._peer.pid, reason(error))
            except Exception:
                log.exception("pid %d gets no map", self._peer.pid)
        # One of dialect A crashes without a descriptor; on what is no BPF map it fails cleanly.
        return Reply(b"\0", lent=(self._null,) if self.dialect is Dialect.A else ())

    def _get(self, lcore_id: int) -> int:
        if self._instance is None or self._lcores is None:
            return -errno.EPERM
        if lcore_id in self._held:
            return -errno.EBUSY
        cpu = self._cpu(lcore_id)
        if cpu is None:
            self._say(f"lcore {lcore_id} stands for no CPU: no worker thread of it, or no online CPU, has that number")
            return -errno.EINVAL
        tag = tag_of_id(lcore_id) if cpu != lcore_id else 0
        try:
            try:
                self._instance.claim(cpu, _SCH)
                if tag:
                    self._host.tag(cpu, self.owner, tag)
            except Busy:
                if not self._share(cpu, tag):
                    return -errno.EBUSY
        except MtlshmError as error:
            return -errno.EINVAL if error.errno == errno.ERANGE else -(error.errno or errno.EIO)
        self._held[lcore_id] = cpu
        return 0

    async def _get_later(self, lcore_id: int) -> Reply:
        self._lcores = await eal.in_a_while(self._observer, self._peer.pid)
        self._check_lcores()
        answer = self._grant(lcore_id)
        return answer if isinstance(answer, Reply) else await answer

    def _check_lcores(self) -> None:
        if self._lcores and not self._lcores.seen:
            self._say(
                "its threads are not seen from here (another PID namespace, hidepid=, or too many): its lcore ids are "
                "taken for CPU numbers, which is wrong with DPDK 25.11 and later; if it has that, run mtlshmd as root "
                "and in the PID namespace of the host"
            )

    def _say(self, text: str) -> None:
        if text != self._said:
            self._said = text
            log.warning("pid %d of uid %d: %s", self._peer.pid, self._peer.uid, text)

    def _share(self, cpu: int, tag: int) -> bool:
        """Does the client's own process hold it in the table? Then note that its libmtl has it too."""
        with suppress(OSError):  # its direct owner lets it go this moment; or there is no /proc any more
            owner, noted = self._host.holder(cpu)
            info = self._host.inspect(owner) if owner else None
            if info and not noted & GRANTED_TO_ITS_LIBMTL and self._is_us(info):
                self._host.tag(cpu, owner, tag | GRANTED_TO_ITS_LIBMTL)
                return True
        return False

    def _grant(self, lcore_id: int) -> Reply | Coroutine[Any, Any, Reply]:
        value = self._get(lcore_id)
        if value == -errno.EBUSY and lcore_id not in self._held and self._is_lent(self._cpu(lcore_id)):
            return self._work(_GET_LCORE, self._get_lent(lcore_id))
        return _response(_RESPONSE, value)

    def _cpu(self, lcore_id: int) -> int | None:
        return self._lcores.cpu(lcore_id) if self._lcores else None

    def _is_lent(self, cpu: int | None) -> bool:
        """To legacy processes, none of which has it?"""
        if cpu is None:
            return False
        with suppress(OSError):
            owner, _ = self._host.holder(cpu)
            info = self._host.inspect(owner) if owner else None
            return info is not None and info.kind == Kind.POOL
        return False

    async def _get_lent(self, lcore_id: int) -> Reply:
        """What is lent and unused is the client's, if nothing else is left to it."""
        cpu = self._cpu(lcore_id)
        assert cpu is not None
        if self._instance and self._loans and not self._has_choice():
            if await self._loans.hand_over(cpu, self._instance, _SCH):
                if cpu != lcore_id:
                    self._host.tag(cpu, self.owner, tag_of_id(lcore_id))
                self._held[lcore_id] = cpu
                return _reply(Type.GET_LCORE, 0)
            why = "it could not be taken back now"
        else:
            why = "others are free" if self._loans else "nobody looks after that table"
        if cpu not in self._refused:
            self._refused.add(cpu)
            log.warning(
                "pid %d does not get lcore %d, which is lent to legacy processes: %s; take it back: "
                "mtlshm-ctl legacy reclaim %d-%d",
                *(self._peer.pid, cpu, why, cpu, cpu),
            )
        return _reply(Type.GET_LCORE, -errno.EBUSY)

    def _has_choice(self) -> bool:
        """Is anything free among the CPUs of its workers, or, if these are not known, where it may run?"""
        cpus = {cpu for _, where in self._lcores.workers for cpu in where} if self._lcores else set()
        with suppress(OSError):
            cpus = cpus or os.sched_getaffinity(self._peer.pid)
        size = self._host.snapshot().size
        return any(cpu < size and not self._host.holder(cpu)[0] for cpu in cpus)

    def _is_us(self, info: InstanceInfo) -> bool:
        """Did the client's process register this one itself?"""
        if info.kind != Kind.SHM or not info.alive or self._peer.pidfd is None:
            return False
        return process.is_same(info, self._peer.pidfd, self._peer.pid)

    def _put(self, lcore_id: int) -> int:
        if self._instance is None:
            return -errno.EPERM
        cpu = self._held.pop(lcore_id, None)
        if cpu is None:
            return -errno.EINVAL
        try:
            self._instance.release(cpu)
        except MtlshmError:  # claimed directly; or taken by an operator meanwhile
            owner, tag = self._host.holder(cpu)
            if owner and tag & GRANTED_TO_ITS_LIBMTL:
                with suppress(MtlshmError):  # its direct owner lets it go this moment
                    self._host.tag(cpu, owner, 0)
        return 0
