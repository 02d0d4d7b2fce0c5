# SPDX-License-Identifier: BSD-3-Clause
"""A NIC as tests in a virtual machine have one: with rules that steer (tools/vm.d/veth_ntuple.c)."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

from lab.networks import NEAR4, NEAR6, QUEUES, Veth, veth
from lab.xsk import Xsk
from mtlshm import wire
from mtlshm.manager_client import Manager
from mtlshm.net.gate import Gate

MODULE = Path(__file__).parents[2] / "build/vm/veth_ntuple.ko"
MESSAGE = b"port %5d number %5d"


def run(*command: object) -> str:
    """What it said, if it did not fail."""
    result = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert result.returncode == 0, f"{command}: {result.stdout}"
    return result.stdout


@dataclass(frozen=True)
class Nic:
    link: Veth

    def steer(self, port: int, queue: int, flow: str = "udp4", location: int = 1) -> str:
        words = f"flow-type {flow} dst-port {port} action {queue} loc {location}"
        return run("ethtool", "-N", self.link.name, *words.split())

    @contextmanager
    def sockets(self, gate: Gate) -> Iterator[list[Xsk]]:
        """One on each queue, entered in the map."""
        with ExitStack() as stack:
            made = []
            for queue in range(QUEUES):
                made.append(xsk := stack.enter_context(Xsk()))
                xsk.bind(self.link.index, queue)
                gate.set_socket(queue, xsk.socket.fileno())
            yield made

    def send(self, port: int, count: int, family: int = socket.AF_INET) -> list[bytes]:
        """Datagrams from the other host; returns what is in them."""
        messages = [MESSAGE % (port, number) for number in range(count)]
        with self.link.far_udp(family) as far:
            for message in messages:
                far.sendto(message, (NEAR4 if family == socket.AF_INET else NEAR6, port))
        return messages

    def flow(self, queue: int, port: int) -> wire.Interface:
        """What a client asks for."""
        return wire.Interface(self.link.index, queue, 0, 2, IPv4Address(0), IPv4Address(NEAR4), 0, port)

    def receive_as_libmtl(self, manager: Manager, port: int) -> int:
        """On a queue of its own, by a rule, with its own socket; returns where the rule is."""
        queue = manager.get_queue(self.link.index)
        descriptor = manager.xsk_map_fd(self.link.index)
        assert descriptor is not None
        with Xsk() as xsk:
            xsk.bind(self.link.index, queue)
            xsk.enter(descriptor, queue)
            manager.add_filter(self.link.index, port)
            location = manager.add_flow(self.flow(queue, port))
            sent = self.send(port, 50)
            assert arrived(xsk, 50) == sent
        os.close(descriptor)
        return location


@contextmanager
def nic() -> Iterator[Nic]:
    if not Path("/sys/module/veth_ntuple").exists():
        run("busybox", "insmod", MODULE)
    with veth("nic") as link:
        run("ethtool", "-K", link.name, "ntuple", "on")
        yield Nic(link)


def arrived(sock: Xsk | socket.socket, count: int) -> list[bytes]:
    """What is in the datagrams that came; waits for that many."""
    messages: list[bytes] = []
    deadline = time.monotonic() + 20
    while len(messages) < count and time.monotonic() < deadline:
        select.select([sock.socket if isinstance(sock, Xsk) else sock], [], [], 0.1)
        if isinstance(sock, Xsk):
            messages += [frame[-len(MESSAGE % (0, 0)) :] for frame in sock.receive()]
        else:
            messages += received(sock)
    return messages


def received(sock: socket.socket) -> list[bytes]:
    """What has come to a socket that does not block."""
    messages: list[bytes] = []
    while True:
        try:
            messages.append(sock.recv(2048))
        except BlockingIOError:
            return messages
