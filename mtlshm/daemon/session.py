# SPDX-License-Identifier: BSD-3-Clause
"""One client of the manager socket: its requests and their answers.

REGISTER makes a proxied instance for it. That ends with the session or stays when we stop, to be found by our
successor: connection.py says when. What it draws its lcores from, lease.py says.

WHAT TAKES ITS TIME, which is the first REGISTER and whatever concerns an interface, is work to be awaited; nearly all
else is answered at once.

WHICH CPU an lcore id means is looked up in the process (eal.py). If id and CPU differ, the id is noted with the lcore
in the table, in the tag.

AN LCORE THAT THE SAME PROCESS CLAIMED DIRECTLY is granted when its libmtl asks for it; see own_claims.py.

DESCRIPTORS that go with a reply are its own until it is closed, but for /dev/null: a reply may have to wait for its
client to read, and a number that is closed meanwhile would soon stand for something that is none of its business.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from mtlshm import Busy, Host, Instance, InstanceGone, InstanceInfo, Kind, LcoreType, MtlshmError, Process, pidfds, wire
from mtlshm.daemon import eal, lease, loans, process
from mtlshm.daemon.bounded_log import SELDOM
from mtlshm.daemon.grants import Grants
from mtlshm.daemon.lazy import Lazy
from mtlshm.daemon.lease import Lease
from mtlshm.daemon.loans import Loans
from mtlshm.daemon.observer import Observer
from mtlshm.daemon.own_claims import OwnClaims
from mtlshm.daemon.peer import Peer
from mtlshm.daemon.process import Client
from mtlshm.daemon.reply import Reply
from mtlshm.errors import reason
from mtlshm.kinds import NOBODY, TableOwner
from mtlshm.snapshot import tag_of_id
from mtlshm.wire import Dialect, Type

if TYPE_CHECKING:
    from mtlshm.daemon.interfaces import Interfaces

log = logging.getLogger(__name__)


# Members of an enumeration take long to look up, and this one is needed for every request.
_SCH = int(LcoreType.SCH)


class Session:
    """One client, from when it is met until end() or leave().

    `null` is a descriptor of /dev/null that outlasts us. `registered` is called when the client has become the instance
    `owner`, `seen` when its lcore ids were looked up, before the first is granted, and `withdrawn` when it is about to
    be that instance no longer, though it is still connected.
    """

    def __init__(
        self,
        host: Host,
        interfaces: Lazy[Interfaces],
        observer: Observer,
        peer: Peer,
        null: int,
        registered: Callable[[], None],
        withdrawn: Callable[[], None],
        seen: Callable[[eal.Lcores], None],
        lender: Loans | None,
        grants: Grants | None = None,
    ) -> None:
        self._loans = lender
        self._host = host
        self.interfaces = interfaces
        self._observer = observer
        self._peer = peer
        self._null = null
        self._registered = registered
        self._withdrawn = withdrawn
        self._seen = seen
        self._instance: Instance | None = None
        self.client: Client | None = None  # the same, for whoever serves interfaces
        self._who: Process | None = None  # the same, as the table has it
        self._own = OwnClaims(host, self._is_us)
        self._over = False
        self._introduced = False
        self._lease: Lease | None = None  # once looked up
        self._lcores: eal.Lcores | None = None  # once looked up
        self.grants = Grants(host) if grants is None else grants  # by lcore id
        self._refused: set[int] = set()  # lcores that are lent, of which that is said
        self._refused_all = False  # which is said once
        self._said = ""  # of it in the log, last, which is not repeated
        self.dialect: Dialect | None = None
        self.owner = NOBODY  # 0: not registered

    def resume(self, owner: TableOwner, dialect: Dialect, lcores: eal.Lcores | None) -> None:
        """Be that of an instance that is in the table already. OSError if it is not."""
        self._instance = self._host.adopt(owner)
        self._lcores = lcores
        self.owner, self.dialect = owner, dialect
        if (info := self._host.inspect(owner)) is None:
            raise OSError(errno.ESRCH, "its instance is gone")
        self._name(self._identify(info.hostname, info.start_ticks))
        if info.parent:  # else it may have a lease that was none
            self._lease = Lease(info.parent)
        for lcore in self._host.snapshot().lcores:
            if lcore.owner.owner == owner:
                self.grants.hold(lcore.id, lcore.number)
        for lcore_id, cpu in self._own.resume(info).items():
            self.grants.hold(lcore_id, cpu)
        self._share()

    def introduce(self, instance: Instance, dialect: Dialect) -> None:
        """Be that of an instance that C has registered, without a lease. OSError if it is not in the table."""
        self._introduced = True
        self._instance, self.owner, self.dialect = instance, instance.owner, dialect
        if (info := self._host.inspect(self.owner)) is None:  # who may write the table has removed it
            raise OSError(errno.ESRCH, "its instance is gone")
        self._name(Process(*(getattr(info, name) for name in Process._fields)))
        self._share()
        self._registered()

    def end(self) -> Callable[[], None]:
        """Give back all that was granted. What is returned does so with what it has of interfaces, and is to be called
        once no work for it is left."""
        self._over = True
        for lcore_id in self.grants:
            self.put(lcore_id)
        client = self.client
        if self._instance is None or client is None:
            return lambda: None
        with suppress(InstanceGone):  # C has met the end
            self._instance.unregister()
        self._instance = None  # for work that is not done yet
        self._share()
        return lambda: self.interfaces.tell(lambda interfaces: interfaces.gone(client))

    def leave(self) -> None:
        """Everything stays in the table."""
        self._over = True
        self._own.leave()
        if self._instance:
            self._instance.close()

    @property
    def owners(self) -> set[TableOwner]:
        """The client's owners in the table."""
        return {self.owner} | self._own.owners

    @property
    def lcores(self) -> int:
        """How many it was granted here."""
        return len(self.grants)

    def warn_failed(self, request: str, error: OSError) -> None:
        """Its request was answered with an error; the log says why, once."""
        if str(error) != self._said:
            self._said = str(error)
            log.warning("pid %d, %s: %s", self._peer.pid, request, reason(error))

    def warn_broken(self, request: str) -> None:
        """Logs an exception that the answering function should not have raised."""
        log.exception("pid %d, %s", self._peer.pid, request)

    # -- registration

    def register(self, body: wire.Register | wire.TooManyInterfaces) -> int | Coroutine[Any, Any, int]:
        """0 or a negative errno, as the others unless they say more; or the work that leads to it."""
        if isinstance(body, wire.TooManyInterfaces):
            return -errno.EINVAL
        refusal = self._refusal()
        return refusal if refusal or (self._instance and not body.interfaces) else self._register(body)

    def _refusal(self) -> int:
        """The errno that REGISTER is refused with, or 0."""
        pid, uid = self._peer.pid, self._peer.uid
        if not self._peer.admitted:
            log.warning("uid %d (pid %d) is not in the group that may use this socket: refused", uid, pid)
            return -errno.EACCES
        if self._peer.pidfd is None:
            log.warning("pid %d is refused: %s", pid, self._peer.unseen, extra=SELDOM)
            return -errno.EPERM
        return 0

    async def _register(self, body: wire.Register) -> int:
        new = self._instance is None
        if new:
            found, start_ticks = await lease.find(self._host, self._observer, self._peer.pid)
            if self._over:
                return -errno.ESRCH
            try:
                self._become(body, found, start_ticks)
            except OSError as error:  # no record left, or no descriptor
                log.error("cannot register pid %d: %s", self._peer.pid, reason(error))
                return -(error.errno or errno.EIO)
        elif self._introduced and self._lease is None:
            await self._look_up()
        assert self.client
        if body.interfaces:
            return await self._name_interfaces(self.client, body.interfaces, new)
        return 0

    async def _look_up(self) -> None:
        """The lease of a client that was registered without, by C or by an earlier daemon. OSError: it cannot be a
        tenant now."""
        found, start_ticks = await lease.find(self._host, self._observer, self._peer.pid)
        if not (found.parent and self._introduced and self._instance and self._who):
            self._lease = lease.late(found)
            return
        # Nothing was granted to it yet, nor has it named an interface: so it may be another.
        who, before = self._who._replace(start_ticks=start_ticks), self._instance
        instance, self._lease = lease.register(self._host, who, found)
        self._withdrawn()
        self._instance, self.owner = instance, instance.owner
        self._share()
        self._name(who)
        self._registered()
        before.unregister()

    def _become(self, body: wire.Register, found: Lease, start_ticks: int) -> None:
        """OSError if it is not registered."""
        who = self._identify(body.hostname, start_ticks)
        self._instance, self._lease = lease.register(self._host, who, found)
        self.dialect, self.owner = body.dialect, self._instance.owner
        self._share()
        self._name(who)
        self._registered()

    def _name(self, who: Process) -> None:
        self._who = who
        # By its own word only the table shall call its host.
        self.client = Client(self.owner, who._replace(hostname=os.uname().nodename))

    def _identify(self, hostname: str, start_ticks: int) -> Process:
        if self._peer.pidfd is None:
            raise OSError(errno.EPERM, self._peer.unseen)
        return process.identify(self._peer.pidfd, self._peer.pid, self._peer.uid, hostname, start_ticks)

    async def _name_interfaces(self, client: Client, interfaces: tuple[int, ...], new: bool) -> int:
        if await self._serve(client, interfaces):
            return 0
        pid, named = self._peer.pid, ", ".join(map(str, interfaces))
        if self.dialect is Dialect.A:
            # It would go on with the System V table, unseen. So it gets lcores here, and errors for the interface.
            text = "pid %d is registered, though not all of interfaces %s are served: what it asks for there is refused"
            log.warning(text, pid, named)
            return 0
        log.warning("pid %d is not registered, as not all of interfaces %s are served", pid, named)
        if new and self._instance:  # else it was registered before, or has ended meanwhile
            self._withdrawn()
            self._instance.unregister()
            self.interfaces.tell(lambda served: served.gone(client))
            self._instance = self.client = self._lease = self.dialect = None
            self.owner = NOBODY
            self._share()
        return -errno.ENODEV

    async def _serve(self, client: Client, interfaces: tuple[int, ...]) -> bool:
        """False if not all of them are served, which the log says."""
        try:
            served = await self.interfaces.get()
        except OSError as error:
            log.error("interfaces %s: %s", ", ".join(map(str, interfaces)), error.strerror or error)
            return False
        return await served.register(client, interfaces)

    # -- interfaces

    def open_xsk(self, body: wire.OpenXsk) -> int | Coroutine[Any, Any, Reply]:
        """With the socket and its memory."""
        return self._open_xsk(self.client, body) if self.client else -errno.EPERM

    async def _open_xsk(self, client: Client, body: wire.OpenXsk) -> Reply:
        answer, xsk = await (await self.interfaces.get()).open_xsk(client, body)
        kept = () if xsk.channel is None else (xsk.channel,)
        return Reply(wire.encode(Type.XSK, answer), given=(xsk.socket, xsk.umem), kept=kept)

    async def map_of(self, body: wire.Interface) -> Reply:
        """With the interface's xsks_map. What to hand out instead, if there is none or it is not for this client,
        depends on the client."""
        if self._peer.admitted:
            try:
                served = await self.interfaces.now()
                if served and (known := served.map_of(body.ifindex)) is not None:
                    return Reply(b"\0", given=(os.dup(known),))
            except OSError as error:  # no descriptor is left
                log.error("pid %d gets no map: %s", self._peer.pid, reason(error))
            except Exception:
                log.exception("pid %d gets no map", self._peer.pid)
        # One of dialect A crashes without a descriptor; on what is no BPF map it fails cleanly.
        return Reply(b"\0", lent=(self._null,) if self.dialect is Dialect.A else ())

    # -- lcores

    def get(self, lcore_id: int) -> int | Coroutine[Any, Any, int]:
        """Grant it, if that can be."""
        if self._instance and (self._lcores is None or self._lease is None):
            self._lcores = self._lcores or eal.at_once(self._peer.pid)
            if self._lcores is None or self._lease is None:
                return self._get_later(lcore_id)
            self._check_lcores()
            self._share()
        return self._grant(lcore_id)

    def put(self, lcore_id: int) -> int:
        """Take it back."""
        if self._instance is None:
            return -errno.EPERM
        cpu = self.grants.drop(lcore_id)
        if cpu is None:
            return -errno.EINVAL
        if not self._own.give_back(cpu):
            with suppress(MtlshmError):  # an operator has taken it meanwhile
                self._instance.release(cpu)
        return 0

    def _get(self, lcore_id: int) -> int:
        if self._instance is None or self._lcores is None:
            return -errno.EPERM
        if lcore_id in self.grants:
            return -errno.EBUSY
        cpu = self._cpu(lcore_id)
        if cpu is None:
            self._say(f"lcore {lcore_id} stands for no CPU: no worker thread of it, or no online CPU, has that number")
            return -errno.EINVAL
        assert self._lease
        assert self._who
        try:
            refusal = self._lease.refusal(self._host)
            if (refusal or not self._claim(self._instance, cpu)) and not self._own.take(self._who, cpu):
                self._check_lease(refusal)
                return -(refusal or errno.EBUSY)
        except MtlshmError as error:
            return -errno.EINVAL if error.errno == errno.ERANGE else -(error.errno or errno.EIO)
        self._granted(lcore_id, cpu)
        return 0

    def _share(self) -> None:
        """Tells C what it may grant: exactly what _get() would."""
        may = self._lcores is not None and self._lease is not None and not self._lease.error
        self.grants.allow(self._instance, self._lcores.known() if self._lcores and may else None)

    def _claim(self, instance: Instance, cpu: int) -> bool:
        try:
            instance.claim(cpu, _SCH)
        except Busy:
            return False
        except MtlshmError as error:
            if error.errno != errno.EDOM:  # else its parent has not leased that one to it
                raise
            return False
        return True

    def _granted(self, lcore_id: int, cpu: int) -> None:
        self.grants.hold(lcore_id, cpu)
        if cpu != lcore_id:
            with suppress(MtlshmError):  # an operator has taken it this moment
                self._host.tag(cpu, self._own.owner(cpu) or self.owner, tag_of_id(lcore_id))

    async def _get_later(self, lcore_id: int) -> int:
        if self._lease is None:
            await self._look_up()
        if self._lcores is None:
            self._lcores = await eal.in_a_while(self._observer, self._peer.pid)
        self._check_lcores()
        self._share()
        value = self._grant(lcore_id)
        return value if isinstance(value, int) else await value

    def _check_lcores(self) -> None:
        if self._lcores and self._lcores.workers:
            self._seen(self._lcores)
        if self._lcores and not self._lcores.seen:
            self._say(
                "its threads are not seen from here (another PID namespace, hidepid=, or too many): its lcore ids are "
                "taken for CPU numbers, which is wrong with DPDK 25.11 and later; if it has that, run mtlshmd as root "
                "and in the PID namespace of the host"
            )

    def _check_lease(self, refusal: int) -> None:
        assert self._lease
        if (parent := self._lease.parent) and not self._host.alive(parent):
            self._lease = lease.gone()
            self._share()
            refusal = self._lease.error
        if refusal and not self._refused_all:
            self._refused_all = True
            log.warning("pid %d of uid %d: %s", self._peer.pid, self._peer.uid, self._lease.why)

    def _say(self, text: str) -> None:
        if text != self._said:
            self._said = text
            log.warning("pid %d of uid %d: %s", self._peer.pid, self._peer.uid, text)

    def _grant(self, lcore_id: int) -> int | Coroutine[Any, Any, int]:
        value = self._get(lcore_id)
        free = self._lease and not self._lease.parent and lcore_id not in self.grants
        if value == -errno.EBUSY and free and loans.is_lent(self._host, self._cpu(lcore_id)):
            return self._get_lent(lcore_id)
        return value

    def _cpu(self, lcore_id: int) -> int | None:
        return self._lcores.cpu(lcore_id) if self._lcores else None

    async def _get_lent(self, lcore_id: int) -> int:
        """Gives the client a lent, unused lcore, if nothing else is left for it."""
        cpu = self._cpu(lcore_id)
        assert cpu is not None
        if self._instance and self._loans and not loans.has_choice(self._host, self._lcores, self._peer.pid):
            if await self._loans.hand_over(cpu, self._instance, _SCH):
                self._granted(lcore_id, cpu)
                return 0
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
        return -errno.EBUSY

    def _is_us(self, info: InstanceInfo) -> bool:
        """Did the client's process register this one itself?"""
        if info.kind != Kind.SHM or not info.alive or self._peer.pidfd is None:
            return False
        with suppress(OSError):  # there is no /proc any more
            return pidfds.is_same(info, self._peer.pidfd, self._peer.pid)
        return False
