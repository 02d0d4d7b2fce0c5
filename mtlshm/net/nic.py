# SPDX-License-Identifier: BSD-3-Clause
"""The NICs' queues and flow rules, for owners: the ledger and ethtool brought together.

Every rule of ours is in the ledger before it is in the NIC, and until it is gone from there (see ledger.py); so
whatever is killed when, recover() finds it. What it finds decides:

    in the ledger              in the NIC               then
    complete, owner stays      as inserted              all is well
    not complete, or leaving   as inserted              it is deleted, then crossed out: nobody was told its number
    any                        nothing, something else  it is crossed out: an administrator was there

Where the driver chooses the place of a rule, chosen.py tells which one that is.

What is in the NIC and not in the ledger is somebody else's, and so is what is in the NIC otherwise than we inserted it.
An interface that is moved to another network namespace takes its rules along. They harm nobody there: at most, packets
come to the stack by another queue. So we follow it nowhere, but say what it keeps.
Looking and changing happen under the lock of tool.py, which a command that outlives us holds as well: nothing of
ours is under way when we look.

The queues' entries in xsks_map and the ports' in the filter are cleared by `clear`, which is called between finding out
what is to be cleared and crossing it out. Nobody else gets anything meanwhile: Ledger.alone().
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import sys
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator
from contextlib import ExitStack, asynccontextmanager, suppress
from itertools import count, islice

from mtlshm.net import chosen
from mtlshm.net.chosen import Chosen
from mtlshm.net.ethtool import Ethtool, Refused, Rule
from mtlshm.net.flow import FlowSpec
from mtlshm.net.ledger import CHOSEN_BY_DRIVER, Flow, Ledger, LedgerOwner, QueueNumber, number_at, patiently
from mtlshm.net.tool import Change, Tools

log = logging.getLogger(__name__)

Clear = Callable[[int, Iterable[int], Iterable[int]], None]
"""Removes ports of an interface from the filter, and the sockets at these queues from xsks_map."""

_ELSEWHERE = {  # with what a driver may refuse a place, rather than a rule
    errno.EINVAL,
    errno.EEXIST,
    errno.EBUSY,
    errno.ENOSPC,
    errno.ERANGE,
    errno.E2BIG,
    errno.EOPNOTSUPP,
    errno.EIO,  # for no reason that we know
}
_MORE_PLACES = 8

SOMEWHERE = "if it was moved to another network namespace"


class Nics:
    """All interfaces of this network namespace, by ifindex. ENODEV if there is no such interface."""

    def __init__(self, ledger: Ledger, tools: Tools, clear: Clear) -> None:
        self._ledger = ledger
        self._tools = tools
        self._ethtool = Ethtool(tools)
        self._clear = clear
        self._chosen = Chosen(ledger.path.parent)
        self._turn = asyncio.Lock()  # so that we do not wait for our own lock, in which there is no order

    async def claim_queue(self, owner: LedgerOwner, ifindex: int, most: int = sys.maxsize) -> QueueNumber:
        """A queue that nobody holds, never 0. ENOSPC if there is none. Queues from `most` on are of no use."""
        device = _name(ifindex)
        number = await self._ethtool.channels(device)
        try:
            return await patiently(self._ledger.claim_queue, owner, ifindex, min(number, most))
        except OSError as error:
            if error.errno == errno.ENOSPC and most < number:
                raise OSError(errno.ENOSPC, f"{_few(device, number, most)}, and all of them are in use") from None
            raise

    async def put_queue(self, owner: LedgerOwner, ifindex: int, queue: QueueNumber) -> None:
        """It is free. EINVAL if it is not the owner's, EBUSY if flow rules lead to it."""
        await patiently(self._put_queue, owner, ifindex, queue)

    def _put_queue(self, owner: LedgerOwner, ifindex: int, queue: QueueNumber) -> None:
        with self._ledger.alone():
            self._ledger.check_queue(owner, ifindex, queue)
            self._clear(ifindex, (), (queue,))
            self._ledger.put_queue(owner, ifindex, queue)

    async def add_flow(
        self, owner: LedgerOwner, ifindex: int, queue: QueueNumber, spec: FlowSpec, most: int = sys.maxsize
    ) -> int:
        """Steer packets to a queue of the owner's; nobody's queue becomes so. Returns the rule's location. `most` as in
        claim_queue()."""
        async with self._changing() as change:
            device = _name(ifindex)
            number = await self._ethtool.channels(device)
            if not 0 < queue < number:
                raise OSError(errno.EINVAL, f"{device} has the queues 1-{number - 1} to steer to, not {queue}")
            if queue >= most:
                raise OSError(errno.EINVAL, f"{_few(device, number, most)}: none on queue {queue}")
            rules = await self._ethtool.rules(device)
            refusals = []
            for place in self._places(ifindex, rules):
                try:
                    number = self._unused_number(ifindex) if place is None else place
                    return await self._insert(change, device, Flow(ifindex, number, queue, owner, spec, False), rules)
                except Refused as error:
                    refusals.append(error)
                    if error.errno not in _ELSEWHERE:
                        break
            raise refusals[0]

    def _places(self, ifindex: int, rules: Collection[int]) -> Iterator[int | None]:
        """Where to try to insert a rule. Not all drivers take it at any free place: some choose themselves (bnxt, sfc),
        some have one table for several interfaces, whose rules each lists for itself (ENA)."""
        taken = {*rules, *(flow.location for flow in self._ledger.flows(ifindex))}
        free = (place for place in count(1) if place not in taken)
        yield next(free)
        yield None  # where the driver likes
        elsewhere = {flow.location for flow in self._ledger.flows()}
        yield from islice((place for place in free if place not in elsewhere), _MORE_PLACES)

    def _unused_number(self, ifindex: int) -> int:
        """For a rule whose place is not known yet."""
        return max((flow.location + 1 for flow in self._ledger.flows(ifindex)), default=0) | CHOSEN_BY_DRIVER

    async def _insert(self, change: Change, device: str, flow: Flow, rules: Collection[int]) -> int:
        """Where `rules` are already. Returns the number by which its owner is to know it. Refused by the driver."""
        with ExitStack() as held:
            output = None
            if flow.place is None:
                output = held.enter_context(self._chosen.file(flow.ifindex, flow.location, rules))
            await patiently(self._ledger.intend_flow, flow.owner, flow.ifindex, flow.queue, flow.location, flow.spec)
            there = None
            try:
                there = await self._ethtool.insert(change, device, flow.place, flow.spec, flow.queue, rules, output)
                number = number_at(there)
                await patiently(self._ledger.complete_flow, flow.ifindex, flow.location, number)
            except Refused:
                await self._cross_out(flow)
                raise
            except OSError:
                # Not there if the interface went meanwhile.
                if flow in self._ledger.flows(flow.ifindex, flow.owner):
                    await self._try_to_withdraw(change, flow, there)
                raise
            self._chosen.forget(flow.ifindex, flow.location)
            return number

    async def delete_flow(self, owner: LedgerOwner, ifindex: int, location: int) -> None:
        """EINVAL if the rule is not the owner's."""
        async with self._changing() as change:
            ours = (flow for flow in self._ledger.flows(ifindex, owner) if flow.location == location and flow.complete)
            if (flow := next(ours, None)) is None:
                raise OSError(errno.EINVAL, f"interface {ifindex}: there is no rule of yours at {location}")
            await self._withdraw(change, flow)

    async def drop(self, owner: LedgerOwner) -> bool:
        """It has ended: take back all that it has. False if a rule could not be deleted: call it again."""
        await patiently(self._ledger.leave, owner)
        if self._ledger.flows(owner=owner):
            try:
                async with self._changing() as change:
                    for flow in self._ledger.flows(owner=owner):
                        await self._try_to_withdraw(change, flow)
            except OSError as error:
                log.error("cannot delete the flow rules of owner %d yet: %s", owner, error)
        return await patiently(self._release, owner)

    async def recover(self) -> None:
        """Finish or undo what was left half done, and forget what is gone. At the start."""
        async with self._changing() as change:
            state = self._ledger.state()
            known = {row.ifindex for rows in (state.uses, state.queues, state.flows, state.ports) for row in rows}
            for ifindex in known:
                if _name_now(ifindex) is None:
                    log.info("interface %d is gone", ifindex)
                    await self.lose(ifindex)
            leaving = {owner.id for owner in state.owners if owner.leaving}
            for flow in self._ledger.flows():
                if flow.owner in leaving or not flow.complete:
                    await self._try_to_withdraw(change, flow)
            for ifindex in {flow.ifindex for flow in self._ledger.flows()}:
                await self._forget_the_gone(ifindex)
            self._chosen.forget_all_but((flow.ifindex, flow.location) for flow in self._ledger.flows())
        for owner in leaving:
            await patiently(self._release, owner)

    async def lose(self, ifindex: int, place: str = SOMEWHERE) -> None:
        """An interface is gone, and with it all that anyone had of it; but for our rules, if the NIC has another place.

        `place` says which, for people: the rules are left there, and who wants to delete them has to know of them. It
        is empty if the NIC is known to be gone.
        """
        rules = [flow.place for flow in self._ledger.flows(ifindex) if flow.place is not None]
        await patiently(self._ledger.forget_interface, ifindex)
        if rules and place:
            commands = "; ".join(f"ethtool -N DEVICE delete {location}" for location in rules)
            log.warning("interface %d keeps flow rules of ours %s; to delete them there: %s", ifindex, place, commands)

    def _release(self, owner: LedgerOwner) -> bool:
        """All but flow rules, and the queues they lead to."""
        with self._ledger.alone():
            led_to = {(flow.ifindex, flow.queue) for flow in self._ledger.flows(owner=owner)}
            queues = [
                (each.ifindex, each.queue)
                for each in self._ledger.queues(owner=owner)
                if (each.ifindex, each.queue) not in led_to
            ]
            ports = self._ledger.last_references(owner)
            for ifindex in ports.keys() | {ifindex for ifindex, _ in queues}:
                self._clear(ifindex, ports.get(ifindex, ()), [queue for index, queue in queues if index == ifindex])
            return self._ledger.settle(owner)

    async def _withdraw(self, change: Change, flow: Flow, there: int | None = None) -> None:
        """Delete a rule if it is there and still ours, and cross it out. `there`: we know better than the ledger."""
        device = _name_now(flow.ifindex)  # None: the rule is gone with its interface
        if device:
            rules = await self._rules(device)
            place = flow.place if there is None else there
            if place is None:
                place = self._place_of(flow, device, rules)
            if place is not None and self._is_there(flow, place, rules):
                await self._ethtool.delete(change, device, place)
        await self._cross_out(flow)

    async def _cross_out(self, flow: Flow) -> None:
        await patiently(self._ledger.forget_flow, flow.ifindex, flow.location)
        self._chosen.forget(flow.ifindex, flow.location)

    def _place_of(self, flow: Flow, device: str, rules: dict[int, Rule]) -> int | None:
        """Where the driver has put it, if that is certain."""
        others = {other.place for other in self._ledger.flows(flow.ifindex)}
        said = self._chosen.read(flow.ifindex, flow.location)
        if (place := chosen.told(said)) is not None:
            return None if place in others else place
        for number in rules.keys() - others - chosen.taken(said):
            if rules[number] == Rule.of(flow.spec, flow.queue):
                text = "may be a dead client's, or somebody else's, and stays; to delete it: ethtool -N"
                log.warning("%s: the rule at %d %s %s delete %d", device, number, text, device, number)
        return None

    async def _try_to_withdraw(self, change: Change, flow: Flow, there: int | None = None) -> None:
        try:
            await self._withdraw(change, flow, there)
        except OSError as error:
            where = "the rule whose place the driver chose" if flow.place is None else f"the rule at {flow.place}"
            log.error("%s of interface %d stays for now: %s", where, flow.ifindex, error)

    async def _forget_the_gone(self, ifindex: int) -> None:
        try:
            rules = await self._rules(_name(ifindex))
        except OSError as error:
            log.error("cannot tell which rules of interface %d are still there: %s", ifindex, error)
            return
        for flow in self._ledger.flows(ifindex):
            if flow.complete and flow.place is not None and not self._is_there(flow, flow.place, rules):
                await patiently(self._ledger.forget_flow, ifindex, flow.location)

    async def _rules(self, device: str) -> dict[int, Rule]:
        try:
            return await self._ethtool.rules(device)
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:  # switched off since, or another driver's now
                return {}
            raise

    def _is_there(self, flow: Flow, place: int, rules: dict[int, Rule]) -> bool:
        there = rules.get(place)
        if there == Rule.of(flow.spec, flow.queue):
            return True
        if flow.complete:
            what = "was deleted" if there is None else "is somebody else's now, and is left alone"
            log.warning("the rule at %d of interface %d %s", place, flow.ifindex, what)
        return False

    @asynccontextmanager
    async def _changing(self) -> AsyncIterator[Change]:
        async with self._turn, self._tools.changing() as change:
            yield change


def _few(device: str, number: int, most: int) -> str:
    only = f"its XDP programs can have sockets on 1-{most - 1} only (see docs/interfaces.md: fused)"
    return f"{device}: of {number} queues, {only}"


def _name(ifindex: int) -> str:
    if name := _name_now(ifindex):
        return name
    raise OSError(errno.ENODEV, f"there is no interface {ifindex} in this network namespace")


def _name_now(ifindex: int) -> str | None:
    """It may be renamed or gone the next moment."""
    with suppress(OSError):
        return socket.if_indextoname(ifindex)
    return None
