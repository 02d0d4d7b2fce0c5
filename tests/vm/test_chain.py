# SPDX-License-Identifier: BSD-3-Clause
"""The chain that users of MTL know, under libxdp's real dispatcher."""

from __future__ import annotations

import asyncio
import errno
import re
from pathlib import Path

import pytest

from lab.networks import QUEUES
from lab.processes import DEADLINE
from lab.vm_nic import Nic, arrived, received, run
from mtlshm.net.attached import Attached, Mode, Way, look
from mtlshm.net.places import BPFFS
from mtlshm.net.tool import Tools
from mtlshm.net.xdp import Loader, find_object

FOREIGN = "xdpfilt_alw_all"  # of xdp-tools: lets all packets pass
OURS = {"mtl_dp_filter", "xsk_def_prog"}


def attached(nic: Nic) -> Attached:
    return asyncio.run(look(nic.link.index))


def chain(nic: Nic) -> dict[str, int]:
    """The programs under the dispatcher, and their ids."""
    now = attached(nic)
    assert now.dispatcher or not now.programs
    return {program.name: program.id for program in now.programs}


def attach_foreign(nic: Nic) -> None:
    run("xdp-loader", "load", "-m", "native", nic.link.name, find_object(f"{FOREIGN}.o"))


def pins() -> list[Path]:
    return list(Path(BPFFS, "mtlshm").glob("**/*"))


def test_users_see_the_chain_they_know(nic: Nic, loader: Loader) -> None:
    with asyncio.run(loader.load(nic.link.index)) as gate:
        assert gate.way is Way.CHAIN
    # Priority, name, and after which actions the chain goes on.
    shown = re.findall(r"^ => +(\d+) +(\w+) +\d+ +\w+ +(\S+)", run("xdp-loader", "status", nic.link.name), re.MULTILINE)
    assert shown == [("19", "mtl_dp_filter", "XDP_DROP"), ("20", "xsk_def_prog", "XDP_PASS")]


@pytest.mark.parametrize("mode", [Mode.NATIVE, Mode.SKB])
def test_only_set_ports_are_redirected_to_their_queues_socket(nic: Nic, loader: Loader, mode: Mode) -> None:
    if mode is Mode.SKB:
        nic.link.set_mtu(9000)  # more than veth can do in native mode
    nic.steer(30000, 2)
    with (
        asyncio.run(loader.load(nic.link.index, Way.CHAIN)) as gate,
        nic.sockets(gate) as queues,
        nic.link.udp(30000) as bypass,
        nic.link.udp(30001) as stack,
    ):
        assert gate.mode is mode
        gate.set_port(30000, True)
        media, others = nic.send(30000, 200), nic.send(30001, 200)
        assert arrived(queues[2], 200) == media
        assert arrived(stack, 200) == others
        assert [queue.receive() for queue in queues] == [[]] * QUEUES
        assert received(bypass) == []
        counted = gate.counters()
        assert counted.hits == 200
        assert counted.passes >= 200  # and what the hosts say to each other by themselves


def test_a_queue_without_a_socket_loses_nothing(nic: Nic, loader: Loader) -> None:
    nic.steer(30000, 1)
    with asyncio.run(loader.load(nic.link.index, Way.CHAIN)) as gate, nic.link.udp(30000) as stack:
        gate.set_port(30000, True)
        sent = nic.send(30000, 50)
        assert arrived(stack, 50) == sent


def test_the_next_loader_adopts_the_chain_as_it_is(nic: Nic, loader: Loader, tmp_path: Path) -> None:
    asyncio.run(loader.load(nic.link.index)).close()
    before = attached(nic)
    with asyncio.run(Loader(Tools(tmp_path, timeout=DEADLINE)).load(nic.link.index)) as gate:
        assert gate.way is Way.CHAIN
        assert attached(nic) == before


