# SPDX-License-Identifier: BSD-3-Clause
"""Queues and flow rules of owners, with the stand-in for ethtool: the devices named here can do nothing themselves."""

from __future__ import annotations

import asyncio
import errno
import itertools
import random
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from lab.processes import DEADLINE
from lab.refusals import refused
from lab.stand_in import StandIn
from mtlshm import Process
from mtlshm.net.flow import FlowSpec, FlowType
from mtlshm.net.ledger import CHOSEN_BY_DRIVER, Ledger, Queue
from mtlshm.net.nic import Nics
from mtlshm.net.tool import Tools

LO = 1  # ifindex of lo, in any network namespace
GONE = 2**31 - 1  # of no interface
SPEC = FlowSpec(FlowType.UDP4, None, IPv4Address("239.1.1.1"), 0, 30002)
THEIRS = ("flow-type", "udp4", "dst-port", "9", "action", "1")  # an administrator's


class Filter:
    """What a test's XDP program would be told to clear."""

    def __init__(self) -> None:
        self.ports: set[tuple[int, int]] = set()
        self.queues: set[tuple[int, int]] = set()

    def clear(self, ifindex: int, ports: Iterable[int], queues: Iterable[int]) -> None:
        self.ports |= {(ifindex, port) for port in ports}
        self.queues |= {(ifindex, queue) for queue in queues}


class Bench:
    """Everything together, in one state directory."""

    def __init__(self, state: Path) -> None:
        self.ledger = Ledger(state)
        self.cleared = Filter()
        self.nics = Nics(self.ledger, Tools(state, timeout=DEADLINE), self.cleared.clear)

    def unfinished(self) -> bool:
        """Does the ledger know of anything half done?"""
        state = self.ledger.state()
        return any(not flow.complete for flow in state.flows) or any(owner.leaving for owner in state.owners)

    def owner(self, number: int = 1) -> int:
        return self.ledger.enter(number, Process(number, 1, 1, number, 0, "", "", ""))


@asynccontextmanager
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path / "state")
    try:
        yield bench
    finally:
        bench.ledger.close()


