# SPDX-License-Identifier: BSD-3-Clause
"""XDP programs on interfaces: real ones, in the kernel, on a veth pair of the test's own with four queues.

This kernel decides which way can be tested: where it has no freplace programs, the chain is refused, and only that is
tested here. The chain itself, and a program of somebody else beside ours, are tested in the VM.
"""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from mtlshm.net import bpf, xdp
from mtlshm.net.tool import Tools
from mtlshm.net.xdp import Counters, Gate, Loader, Mode, Way, look
from networks import NEAR4, NEAR6, QUEUES, Veth, sandbox, veth
from processes import DEADLINE, eventually
from xsk import Xsk

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="not root; not tested: XDP on interfaces")

PINS = Path("/sys/fs/bpf/mtlshm")  # in the BPF file system of the sandbox
PORTS = range(20000, 20100)
OTHERS = range(30000, 30100)
COMPLETE = {"mtl_dp_fused", "ports", "counters", "xsks_map"}
NAMES = {Mode.NATIVE: "native", Mode.SKB: "skb"}


@pytest.fixture
def link() -> Iterator[Veth]:
    with sandbox(), veth() as made:
        yield made


@pytest.fixture
def loader(tmp_path: Path, link: Veth) -> Loader:
    return Loader(Tools(tmp_path))


def load(loader: Loader, link: Veth, way: Way = Way.AUTO) -> Gate:
    return asyncio.run(loader.load(link.index, way))


def attached(link: Veth) -> xdp.Attached:
    return asyncio.run(look(link.index))


def pins() -> set[str]:
    """What is pinned, of all interfaces."""
    return {path.name for path in PINS.glob("*/*")}


def attach(link: Veth, name: str, mode: str = "skb") -> None:
    """As somebody else does."""
    path = str(xdp.find_object(name))
    subprocess.run(["xdp-loader", "load", "-m", mode, link.name, path], check=True)


def detach(link: Veth) -> None:
    subprocess.run(["xdp-loader", "unload", link.name, "--all"], check=True)


@contextmanager
def sockets(link: Veth, gate: Gate) -> Iterator[list[Xsk]]:
    """One on each queue, entered in the map."""
    with ExitStack() as stack:
        made = []
        for queue in range(QUEUES):
            made.append(xsk := stack.enter_context(Xsk()))
            xsk.bind(link.index, queue)
            gate.xsks_map.update(struct.pack("=I", queue), struct.pack("=i", xsk.socket.fileno()))
        yield made


def drain(udp: socket.socket) -> list[bytes]:
    got = []
    while True:
        try:
            got.append(udp.recv(2048))
        except BlockingIOError:
            return got


def send(link: Veth, ports: range, payload: str, family: int = socket.AF_INET) -> None:
    with link.far_udp(family) as far:
        for port in ports:
            far.sendto(f"{payload} {port}".encode(), (NEAR4 if family == socket.AF_INET else NEAR6, port))


def expected(ports: range, payload: str) -> list[bytes]:
    return sorted(f"{payload} {port}".encode() for port in ports)


class Receiver:
    """Everything that comes to the near host: by AF_XDP, and by ordinary sockets on all the ports."""

    def __init__(self, link: Veth, xsks: list[Xsk], stack: ExitStack) -> None:
        self._xsks = xsks
        self._udp = [stack.enter_context(link.udp(port)) for port in (*PORTS, *OTHERS)]
        self.by_xdp: list[bytes] = []
        self.by_stack: list[bytes] = []

    def look(self) -> int:
        for xsk in self._xsks:
            for frame in xsk.receive():
                start = {b"\x08\x00": 42, b"\x86\xdd": 62}[frame[12:14]]
                self.by_xdp.append(frame[start:])
        for udp in self._udp:
            self.by_stack += drain(udp)
        return len(self.by_xdp) + len(self.by_stack)

    def wait_for(self, count: int) -> None:
        eventually(lambda: self.look() >= count)
        assert sum(xsk.dropped() for xsk in self._xsks) == 0


# --- end to end ----------------------------------------------------------------------------------------


@pytest.fixture(params=[Mode.NATIVE, Mode.SKB], ids=str)
def gate(request: pytest.FixtureRequest, loader: Loader, link: Veth) -> Iterator[Gate]:
    """A fused program that lets PORTS through."""
    if request.param is Mode.SKB:
        link.set_mtu(9000)  # more than veth can do in native mode
    with load(loader, link) as gate:
        assert gate.way is Way.FUSED
        assert gate.mode is attached(link).mode is request.param
        for port in PORTS:
            gate.set_port(port, True)
        yield gate


def test_ports_that_are_set_arrive_on_the_sockets_and_all_others_in_the_stack(link: Veth, gate: Gate) -> None:
    with sockets(link, gate) as xsks, ExitStack() as stack:
        receiver = Receiver(link, xsks, stack)
        for family in (socket.AF_INET, socket.AF_INET6):
            for n in range(2):
                send(link, PORTS, f"media {family} {n}", family)
                send(link, OTHERS, f"other {family} {n}", family)
        receiver.wait_for(800)
        kinds = [f"{family} {n}" for family in (socket.AF_INET, socket.AF_INET6) for n in range(2)]
        assert sorted(receiver.by_xdp) == sorted(data for kind in kinds for data in expected(PORTS, f"media {kind}"))
        assert sorted(receiver.by_stack) == sorted(data for kind in kinds for data in expected(OTHERS, f"other {kind}"))
    counted = gate.counters()
    assert counted.hits == 400
    assert counted.passes >= 400  # and what the hosts say to each other by themselves, of neighbours and the like
    assert counted.unclaimed == 0