@pytest.mark.parametrize("lost", sorted(OURS))
def test_half_a_chain_is_made_whole(nic: Nic, loader: Loader, lost: str) -> None:
    asyncio.run(loader.load(nic.link.index)).close()
    run("xdp-loader", "unload", nic.link.name, "--id", chain(nic)[lost])
    assert set(chain(nic)) == OURS - {lost}
    with asyncio.run(loader.load(nic.link.index)) as gate:
        assert gate.way is Way.CHAIN
        assert set(chain(nic)) == OURS


@pytest.mark.parametrize("first", [True, False], ids=["before us", "after us"])
def test_somebody_elses_program_stays_in_the_chain(nic: Nic, loader: Loader, first: bool) -> None:
    if first:
        attach_foreign(nic)
    nic.steer(30000, 1)
    with asyncio.run(loader.load(nic.link.index)) as gate:
        assert gate.way is Way.CHAIN
        if not first:
            attach_foreign(nic)
        foreign = chain(nic)[FOREIGN]
        assert set(chain(nic)) == OURS | {FOREIGN}
        with nic.sockets(gate) as queues:
            gate.set_port(30000, True)
            sent = nic.send(30000, 50)
            assert arrived(queues[1], 50) == sent
    asyncio.run(loader.unload(nic.link.index))
    assert chain(nic) == {FOREIGN: foreign}


@pytest.mark.parametrize("foreign", [False, True])
def test_a_chain_that_was_detached_is_put_back_as_it_was(nic: Nic, loader: Loader, foreign: bool) -> None:
    """As DPDK's AF_XDP driver detaches it; with somebody else's program in it."""
    nic.steer(30000, 1)
    with asyncio.run(loader.load(nic.link.index, Way.CHAIN)) as gate, nic.sockets(gate) as queues:
        if foreign:
            attach_foreign(nic)
        gate.set_port(30000, True)
        before = chain(nic)
        for _ in range(2):
            run("ip", "link", "set", "dev", nic.link.name, "xdp", "off")
            assert chain(nic) == {}
            with asyncio.run(loader.load(nic.link.index)) as again:
                assert again.way is Way.CHAIN
                assert again.xsks_map.info == gate.xsks_map.info
                assert again.ports() == {30000}
            assert chain(nic) == before
            sent = nic.send(30000, 50)
            assert arrived(queues[1], 50) == sent
    asyncio.run(loader.unload(nic.link.index))
    assert set(chain(nic)) == ({FOREIGN} if foreign else set())


def test_a_chain_that_was_taken_apart_is_loaded_anew(nic: Nic, loader: Loader) -> None:
    asyncio.run(loader.load(nic.link.index, Way.CHAIN)).close()
    run("xdp-loader", "unload", nic.link.name, "--all")
    with asyncio.run(loader.load(nic.link.index)) as again:
        assert again.way is Way.CHAIN
        assert set(chain(nic)) == OURS


def test_removing_a_socket_beyond_the_map_does_nothing(nic: Nic, loader: Loader) -> None:
    with asyncio.run(loader.load(nic.link.index, Way.CHAIN)) as gate:
        assert gate.queues == 64
        for queue in (gate.queues - 1, gate.queues, 65535):
            gate.remove_socket(queue)


def test_somebody_elses_program_without_a_dispatcher_is_in_the_way_and_stays(nic: Nic, loader: Loader) -> None:
    run("ip", "link", "set", nic.link.name, "xdp", "obj", find_object(f"{FOREIGN}.o"), "sec", "xdp")
    before = attached(nic)
    with pytest.raises(OSError, match=FOREIGN[:15]) as refusal:
        asyncio.run(loader.load(nic.link.index))
    assert refusal.value.errno == errno.EBUSY
    assert attached(nic) == before
    assert pins() == []


@pytest.mark.parametrize("way", [Way.CHAIN, Way.FUSED])
def test_unloading_leaves_nothing(nic: Nic, loader: Loader, way: Way) -> None:
    asyncio.run(loader.load(nic.link.index, way)).close()
    asyncio.run(loader.unload(nic.link.index))
    assert attached(nic).programs == ()
    assert pins() == []
    assert loader.interfaces() == []
