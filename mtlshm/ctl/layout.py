# SPDX-License-Identifier: BSD-3-Clause
"""A host's CPUs as boxes in boxes: socket, NUMA node, last-level cache, core, hardware thread."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import NamedTuple

from mtlshm import Cpu, Topology

_LEVELS = ("package", "node", "llc", "core")
_WORDS = {"package": "socket", "node": "NUMA node", "llc": "cache", "core": "core"}


class Part(NamedTuple):
    """A part of a host: its kind and its own parts. A hardware thread has only its CPU."""

    level: str  # host, socket, NUMA node, cache, core or thread
    number: int
    parts: tuple[Part, ...] = ()
    cpu: Cpu | None = None

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.level} {self.number}"

    def threads(self) -> Iterator[Cpu]:
        """All hardware threads in it."""
        if self.cpu:
            yield self.cpu
        for part in self.parts:
            yield from part.threads()


def layout(topology: Topology) -> Part:
    """The layout of the online CPUs."""
    cpus = sorted(topology.cpus, key=lambda cpu: (*(getattr(cpu, level) for level in _LEVELS), cpu.cpu))
    return Part("host", 0, tuple(_parts(cpus, _LEVELS)))


def _parts(cpus: Iterable[Cpu], levels: tuple[str, ...]) -> Iterator[Part]:
    if not levels:
        yield from (Part("thread", cpu.cpu, cpu=cpu) for cpu in cpus)
        return
    for number, inside in groupby(cpus, key=lambda cpu: getattr(cpu, levels[0])):
        yield Part(_WORDS[levels[0]], number, tuple(_parts(list(inside), levels[1:])))
