# SPDX-License-Identifier: BSD-3-Clause
"""The maps of our XDP programs: ports let through, their sockets, and counters."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from mtlshm.net import bpf
from mtlshm.net.attached import Attached, Way

PORTS = 65536

MAPS = {".data.ports": "ports", ".data.counters": "counters", "xsks_map": "xsks_map"}  # name of the map: of its pin
_COUNTERS = struct.Struct("=8Q")  # struct counters of udp.h
_CPUS = 1024  # MAX_CPUS of udp.h


@dataclass(frozen=True)
class Counters:
    """Packets since the program was loaded."""

    hits: int  # to a port that is set
    passes: int  # all others
    unclaimed: int | None  # hits with no socket on their queue, which went to the stack; None: the chain does not count


class Gate:
    """The programs of an interface, complete: which ports they let through, to which sockets.

    Closing it changes nothing on the interface.
    """

    def __init__(self, attached: Attached, maps: dict[str, bpf.Map]) -> None:
        assert attached.way
        assert attached.mode
        self.attached = attached
        self.way = attached.way
        self.mode = attached.mode
        self._held = ExitStack()
        for each in maps.values():
            self._held.callback(each.close)
        self.xsks_map = maps["xsks_map"]
        self.queues = self.xsks_map.info.max_entries  # those from here on can have no socket
        self._ports = self._held.enter_context(maps["ports"].mapped())
        self._counters = self._held.enter_context(maps["counters"].mapped())

    def set_port(self, port: int, let_through: bool) -> None:
        """Packets to the port go to AF_XDP, or no longer. One store: others may do the same at once."""
        if not 0 <= port < PORTS:
            raise ValueError(f"{port} is no UDP port")
        self._ports[port] = let_through

    def ports(self) -> set[int]:
        """The UDP ports that are let through, as the map has them now."""
        return {port for port, byte in enumerate(self._ports[:PORTS]) if byte}

    def set_socket(self, queue: int, socket: int) -> None:
        """Packets for AF_XDP that arrive on the queue go to this socket, a descriptor."""
        self.xsks_map.update(struct.pack("=I", queue), struct.pack("=I", socket))

    def remove_socket(self, queue: int) -> None:
        """Take the socket on a queue out of the map, if there is one; packets then go to the stack."""
        if queue >= self.queues:
            return
        with suppress(FileNotFoundError):
            self.xsks_map.delete(struct.pack("=I", queue))

    def counters(self) -> Counters:
        """The sums over all CPUs, which go on counting meanwhile."""
        each_cpu = list(_COUNTERS.iter_unpack(self._counters[:]))
        hits, passes, unclaimed = (sum(values[n] for values in each_cpu) for n in range(3))
        return Counters(hits, passes, unclaimed if self.way is Way.FUSED else None)

    def close(self) -> None:
        """Close the maps. Nothing changes on the interface."""
        self._held.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self.close()


def maps_of(name: str, programs: Iterable[bpf.ProgramInfo]) -> dict[str, bpf.Map]:
    """The maps of our programs, by pin name. EPROTO if they have another shape. `name` is the interface's."""
    maps: dict[str, bpf.Map] = {}
    with ExitStack() as stack:
        for number in [number for program in programs for number in program.map_ids]:
            each = stack.enter_context(bpf.Map.by_id(number))
            info = each.info
            if pin := MAPS.get(info.name):
                maps[pin] = each
        sizes = [maps[pin].info.value_size for pin in ("ports", "counters", "xsks_map") if pin in maps]
        if sizes != [PORTS, _CPUS * _COUNTERS.size, 4]:
            reason = "its programs are of another version of mtlshm; when nobody uses them, unload it"
            raise OSError(errno.EPROTO, f"{name}: {reason}")
        for pin in maps:
            maps[pin] = bpf.Map(os.dup(maps[pin].fd))
    return maps
