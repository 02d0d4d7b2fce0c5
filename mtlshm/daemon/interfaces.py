# SPDX-License-Identifier: BSD-3-Clause
"""Interfaces for the clients of the manager socket: XDP programs, ports, queues, flow rules and sockets.

The ledger has the owners; the kernel and the NIC have the state. net/ledger, net/nic.py and net/xdp.py keep them
consistent, whatever is killed at any time. This module decides when to do something.

AN INTERFACE IS LOADED from when the first client names it until the last client has ended, and as long as mtlshm-ctl
keeps it. If it cannot be loaded, each client that asks for something there is told why. If somebody detaches the
programs, as DPDK's AF_XDP driver does when it closes, they are put back, with ports and sockets as they were.

AN OWNER is a registration. It ends when its connection does. A restart of the daemon ends no owner: if an owner in the
ledger has a living process, a pidfd watches it, because libmtl does not come back to say goodbye. The same holds for
owners whose connection was kept for us. The first of the two ends counts.

ORDER. A client asks for one thing at a time, and its end is handled after its last request. Owners of an earlier daemon
are the exception: their request is then refused. Loading and unloading of one interface happen in turn. Nothing else
waits: neither other interfaces nor lcores.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections import defaultdict
from collections.abc import Coroutine, Iterable
from contextlib import suppress
from functools import partial
from itertools import chain, repeat
from typing import Any

from mtlshm import wire
from mtlshm.daemon.deaths import Deaths
from mtlshm.daemon.figures import Figures, figures
from mtlshm.daemon.interface_events import InterfaceEvents
from mtlshm.daemon.pace import Pace
from mtlshm.daemon.process import Client
from mtlshm.daemon.sockets import Sockets
from mtlshm.net import links, news
from mtlshm.net.attached import Attached, Way, look
from mtlshm.net.flow import FlowSpec
from mtlshm.net.gate import Gate
from mtlshm.net.ledger import Ledger, LedgerOwner, Owner, QueueNumber, patiently
from mtlshm.net.nic import SOMEWHERE, Nics
from mtlshm.net.tool import Tools
from mtlshm.net.xdp import Loader, in_the_way
from mtlshm.net.xsk import Layout, XskSocket

log = logging.getLogger(__name__)

# What somebody detaches is put back, but two who undo each other's work shall not keep the NIC from its own.
_PUT_BACK = 5, 60.0  # times within so many seconds
_PUT_BACK_AGAIN = 15.0  # seconds; if it could not be
_DROP_AGAIN = (1.0, 10.0, 60.0)  # seconds; the last again and again, as somebody else may want what is not free
_GONE = LedgerOwner(0)  # nobody has that number


class Interfaces:
    """Serves clients from start() to close(), in the event loop.

    `way` is how to load XDP programs; for `umem_limit` see sockets.py.
    """

    def __init__(
        self, ledger: Ledger, tools: Tools, loader: Loader, way: Way, umem_limit: int, events: InterfaceEvents
    ) -> None:
        self._ledger = ledger
        self._loader = loader
        self.tool_failures = tools.failures
        self._nics = Nics(ledger, tools, self._clear)
        self._way = way
        self._events = events
        self._sockets = Sockets(ledger, self._nics, self._gate, umem_limit)
        self._loop = asyncio.get_running_loop()
        self._owners: dict[tuple[int, ...], LedgerOwner] = {}  # in the ledger, by Client.identity
        self._orphans = Deaths()  # by the owner in the ledger
        self._gates: dict[int, Gate] = {}  # by ifindex, as all that follows
        self._failures: dict[int, OSError] = {}
        self._paces: defaultdict[int, Pace] = defaultdict(lambda: Pace(*_PUT_BACK))
        self._waiting: set[int] = set()  # to be looked at later
        self._turns: defaultdict[int, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Go on where an earlier daemon stopped. OSError (EBUSY) if another serves."""
        await patiently(self._ledger.serve, patience=0)
        following = self._loop.create_future()
        self._in_background(news.follow(self, following))
        await following  # first, so that nothing falls between
        for use in self._ledger.uses():
            with suppress(OSError):  # it is gone
                await self._load(use.ifindex)
        await self._nics.recover()
        for owner in self._ledger.owners():
            if owner.leaving:
                self._in_background(self._drop(owner.id))
            else:
                self._adopt(owner)
        for ifindex in self._loader.interfaces():
            try:
                await self._unload_unused(ifindex)
            except OSError as error:  # no reason not to serve the others
                log.error("interface %d stays loaded: %s", ifindex, error.strerror or error)

    def close(self) -> None:
        """Stop. Everything stays in place."""
        for task in self._tasks:
            task.cancel()
        self._orphans.close()
        for gate in self._gates.values():
            gate.close()
        self._sockets.close()
        self._ledger.close()

    # -- what clients ask for

    async def register(self, client: Client, interfaces: tuple[int, ...]) -> bool:
        """A client will use these. False if not all can be served; then it is told why when it asks for something."""
        all_are = True
        for ifindex in dict.fromkeys(interfaces):
            try:
                await self._use(client, ifindex)
            except OSError as error:
                log.error("interface %d is not served: %s", ifindex, error.strerror or error)
                all_are = False
        return all_are

    def in_use(self, ifindex: int) -> bool:
        """Whether any client has named the interface."""
        return self._ledger.in_use(ifindex)

    async def add_port(self, client: Client, asked: wire.Filter) -> int:
        """Let packets to that port through. This and the next five return 0 or an id; OSError if it cannot be done."""
        owner = await self._use(client, asked.ifindex)
        if await patiently(self._ledger.add_port, owner, asked.ifindex, asked.port):
            self._gate(asked.ifindex).set_port(asked.port, True)
        return 0

    async def drop_port(self, client: Client, asked: wire.Filter) -> int:
        """Let them through no longer."""
        if await patiently(self._ledger.drop_port, self._owner(client), asked.ifindex, asked.port):
            self._clear(asked.ifindex, [asked.port], [])
        return 0

    async def claim_queue(self, client: Client, asked: wire.Interface) -> int:
        """Returns the queue."""
        owner = await self._use(client, asked.ifindex)
        queue = await self._nics.claim_queue(owner, asked.ifindex, self._gate(asked.ifindex).queues)
        self._events.nic(asked.ifindex, f"queue {queue} claimed", client.process)
        return queue

    async def put_queue(self, client: Client, asked: wire.Interface) -> int:
        """Give it back."""
        await self._nics.put_queue(self._owner(client), asked.ifindex, QueueNumber(asked.queue))
        self._events.nic(asked.ifindex, f"queue {asked.queue} given back", client.process)
        return 0

    async def add_flow(self, client: Client, asked: wire.Interface) -> int:
        """Returns the id of the flow rule."""
        owner = await self._use(client, asked.ifindex)
        ports = asked.source_port, asked.destination_port
        spec = FlowSpec.from_wire(asked.flow_type, asked.source, asked.destination, *ports)
        most = self._gate(asked.ifindex).queues
        rule = await self._nics.add_flow(owner, asked.ifindex, QueueNumber(asked.queue), spec, most)
        self._events.nic(asked.ifindex, f"rule {rule} to queue {asked.queue}", client.process)
        return rule

    async def delete_flow(self, client: Client, asked: wire.Interface) -> int:
        """Delete the flow rule with that id."""
        await self._nics.delete_flow(self._owner(client), asked.ifindex, asked.flow_id)
        self._events.nic(asked.ifindex, f"rule {asked.flow_id} deleted", client.process)
        return 0

    async def open_xsk(self, client: Client, body: wire.OpenXsk) -> tuple[wire.Xsk, XskSocket]:
        """A queue, which becomes the client's, and a socket bound to it; or OSError."""
        ifindex = body.ifindex or await links.index_of(body.name)
        layout = Layout(body.frame_size, body.frames, body.fill, body.completion, body.rx, body.tx)
        self._sockets.check(layout)
        await self._use(client, ifindex)
        opened = await self._sockets.open(partial(self._owner, client), client.process.uid, ifindex, layout)
        self._events.nic(ifindex, f"queue {opened[0].value} with a socket", client.process)
        return opened

    def map_of(self, ifindex: int) -> int | None:
        """The descriptor of the interface's xsks_map, which stays ours."""
        gate = self._gates.get(ifindex)
        return gate.xsks_map.fd if gate else None

    def gone(self, client: Client) -> None:
        """Nobody asks for this owner any more; what it had is free."""
        if number := self._owners.pop(client.identity, _GONE):
            self._orphans.forget(number)
            self._in_background(self._drop(number))
            for ifindex in {queue.ifindex for queue in self._ledger.queues(owner=number)}:
                self._events.nic(ifindex, "all queues and rules taken back", client.process)

    # -- owners

    def _owner(self, client: Client) -> LedgerOwner:
        """Its number in the ledger; _GONE if it has none, or if its process has died meanwhile."""
        return self._owners.get(client.identity, _GONE)

    def _adopt(self, owner: Owner) -> None:
        """One that an earlier daemon entered."""
        client = Client(owner.token, owner.process)
        self._owners[client.identity] = owner.id
        self._orphans.adopt(owner.id, lambda: owner.process, partial(self.gone, client))

    async def _drop(self, owner: LedgerOwner) -> None:
        """Until nothing is left of it."""
        used = {use.ifindex for use in self._ledger.uses() if owner in use.owners}
        for pause in chain(_DROP_AGAIN, repeat(_DROP_AGAIN[-1])):
            settled = False
            try:
                settled = await self._nics.drop(owner)
                for ifindex in sorted(used):
                    await self._unload_unused(ifindex)
                    used.discard(ifindex)
            except OSError as error:
                log.error("what owner %d had cannot all be taken back yet: %s", owner, error.strerror or error)
            if settled and not used:
                return
            await asyncio.sleep(pause)

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            log.error("interfaces: %s", error, exc_info=None if isinstance(error, OSError) else error)

    # -- interfaces

    async def _use(self, client: Client, ifindex: int) -> LedgerOwner:
        """See to it that the interface is loaded, and stays so for this client. OSError if it is not."""
        # Before anything is remembered of it: clients may name what they like.
        try:
            socket.if_indextoname(ifindex)
        except OSError:
            raise OSError(errno.ENODEV, f"there is no interface {ifindex} in mtlshmd's network namespace") from None
        if client.identity not in self._owners:
            self._owners[client.identity] = await patiently(self._ledger.enter, client.owner, client.process)
        async with self._turns[ifindex]:
            # Until now anyone might have unloaded it, if this is the first who uses it.
            first = await patiently(self._ledger.use, self._owner(client), ifindex)
            if first or (ifindex not in self._gates and ifindex not in self._failures):
                await self._load(ifindex)
        if failure := self._failures.get(ifindex):
            raise OSError(failure.errno, failure.strerror)
        return self._owner(client)

    async def _load(self, ifindex: int) -> None:
        """Or adopt what an earlier daemon or mtlshm-ctl loaded. Why it failed is kept for who asks."""
        failed = self._failures.pop(ifindex, None)
        try:
            gate = await self._loader.load(ifindex, self._way)
        except OSError as error:
            if error.errno == errno.ENODEV:
                self._let_go(ifindex)
                await self._nics.lose(ifindex)
                raise
            self._fail(ifindex, error, failed)
            return
        self._let_go(ifindex)
        self._gates[ifindex] = gate
        self._set_ports(gate)
        log.info("%s: %s, %s mode, %d ports", gate.attached.name, gate.way, gate.mode, len(gate.ports()))
        self._events.xdp(ifindex, f"served: {gate.way}, {gate.mode} mode")

    def _fail(self, ifindex: int, error: OSError, before: OSError | None = None) -> None:
        """Records a failure for clients that ask, and logs it once. The gate stays, until its programs are put back."""
        before = self._failures.get(ifindex, before)
        if before is None or before.errno != error.errno:
            log.error("interface %d: %s", ifindex, error.strerror or error)
            self._events.xdp(ifindex, f"not served: {error.strerror or error}")
        self._failures[ifindex] = error

    def _set_ports(self, gate: Gate) -> None:
        wanted = self._ledger.ports(gate.attached.ifindex)
        for port in gate.ports() ^ wanted:
            gate.set_port(port, port in wanted)

    async def _unload_unused(self, ifindex: int) -> None:
        async with self._turns[ifindex]:
            if not self._ledger.in_use(ifindex):
                gate = self._gates.get(ifindex)
                ours = [program.id for program in gate.attached.ours] if gate else []
                self._let_go(ifindex)
                # mtlshm-ctl may keep it from now on.
                await self._loader.unload(ifindex, lambda: self._ledger.in_use(ifindex), ours)
                if gate:
                    self._events.xdp(ifindex, "no longer served: its last client has ended")

    def _let_go(self, ifindex: int) -> None:
        self._failures.pop(ifindex, None)
        if gate := self._gates.pop(ifindex, None):
            gate.close()

    def _gate(self, ifindex: int) -> Gate:
        if gate := self._gates.get(ifindex):
            return gate
        raise OSError(errno.ENODEV, f"interface {ifindex} is not loaded any more")

    def _clear(self, ifindex: int, ports: Iterable[int], queues: Iterable[int]) -> None:
        """Lets the packets of these ports and queues go to the kernel again."""
        if gate := self._gates.get(ifindex):
            for port in ports:
                gate.set_port(port, False)
            for queue in queues:
                gate.remove_socket(queue)

    def figures(self) -> list[Figures]:
        """The present figures of all interfaces in use."""
        return figures(self._ledger, self._gates, self._failures)

    # -- what comes and goes outside

    def concerns(self, ifindex: int) -> bool:
        """Are there programs of ours on it, or should there be?"""
        return ifindex in self._gates or ifindex in self._failures

    async def missed(self) -> None:
        """Anything may have happened to any of them: look at each."""
        for ifindex in self._gates.keys() | self._failures.keys():
            try:
                socket.if_indextoname(ifindex)
            except OSError:
                await self.lost(ifindex)
            else:
                await self.changed(ifindex)

    async def changed(self, ifindex: int) -> None:
        """Something on it has changed: put back what somebody detached, or try again what failed."""
        if ifindex in self._gates:
            await self._check(ifindex)
        else:
            await self._try_again(ifindex)

    async def lost(self, ifindex: int, place: str = SOMEWHERE) -> None:
        """It is gone, or is at that place now: forget what its clients had of it."""
        async with self._turns[ifindex]:
            await self._nics.lose(ifindex, place)
            await self._loader.unload(ifindex)
            if place and (gate := self._gates.get(ifindex)):
                commands = "; ".join(f"xdp-loader unload DEVICE --id {program.id}" for program in gate.attached.ours)
                log.warning(
                    "interface %d keeps our XDP programs %s; to detach them there: %s", ifindex, place, commands
                )
            self._let_go(ifindex)  # last: if something fails, it is found again
            log.warning("interface %d is gone, and with it all that its clients had of it", ifindex)
            self._events.gone(ifindex)

    async def _check(self, ifindex: int) -> None:
        """Something has changed; our programs should still be there."""
        async with self._turns[ifindex]:
            gate = self._gates.get(ifindex)
            if gate is None:
                return
            with suppress(OSError):  # gone; that is another message
                now = await look(ifindex)
                if [program.id for program in now.ours] == [program.id for program in gate.attached.ours]:
                    if self._failures.pop(ifindex, None):
                        self._set_ports(gate)
                        log.info("%s: the XDP programs are attached again", now.name)
                elif not self._ledger.in_use(ifindex):  # mtlshm-ctl has unloaded it
                    self._let_go(ifindex)
                elif now.way:  # mtlshm-ctl has loaded it again
                    await self._load(ifindex)
                else:
                    await self._put_back(gate, now)

    async def _put_back(self, gate: Gate, now: Attached) -> None:
        """Somebody has detached our programs. The gate is kept until they are back, or another one is."""
        if text := in_the_way(now):  # theirs stays; when it goes, we hear of it
            self._fail(now.ifindex, OSError(errno.EBUSY, text))
            return
        what = f"{now.name}: somebody has detached the XDP programs that clients use"
        if pause := self._paces[now.ifindex].wait(self._loop.time()):
            text = f"{what}, again and again; they are put back in {pause:.0f} s"
            self._fail(now.ifindex, OSError(errno.ENETDOWN, text))
        else:
            log.warning("%s; putting them back", what)
            self._events.xdp(now.ifindex, "detached by somebody else; putting them back")
            sockets = gate.xsks_map.info.id
            await self._load(now.ifindex)
            if now.ifindex not in self._failures:
                if self._gates[now.ifindex].xsks_map.info.id != sockets:
                    log.error("%s: the sockets of its clients are lost; start these clients again", now.name)
                return
            pause = _PUT_BACK_AGAIN
        if now.ifindex not in self._waiting:
            self._waiting.add(now.ifindex)
            self._in_background(self._check_later(now.ifindex, pause))

    async def _check_later(self, ifindex: int, pause: float) -> None:
        await asyncio.sleep(pause)
        self._waiting.discard(ifindex)
        await self._check(ifindex)

    async def _try_again(self, ifindex: int) -> None:
        """Tries again: mtlshm-ctl may have loaded the programs, or the obstacle may be gone."""
        async with self._turns[ifindex]:
            with suppress(OSError):  # whoever asks is told
                if ifindex not in self._failures:
                    return
                if gate := await self._loader.find(ifindex):
                    gate.close()
                    await self._load(ifindex)
                elif self._failures[ifindex].errno == errno.EBUSY and not (await look(ifindex)).programs:
                    await self._load(ifindex)
