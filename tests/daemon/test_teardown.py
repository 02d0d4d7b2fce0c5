# SPDX-License-Identifier: BSD-3-Clause
"""mtlshmd --teardown removes all that is ours, nothing else, and not under a daemon that serves."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from lab.networks import QUEUES, Veth
from lab.processes import DEADLINE, Daemon, needs_root
from mtlshm import Host, wire
from mtlshm.manager_client import Manager
from mtlshm.net import attached, xdp
from mtlshm.net.ledger import Ledger

PINS = Path("/sys/fs/bpf/mtlshm")  # in the sandbox
PORT = 20000

pytestmark = needs_root("taking XDP programs and flow rules away")


@pytest.fixture
def teardown(server: Callable[..., Daemon]) -> Callable[..., tuple[int, str]]:
    """Its exit status, and what it said."""

    def run(*arguments: object) -> tuple[int, str]:
        process = server("--teardown", *arguments, ready=False)
        return process.wait(), process.log()

    return run


@pytest.fixture
def client(server: Callable[..., Daemon], manager_socket: Path, link: Veth, stand_in) -> Iterator[Daemon]:
    """The daemon of a client that has a queue, a port and a flow rule beside somebody else's rule."""
    stand_in.set(link.name, combined=QUEUES)
    subprocess.run(f"ethtool -N {link.name} flow-type udp4 dst-port 9 action 1 loc 7".split(), check=True)
    running = server()
    with Manager(manager_socket, timeout=DEADLINE) as manager:
        manager.register((link.index,))
        manager.get_lcore(1)
        manager.add_filter(link.index, PORT)
        flow = wire.Interface(link.index, manager.get_queue(link.index), 0, 2, *2 * (IPv4Address(0),), 0, PORT)
        manager.add_flow(flow)
        yield running


def programs(link: Veth) -> list[str]:
    return [program.name for program in asyncio.run(attached.look(link.index)).programs]


def test_all_that_is_ours_goes_and_nothing_else(client, teardown, link, stand_in, segment, tmp_path):
    client.end(signal.SIGKILL)
    assert len(stand_in.rules(link.name)) == 2
    status, said = teardown()
    assert status == 0, said
    assert list(stand_in.rules(link.name)) == [7]
    assert programs(link) == []
    assert not PINS.exists()
    assert {path.name for path in (tmp_path / "state").iterdir()} == {"change.lock", "serve.lock"}
    assert "it stays with its users" in said  # the client has an lcore
    with Host(segment, create=False, read_only=True) as host:
        assert [lcore.number for lcore in host.snapshot().lcores] == [1]
    assert teardown()[0] == 0  # again


def test_a_segment_that_nobody_uses_goes_too(teardown, segment):
    Host(segment).close()
    assert teardown()[0] == 0
    assert not os.path.exists(segment)
    assert teardown()[0] == 0  # where there is nothing
    assert not os.path.exists(segment)


def test_under_a_daemon_that_serves_it_does_nothing(client, teardown, link, stand_in, segment, tmp_path):
    for arguments in ((), ("--segment", f"{segment}-other")):  # known by the segment, or else by the ledger
        status, said = teardown(*arguments)
        assert status == 1
        assert "serves" in said
    assert len(stand_in.rules(link.name)) == 2
    assert programs(link)
    with Ledger(tmp_path / "state", read_only=True) as ledger:
        assert len(ledger.state().queues) == 1


def test_unremovable_entries_stay_in_the_ledger(client, teardown, link, stand_in, tmp_path):
    client.end(signal.SIGTERM)
    stand_in.set(link.name, stuck=True)
    status, said = teardown()
    assert status == 1
    assert "run it again" in said
    assert programs(link) == []
    with Ledger(tmp_path / "state", read_only=True) as ledger:
        assert len(ledger.flows()) == 1
    stand_in.set(link.name, stuck=False)
    assert teardown()[0] == 0
    assert list(stand_in.rules(link.name)) == [7]


def test_a_program_whose_pins_are_lost_is_not_forgotten(client, teardown, link, tmp_path):
    client.end(signal.SIGKILL)
    subprocess.run(["umount", "/sys/fs/bpf"], check=True)
    subprocess.run(["mount", "-t", "bpf", "-o", "mode=0700", "bpf", "/sys/fs/bpf"], check=True)
    status, said = teardown()
    assert status == 1
    assert f"xdp-loader unload {link.name} --all" in said
    assert programs(link)
    subprocess.run(["xdp-loader", "unload", link.name, "--all"], check=True)
    assert teardown()[0] == 0


def test_somebody_elses_program_stays(teardown, link):
    subprocess.run(["xdp-loader", "load", link.name, xdp.find_object("mtl_dp_fused.o")], check=True)
    assert teardown()[0] == 0
    assert programs(link) == ["mtl_dp_fused"]
