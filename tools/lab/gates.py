# SPDX-License-Identifier: BSD-3-Clause
"""A gate at an interface: loaded, looked at, and what comes through it."""

from __future__ import annotations

import asyncio
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from lab.networks import NEAR4, NEAR6, QUEUES, Veth
from lab.processes import eventually
from lab.xsk import Xsk
from mtlshm.net import bpf
from mtlshm.net.attached import Attached, Way, look
from mtlshm.net.gate import Gate
from mtlshm.net.xdp import Loader

PINS = Path("/sys/fs/bpf/mtlshm")  # in the BPF file system of the sandbox


PORTS = range(20000, 20100)


OTHERS = range(30000, 30100)


COMPLETE = {"mtl_dp_fused", "ports", "counters", "xsks_map"}


def load(loader: Loader, link: Veth, way: Way = Way.AUTO) -> Gate:
    return asyncio.run(loader.load(link.index, way))


def attached(link: Veth) -> Attached:
    return asyncio.run(look(link.index))


def pins() -> set[str]:
    """What is pinned, of all interfaces."""
    return {path.name for path in PINS.glob("*/*")}


def attach(link: Veth, path: Path) -> int:
    """As somebody else does; returns the id."""
    subprocess.run(["xdp-loader", "load", "--mode", "native", link.name, path], check=True)
    (program,) = attached(link).programs
    return program.id


def detach(link: Veth) -> None:
    """As somebody else does."""
    subprocess.run(["xdp-loader", "unload", link.name, "--all"], check=True)


def unload(loader: Loader, link: Veth) -> None:
    asyncio.run(loader.unload(link.index))


def assert_nothing_is_left(link: Veth) -> None:
    assert attached(link).programs == ()
    assert list(PINS.glob("*")) == []


def assert_whole(loader: Loader, link: Veth) -> None:
    """Loaded once, with all its pins, and finds its way through them."""
    (program,) = attached(link).programs
    (directory,) = PINS.iterdir()
    with bpf.Program.pinned(directory / "mtl_dp_fused") as pinned:
        assert pinned.info == program
    ids = set()
    for name in COMPLETE - {"mtl_dp_fused"}:
        with bpf.Map.pinned(directory / name) as each:
            ids.add(each.info.id)
    assert ids == set(program.map_ids)
    assert pins() == COMPLETE
    assert loader.interfaces() == [link.index]


@contextmanager
def sockets(link: Veth, gate: Gate) -> Iterator[list[Xsk]]:
    """One on each queue, entered in the map."""
    with ExitStack() as stack:
        made = []
        for queue in range(QUEUES):
            made.append(xsk := stack.enter_context(Xsk()))
            xsk.bind(link.index, queue)
            gate.set_socket(queue, xsk.socket.fileno())
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
