# SPDX-License-Identifier: BSD-3-Clause
"""What a client asks of an interface, and what then is there and arrives."""

from __future__ import annotations

import asyncio
import os
import socket
from ipaddress import IPv4Address

from lab.networks import NEAR4, QUEUES, Veth
from lab.processes import eventually
from lab.xsk import Xsk
from mtlshm import wire
from mtlshm.manager_client import Manager
from mtlshm.net.attached import look

PORT = 20000


def programs(link: Veth) -> list[str]:
    return [program.name for program in asyncio.run(look(link.index)).programs]


def flow(link: Veth, queue: int, port: int = PORT) -> wire.Interface:
    return wire.Interface(link.index, queue, 0, 2, IPv4Address(0), IPv4Address("239.1.1.1"), 0, port)


class Watcher:
    """What of a port comes to a socket in the map on each queue, and what to the stack."""

    def __init__(self, link: Veth, manager: Manager, port: int = PORT) -> None:
        self._link, self._port = link, port
        self._udp = link.udp(port)
        self._xsks = [Xsk() for _ in range(QUEUES)]
        descriptor = manager.xsk_map_fd(link.index)
        assert descriptor is not None
        for queue, xsk in enumerate(self._xsks):
            xsk.bind(link.index, queue)
            xsk.enter(descriptor, queue)
        os.close(descriptor)

    def send(self, number: int = 20) -> tuple[int, int]:
        """How many of them came to AF_XDP, and how many to the stack, once all have come."""
        with self._link.far_udp(socket.AF_INET) as far:
            for _ in range(number):
                far.sendto(b"x", (NEAR4, self._port))
        self._by_xdp = self._by_stack = 0
        eventually(lambda: self._look() >= number)
        return self._by_xdp, self._by_stack

    def _look(self) -> int:
        self._by_xdp += sum(len(xsk.receive()) for xsk in self._xsks)
        while True:
            try:
                self._udp.recv(100)
            except BlockingIOError:
                return self._by_xdp + self._by_stack
            self._by_stack += 1

    def __enter__(self) -> Watcher:
        return self

    def __exit__(self, *_: object) -> None:
        self._udp.close()
        for xsk in self._xsks:
            xsk.__exit__()