def administrator(*words: str) -> None:
    subprocess.run(["ethtool", "-N", "lo", *words], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize(("combined", "rx"), [(4, None), (None, 4), (3, 1)])
async def test_queues_are_those_it_has_but_for_the_first(
    tmp_path: Path, stand_in: StandIn, combined: int | None, rx: int | None
) -> None:
    stand_in.set("lo", combined=combined, rx=rx)
    async with bench(tmp_path) as b:
        a = b.owner()
        assert [await b.nics.claim_queue(a, LO) for _ in range(3)] == [1, 2, 3]
        with refused(errno.ENOSPC, "in use"):
            await b.nics.claim_queue(a, LO)
        await b.nics.put_queue(a, LO, 2)
        assert b.cleared.queues == {(LO, 2)}
        assert await b.nics.claim_queue(b.owner(2), LO) == 2
        with refused(errno.EINVAL):
            await b.nics.put_queue(a, LO, 2)
        with refused(errno.EINVAL):
            await b.nics.put_queue(a, LO, 0)
        assert b.cleared.queues == {(LO, 2)}


async def test_queues_that_can_have_no_socket_are_given_to_nobody(tmp_path: Path, stand_in: StandIn) -> None:
    """A NIC may have more than the map of its XDP programs."""
    stand_in.set("lo", combined=70)
    async with bench(tmp_path) as b:
        a = b.owner()
        assert [await b.nics.claim_queue(a, LO, 4) for _ in range(3)] == [1, 2, 3]
        with refused(errno.ENOSPC, "of 70 queues.* 1-3 only"):
            await b.nics.claim_queue(a, LO, 4)
        with refused(errno.EINVAL, "1-3 only.*none on queue 4"):
            await b.nics.add_flow(a, LO, 4, SPEC, 4)
        assert await b.nics.add_flow(a, LO, 3, SPEC, 4)
        assert await b.nics.claim_queue(a, LO, 71) == 4


async def test_ledger_is_locked_while_a_queue_is_cleared(tmp_path: Path, stand_in: StandIn) -> None:
    """Else who gets a port this moment finds it let through, and then it is not."""
    stand_in.set("lo", combined=4)
    async with bench(tmp_path) as b:
        a = b.owner()
        cleared: list[tuple[int, ...]] = []

        def clear(_: int, ports: Iterable[int], queues: Iterable[int]) -> None:
            with Ledger(tmp_path / "state", read_only=True) as other:
                assert other.queues()
            with refused(errno.EBUSY), Ledger(tmp_path / "state", patience=0) as other:
                other.keep(LO)
            cleared.append((*ports, *queues))

        nics = Nics(b.ledger, Tools(tmp_path / "state", timeout=DEADLINE), clear)
        for _ in range(2):
            await nics.claim_queue(a, LO)
        b.ledger.add_port(a, LO, 20000)
        await nics.put_queue(a, LO, 2)
        assert await nics.drop(a)
        assert cleared == [(2,), (20000, 1)]


async def test_an_interface_that_is_not_there(tmp_path: Path, stand_in: StandIn) -> None:
    async with bench(tmp_path) as b:
        a = b.owner()
        for ifindex in (0, GONE, 2**32 - 1):
            with refused(errno.ENODEV):
                await b.nics.claim_queue(a, ifindex)
            with refused(errno.ENODEV):
                await b.nics.add_flow(a, ifindex, 1, SPEC)
            with refused(errno.EINVAL):
                await b.nics.delete_flow(a, ifindex, 1)
        assert not b.ledger.queues()


async def test_a_rule_is_inserted_at_a_free_place_and_deleted(tmp_path: Path, stand_in: StandIn) -> None:
    stand_in.set("lo")
    administrator(*THEIRS, "loc", "1")
    administrator(*THEIRS, "loc", "3")
    before = stand_in.rules("lo")
    async with bench(tmp_path) as b:
        a = b.owner()
        queue = await b.nics.claim_queue(a, LO)
        assert [await b.nics.add_flow(a, LO, queue, SPEC) for _ in range(3)] == [2, 4, 5]
        rule = {"flow-type": "udp4", "dst-ip": "239.1.1.1", "dst-port": "30002", "action": str(queue)}
        assert stand_in.rules("lo") == before | {2: rule, 4: rule, 5: rule}
        for location in (2, 4, 5):
            await b.nics.delete_flow(a, LO, location)
        assert stand_in.rules("lo") == before
        assert not b.ledger.flows()
        await b.nics.put_queue(a, LO, queue)


async def test_a_rule_is_inserted_where_the_driver_chooses(tmp_path: Path, stand_in: StandIn) -> None:
    stand_in.set("lo", chooses=7000, delay=0.01)
    administrator("flow-type", "udp4", "dst-ip", "239.1.1.1", "dst-port", "30002", "action", "1")  # as ours reads
    before = stand_in.rules("lo")
    async with bench(tmp_path) as b:
        a = b.owner()
        assert [await b.nics.add_flow(a, LO, 1, SPEC) for _ in range(2)] == [7001, 7002]
        assert [flow.place for flow in b.ledger.flows()] == [7001, 7002]
        assert sorted(stand_in.rules("lo")) == [7000, 7001, 7002]
        await b.nics.delete_flow(a, LO, 7001)
        await b.nics.recover()
        assert [flow.place for flow in b.ledger.flows()] == [7002]
        assert await b.nics.drop(a)
    assert stand_in.rules("lo") == before
    assert not list(tmp_path.glob("state/chosen-*"))


async def test_a_place_that_the_driver_gives_again_is_the_new_owners(tmp_path: Path, stand_in: StandIn) -> None:
    """Somebody deleted the rule of who had it."""
    stand_in.set("lo", chooses=7000)
    async with bench(tmp_path) as b:
        first, second = b.owner(1), b.owner(2)
        assert await b.nics.add_flow(first, LO, 1, SPEC) == 7000
        administrator("delete", "7000")
        assert await b.nics.add_flow(second, LO, 2, SPEC) == 7000
        assert [(flow.owner, flow.place) for flow in b.ledger.flows()] == [(second, 7000)]
        with refused(errno.EINVAL):
            await b.nics.delete_flow(first, LO, 7000)


async def test_the_first_place_of_all_has_a_number_too(tmp_path: Path, stand_in: StandIn) -> None:
    """On the manager socket 0 is no number of a flow."""
    stand_in.set("lo", chooses=0)
    async with bench(tmp_path) as b:
        a = b.owner()
        number = await b.nics.add_flow(a, LO, 1, SPEC)
        assert 0 < number < 1 << 31
        assert list(stand_in.rules("lo")) == [0]
        await b.nics.recover()
        assert [flow.place for flow in b.ledger.flows()] == [0]
        await b.nics.delete_flow(a, LO, number)
        assert stand_in.rules("lo") == {}


@pytest.mark.parametrize(("elsewhere", "places"), [([1], [15, 14]), ([1, 15, 3, 5], [2, 4]), ([], [1, 2])])
async def test_places_that_another_interface_has_in_the_same_table_are_passed_by(
    tmp_path: Path, stand_in: StandIn, elsewhere: list[int], places: list[int]
) -> None:
    stand_in.set("lo", elsewhere=elsewhere)
    async with bench(tmp_path) as b:
        a = b.owner()
        assert [await b.nics.add_flow(a, LO, 1, SPEC) for _ in range(2)] == places
        assert sorted(stand_in.rules("lo")) == sorted(places)
        assert await b.nics.drop(a)
        assert stand_in.rules("lo") == {}


async def test_rule_is_looked_up_if_the_driver_does_not_report_its_place(tmp_path: Path, stand_in: StandIn) -> None:
    stand_in.set("lo", chooses=7000, mute=True)
    async with bench(tmp_path) as b:
        assert [await b.nics.add_flow(b.owner(), LO, 1, SPEC) for _ in range(2)] == [7000, 7001]


@pytest.mark.parametrize("said", [False, True])
async def test_a_rule_is_deleted_only_if_ethtool_has_said_that_it_is_ours(
    tmp_path: Path, stand_in: StandIn, said: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """What an earlier daemon left that was killed while ethtool ran, or before."""
    stand_in.set("lo", chooses=7000)
    administrator("flow-type", "udp4", "dst-ip", "239.1.1.1", "dst-port", "30002", "action", "1")
    async with bench(tmp_path) as b:
        b.ledger.intend_flow(b.owner(), LO, 1, CHOSEN_BY_DRIVER, SPEC)
        if said:
            file = tmp_path / f"state/chosen-{LO}-{CHOSEN_BY_DRIVER}"
            file.write_text("taken before: 3\nAdded rule with ID 7000\n")
        await b.nics.recover()
        assert (b.ledger.flows(), b.ledger.queues()) == ((), ())
        assert list(stand_in.rules("lo")) == ([] if said else [7000])
    assert ("ethtool -N lo delete 7000" in caplog.text) == (not said)
    assert not list(tmp_path.glob("state/chosen-*"))


async def test_a_queue_that_nobody_holds_becomes_the_askers(tmp_path: Path, stand_in: StandIn) -> None:
    stand_in.set("lo")
    async with bench(tmp_path) as b:
        a = b.owner()
        await b.nics.add_flow(a, LO, 1, SPEC)
        assert b.ledger.queues() == (Queue(LO, 1, a),)
        assert await b.nics.claim_queue(b.owner(2), LO) == 2


@pytest.mark.parametrize(("queue", "number"), [(0, errno.EINVAL), (4, errno.EINVAL), (1, errno.EBUSY)])
async def test_a_rule_to_a_queue_that_is_not_the_askers_is_refused(
    tmp_path: Path, stand_in: StandIn, queue: int, number: int
) -> None:
    stand_in.set("lo")
    async with bench(tmp_path) as b:
        await b.nics.claim_queue(b.owner(), LO)
        with refused(number):
            await b.nics.add_flow(b.owner(2), LO, queue, SPEC)
        assert stand_in.rules("lo") == {}
        assert not b.ledger.flows()


async def test_a_rule_can_only_be_deleted_by_its_owner(tmp_path: Path, stand_in: StandIn) -> None:
    stand_in.set("lo")
    administrator(*THEIRS, "loc", "2")
    async with bench(tmp_path) as b:
        assert await b.nics.add_flow(b.owner(), LO, 1, SPEC) == 1
        before = stand_in.rules("lo")
        for owner, location in ((b.owner(2), 1), (b.owner(), 2), (b.owner(), 3)):
            with refused(errno.EINVAL, "no rule of yours"):
                await b.nics.delete_flow(owner, LO, location)
        assert stand_in.rules("lo") == before


@pytest.mark.parametrize(
    "settings", [{"refuse": "No space left on device"}, {"ntuple": "off"}, {"ntuple": "off [fixed]"}, {"size": 0}]
)
async def test_a_rule_that_the_driver_refuses_leaves_nothing(
    tmp_path: Path, stand_in: StandIn, settings: dict[str, object]
) -> None:
    stand_in.set("lo", **settings)
    async with bench(tmp_path) as b:
        with pytest.raises(OSError, match="lo"):
            await b.nics.add_flow(b.owner(), LO, 1, SPEC)
        assert not b.ledger.flows()
        assert not b.ledger.queues()
        assert stand_in.rules("lo") == {}


async def test_a_full_table_is_told(tmp_path: Path, stand_in: StandIn) -> None:
    stand_in.set("lo", size=3)
    async with bench(tmp_path) as b:
        for _ in range(3):
            await b.nics.add_flow(b.owner(), LO, 1, SPEC)
        assert sorted(stand_in.rules("lo")) == [0, 1, 2]
        with refused(errno.EINVAL, "location 3.*its table is full"):
            await b.nics.add_flow(b.owner(), LO, 1, SPEC)
        assert len(b.ledger.flows()) == 3


async def test_administrators_rule_in_place_of_ours_is_left_alone(tmp_path: Path, stand_in: StandIn) -> None:
    stand_in.set("lo")
    async with bench(tmp_path) as b:
        a = b.owner()
        for _ in range(4):
            await b.nics.add_flow(a, LO, 1, SPEC)
        for location in ("1", "2", "4"):
            administrator(*THEIRS, "loc", location)
        administrator("delete", "3")
        theirs = stand_in.rules("lo")
        await b.nics.delete_flow(a, LO, 1)
        await b.nics.recover()
        assert not b.ledger.flows()
        assert await b.nics.add_flow(a, LO, 1, SPEC) == 3
        administrator(*THEIRS, "loc", "3")
        assert await b.nics.drop(a)
        assert stand_in.rules("lo") == theirs | {3: theirs[1]}


async def test_all_that_a_dead_owner_had_is_taken_back_and_nothing_else(tmp_path: Path, stand_in: StandIn) -> None:
    stand_in.set("lo")
    administrator(*THEIRS, "loc", "5")
    async with bench(tmp_path) as b:
        dead, living = b.owner(), b.owner(2)
        b.ledger.use(dead, LO)
        assert [await b.nics.claim_queue(owner, LO) for owner in (dead, living)] == [1, 2]
        await b.nics.add_flow(living, LO, 2, SPEC)
        before = stand_in.rules("lo")
        await b.nics.add_flow(dead, LO, 1, SPEC)
        await b.nics.add_flow(dead, LO, 3, SPEC)
        for owner, port in ((dead, 5000), (dead, 5000), (dead, 5001), (living, 5001)):
            b.ledger.add_port(owner, LO, port)
        assert await b.nics.drop(dead)
        assert stand_in.rules("lo") == before
        assert b.cleared.ports == {(LO, 5000)}
        assert b.cleared.queues == {(LO, 1), (LO, 3)}
        state = b.ledger.state()
        assert {owner.id for owner in state.owners} == {living}
        assert state.queues == (Queue(LO, 2, living),)
        assert not state.uses
        assert await b.nics.drop(dead)  # twice is no harm


async def test_a_rule_that_cannot_be_deleted_keeps_its_queue_until_it_is(tmp_path: Path, stand_in: StandIn) -> None:
    stand_in.set("lo")
    async with bench(tmp_path) as b:
        dead, living = b.owner(), b.owner(2)
        await b.nics.claim_queue(dead, LO)
        await b.nics.add_flow(dead, LO, 2, SPEC)
        stand_in.set("lo", stuck=True)
        assert not await b.nics.drop(dead)
        assert len(stand_in.rules("lo")) == 1
        assert b.cleared.queues == {(LO, 1)}
        assert [await b.nics.claim_queue(living, LO) for _ in range(2)] == [1, 3]
        stand_in.set("lo", stuck=False)
        await b.nics.recover()
        assert stand_in.rules("lo") == {}
        assert b.cleared.queues == {(LO, 1), (LO, 2)}
        assert await b.nics.claim_queue(living, LO) == 2
        assert [owner.id for owner in b.ledger.owners()] == [living]


async def test_recover_forgets_a_removed_interfaces_entries(tmp_path: Path, stand_in: StandIn) -> None:
    stand_in.set("lo")
    async with bench(tmp_path) as b:
        a = b.owner()
        await b.nics.add_flow(a, LO, 1, SPEC)
        b.ledger.use(a, GONE)
        b.ledger.intend_flow(a, GONE, 1, 1, SPEC)
        b.ledger.complete_flow(GONE, 1)
        b.ledger.add_port(a, GONE, 5000)
        await b.nics.recover()
        state = b.ledger.state()
        assert {row.ifindex for rows in (state.uses, state.queues, state.flows, state.ports) for row in rows} == {LO}
        b.ledger.intend_flow(a, GONE, 1, 1, SPEC)
        assert await b.nics.drop(a)


async def test_an_interface_that_goes_while_a_rule_is_inserted_leaves_nothing(
    tmp_path: Path, stand_in: StandIn
) -> None:
    stand_in.set("lo", delay=0.5, refuse="No such device")
    async with bench(tmp_path) as b:
        adding = asyncio.create_task(b.nics.add_flow(b.owner(), LO, 1, SPEC))
        while not b.ledger.flows():
            await asyncio.sleep(0.01)
        b.ledger.forget_interface(LO)
        with refused(errno.ENODEV):
            await adding
        assert (b.ledger.flows(), b.ledger.queues()) == ((), ())


async def test_many_at_once_get_a_place_each(tmp_path: Path, stand_in: StandIn) -> None:
    stand_in.set("lo", combined=9, size=30)
    async with bench(tmp_path) as b:
        owners = [b.owner(number) for number in range(1, 9)]
        queues = await asyncio.gather(*(b.nics.claim_queue(owner, LO) for owner in owners))
        assert sorted(queues) == list(range(1, 9))
        places = await asyncio.gather(
            *(b.nics.add_flow(owner, LO, queue, SPEC) for owner, queue in zip(owners, queues, strict=True))
        )
        assert sorted(places) == list(range(1, 9))
        assert {location: int(rule["action"]) for location, rule in stand_in.rules("lo").items()} == dict(
            zip(places, queues, strict=True)
        )


async def test_an_owner_that_dies_while_it_is_served_leaves_nothing(tmp_path: Path, stand_in: StandIn) -> None:
    stand_in.set("lo", delay=0.05)
    async with bench(tmp_path) as b:
        a = b.owner()
        adding = [asyncio.create_task(b.nics.add_flow(a, LO, 1, SPEC)) for _ in range(3)]
        await asyncio.sleep(0.1)
        await b.nics.drop(a)
        results = await asyncio.gather(*adding, return_exceptions=True)
        assert all(isinstance(result, int) or result.errno == errno.ESRCH for result in results)
        assert stand_in.rules("lo") == {}
        assert b.ledger.state().owners == ()


# -- killed

# Does one thing, and is killed at its step of that number: before each statement of SQL, before anything is cleared,
# and before and after each start of a program, which in the latter case goes on without it.
STEP = """
import asyncio, os, signal, sys
from ipaddress import IPv4Address
from pathlib import Path
from mtlshm import Process
from mtlshm.net.flow import FlowSpec, FlowType
from mtlshm.net.ledger import Ledger
from mtlshm.net.nic import Nics
from mtlshm.net.tool import Tools

def clear(ifindex, ports, queues):
    step()
    if ports or queues:
        print("cleared", flush=True)

state, act, last = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
ledger = Ledger(state)
nics = Nics(ledger, Tools(state, timeout=60), clear)
owner = ledger.enter(1, Process(1, 1, 1, 1, 0, "", "", ""))
spec = FlowSpec(FlowType.UDP4, None, IPv4Address("239.1.1.1"), 0, 30002)
steps = 0

def step():
    global steps
    steps += 1
    if steps == last:
        os.kill(os.getpid(), signal.SIGKILL)

def count(frame, event, function):
    name = getattr(function, "__name__", "")
    if (event, name) in (("c_call", "execute"), ("c_call", "fork_exec"), ("c_return", "fork_exec")):
        step()

async def main():
    queue = await nics.claim_queue(owner, 1)
    ledger.add_port(owner, 1, 5000)
    if act not in ("add", "choose"):
        place = await nics.add_flow(owner, 1, queue, spec)
    sys.setprofile(count)
    match act:
        case "add" | "choose":
            await nics.add_flow(owner, 1, queue + 1, spec)
        case "delete":
            await nics.delete_flow(owner, 1, place)
        case "drop":
            await nics.drop(owner)

asyncio.run(main())
"""


@pytest.mark.slow
@pytest.mark.parametrize("act", ["add", "delete", "drop", "choose"])
async def test_nothing_is_lost_and_nothing_leaks_at_whatever_step_it_is_killed(
    tmp_path: Path, stand_in: StandIn, act: str
) -> None:
    stand_in.set("lo")
    administrator(*THEIRS, "loc", "2")
    if act == "choose":  # the driver, beside a rule of the administrator's that reads as ours does
        stand_in.set("lo", chooses=7000)
        administrator("flow-type", "udp4", "dst-ip", "239.1.1.1", "dst-port", "30002", "action", "2")
    theirs = stand_in.rules("lo")
    stand_in.set("lo", delay=0.1)
    half_done = 0
    for step in itertools.count(1):
        command = [sys.executable, "-c", STEP, str(tmp_path / "state"), act, str(step)]
        result = subprocess.run(command, stdout=subprocess.PIPE, timeout=DEADLINE)
        assert result.returncode in (0, -signal.SIGKILL)
        async with bench(tmp_path) as b:
            half_done += b.unfinished()
            await b.nics.recover()
            check(b, stand_in, theirs)
            assert not b.unfinished()
            if act in ("add", "choose") and result.returncode:  # before it was complete, so nobody was told
                assert not b.ledger.flows()
                assert len(b.ledger.queues()) <= 1
            if not b.ledger.owners():
                assert result.stdout == b"cleared\n" or b.cleared.ports == {(LO, 5000)}
            assert await b.nics.drop(b.owner())
            assert stand_in.rules("lo") == theirs
        if result.returncode == 0:
            break
    print(f"{step - 1} steps; {half_done} kills left something half done")
    assert half_done or act == "delete"  # which is done or not: what is still there is still the owner's


# Owners come, claim, steer and go, all at once, until it is killed.
BUSY = """
import asyncio, os, random, sys
from contextlib import suppress
from ipaddress import IPv4Address
from pathlib import Path
from mtlshm import Process
from mtlshm.net.flow import FlowSpec, FlowType
from mtlshm.net.ledger import Ledger
from mtlshm.net.nic import Nics
from mtlshm.net.tool import Tools

state, seed = Path(sys.argv[1]), int(sys.argv[2])
dice = random.Random(seed)
ledger = Ledger(state)
ledger.serve()
nics = Nics(ledger, Tools(state, timeout=60), lambda *_: None)

async def client(number):
    while True:
        who = (number, Process(number, 1, 1, number, 0, "", "", ""))
        if dice.randrange(2):
            await nics.drop(ledger.enter(*who))
        owner = ledger.enter(*who)
        flows = [flow.location for flow in ledger.flows(owner=owner)]
        for _ in range(dice.randrange(6)):
            spec = FlowSpec(FlowType.UDP4, None, IPv4Address("239.1.1.1"), 0, 1000 * number + dice.randrange(1000))
            with suppress(OSError):
                match dice.randrange(4):
                    case 0:
                        await nics.claim_queue(owner, 1)
                    case 1 | 2:
                        flows.append(await nics.add_flow(owner, 1, dice.randrange(1, 8), spec))
                    case 3 if flows:
                        await nics.delete_flow(owner, 1, flows.pop(dice.randrange(len(flows))))

async def main():
    print("ready", flush=True)
    await asyncio.gather(*(client(number) for number in range(1, 4)))

asyncio.run(main())
"""


def kill_while_busy(state: Path, seed: int, dice: random.Random, stand_in: StandIn) -> None:
    """SIGKILL, and only that process: an ethtool that it runs goes on."""
    with subprocess.Popen([sys.executable, "-c", BUSY, str(state), str(seed)], stdout=subprocess.PIPE) as busy:
        assert busy.stdout
        assert busy.stdout.readline() == b"ready\n"
        time.sleep(dice.uniform(0, 1.5))
        busy.send_signal(signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(2))
async def test_nothing_is_lost_and_nothing_leaks_whenever_it_is_killed(
    tmp_path: Path, stand_in: StandIn, part: int
) -> None:
    dice = random.Random(part)
    stand_in.set("lo", combined=8, size=200)
    for location in ("2", "3", "7"):
        administrator(*THEIRS, "loc", location)
    theirs = stand_in.rules("lo")
    half_done = undone = 0
    for round_ in itertools.count():
        if round_ >= 12 and half_done and undone:
            break
        assert round_ < 60, "the kills always came between two operations"
        # A slow NIC now and then, for the kill to come while ethtool runs.
        stand_in.set("lo", delay=dice.choice([0, 0.04]))
        kill_while_busy(tmp_path / "state", 100 * part + round_, dice, stand_in)
        async with bench(tmp_path) as b:
            half_done += b.unfinished()
            before = len(stand_in.rules("lo"))
            b.ledger.serve()
            await b.nics.recover()
            undone += len(stand_in.rules("lo")) != before
            check(b, stand_in, theirs)
            for owner in b.ledger.owners():
                if dice.randrange(2):
                    assert await b.nics.drop(owner.id)
            check(b, stand_in, theirs)
    async with bench(tmp_path) as b:
        for owner in b.ledger.owners():
            assert await b.nics.drop(owner.id)
        assert stand_in.rules("lo") == theirs
        assert not b.ledger.queues()
    print(f"{half_done} of {round_} kills left something half done, {undone} a rule that was undone")


def check(b: Bench, stand_in: StandIn, theirs: dict[int, dict[str, str]]) -> None:
    """Every rule is the administrator's or has an owner, every owner its rules and their queues."""
    flows = {flow.location: flow for flow in b.ledger.flows()}
    assert all(flow.complete for flow in flows.values())
    rules = stand_in.rules("lo")
    assert {location: rule for location, rule in rules.items() if location not in flows} == theirs
    told = {location: (str(flow.queue), str(flow.spec.destination_port)) for location, flow in flows.items()}
    assert {location: (rules[location]["action"], rules[location]["dst-port"]) for location in flows} == told
    held = {(each.queue, each.owner) for each in b.ledger.queues()}
    assert {(flow.queue, flow.owner) for flow in flows.values()} <= held
    assert len({queue for queue, _ in held}) == len(held)
