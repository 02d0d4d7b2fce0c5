# SPDX-License-Identifier: BSD-3-Clause
"""Networks for tests: namespaces that nobody else sees, and that are gone when the last process in them is.

`ip netns exec` would give a new /sys without the BPF file system in it, so processes are put there by setns(2), by way
of the thread that starts them.
"""

from __future__ import annotations

import ctypes
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from pyroute2 import IPRoute

_CLONE_NEWNS, _CLONE_NEWNET = 0x00020000, 0x40000000
_MS_REC, _MS_PRIVATE = 0x4000, 1 << 18
_libc = ctypes.CDLL(None, use_errno=True)

QUEUES = 4
NEAR4, FAR4 = "192.0.2.1", "192.0.2.2"
NEAR6, FAR6 = "2001:db8::1", "2001:db8::2"


def _call(function: str, *arguments: object) -> None:
    if getattr(_libc, function)(*arguments):
        raise OSError(ctypes.get_errno(), f"{function}: {os.strerror(ctypes.get_errno())}")


@contextmanager
def _kept(kind: str) -> Iterator[None]:
    """Come back to the namespace that we are in."""
    fd = os.open(f"/proc/thread-self/ns/{kind}", os.O_RDONLY)
    try:
        yield
    finally:
        _call("setns", fd, 0)
        os.close(fd)


@contextmanager
def inside(namespace: int) -> Iterator[None]:
    """This thread, and what it starts, in a network namespace."""
    with _kept("net"):
        _call("setns", namespace, _CLONE_NEWNET)
        yield


def _new_network() -> int:
    with _kept("net"):
        _call("unshare", _CLONE_NEWNET)
        return os.open("/proc/thread-self/ns/net", os.O_RDONLY)


@dataclass(frozen=True)
class Veth:
    """Two hosts and a wire. Tests are at the near end."""

    name: str
    index: int
    far: int  # the network namespace of the other host
    far_index: int

    def set_mtu(self, mtu: int) -> None:
        """Of both ends."""
        with IPRoute() as route:
            route.link("set", index=self.index, mtu=mtu)
        with inside(self.far), IPRoute() as route:
            route.link("set", index=self.far_index, mtu=mtu)

    def udp(self, port: int) -> socket.socket:
        """A socket of the near host, for IPv4 and IPv6."""
        new = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        new.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        new.setsockopt(socket.SOL_SOCKET, 33, 1 << 24)  # SO_RCVBUFFORCE: what comes before we look shall not be lost
        new.bind(("", port))
        new.setblocking(False)
        return new

    def far_udp(self, family: int) -> socket.socket:
        """A socket of the far host."""
        with inside(self.far):
            return socket.socket(family, socket.SOCK_DGRAM)


@contextmanager
def sandbox() -> Iterator[None]:
    """This thread, and what it starts, in a network namespace and with a BPF file system and a /run of its own."""
    with _kept("mnt"), _kept("net"):
        _call("unshare", _CLONE_NEWNS | _CLONE_NEWNET)
        _call("mount", b"none", b"/", None, _MS_REC | _MS_PRIVATE, None)
        _call("mount", b"bpf", b"/sys/fs/bpf", b"bpf", 0, b"mode=700")
        _call("mount", b"tmpfs", b"/run", b"tmpfs", 0, b"mode=755")  # where xdp-loader locks out all others
        yield


@contextmanager
def veth(name: str = "near", queues: int = QUEUES) -> Iterator[Veth]:
    """Made in the network namespace of this thread."""
    with ExitStack() as stack, IPRoute() as here:
        far = _new_network()
        stack.callback(os.close, far)
        shape = {"num_tx_queues": queues, "num_rx_queues": queues}
        here.link("add", ifname=name, kind="veth", peer={"ifname": "far", "net_ns_fd": far} | shape, **shape)
        (index,) = here.link_lookup(ifname=name)
        stack.callback(_delete, name)
        _configure(here, index, NEAR4, NEAR6)
        hardware = here.link("get", index=index)[0].get("address")
        with inside(far), IPRoute() as there:
            (far_index,) = there.link_lookup(ifname="far")
            _configure(there, far_index, FAR4, FAR6)
            for address in (NEAR4, NEAR6):  # nothing is sent but what the test sends
                there.neigh("add", dst=address, lladdr=hardware, ifindex=far_index, state="permanent")
        yield Veth(name, index, far, far_index)


def _configure(route: IPRoute, index: int, address4: str, address6: str) -> None:
    route.addr("add", index=index, address=address4, prefixlen=24)
    route.addr("add", index=index, address=address6, prefixlen=64, flags=0x02)  # IFA_F_NODAD
    route.link("set", index=index, state="up")


def _delete(name: str) -> None:
    with IPRoute() as route:
        for index in route.link_lookup(ifname=name):
            route.link("del", index=index)
