# SPDX-License-Identifier: BSD-3-Clause
"""Made-up machines, written down as the kernel would show them in sysfs.

An offline CPU has neither topology nor caches, and is missing from its siblings' lists and its node's cpulist.
Of what the kernel has more than once, or nobody here reads, there is only so much that a wrong choice would show:
as file systems go, a thousand CPUs are slow to write.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import count, islice
from pathlib import Path

from mtlshm import CpuSet


@dataclass(frozen=True)
class Cpu:
    """A possible CPU. What it shares with others is numbered through the whole machine."""

    number: int
    core: int
    cache: int  # the last level
    node: int
    package: int
    online: bool


@dataclass(frozen=True, kw_only=True)
class Machine:
    sockets: int = 1
    cores: int = 4  # of a socket
    threads: int | tuple[int, ...] = 1  # of a core; as a tuple: of each core of a socket
    nodes: int = 1  # of a socket; 0: a kernel without NUMA
    caches: int = 1  # last-level caches of a socket; 0: the kernel knows no caches
    split: bool = False  # the second siblings of all cores after the first ones of all, not beside them
    skip: frozenset[int] = frozenset()  # numbers that no CPU has
    offline: frozenset[int] = frozenset()
    isolated: frozenset[int] = frozenset()
    old_names: bool = False  # before Linux 5.3

    @cached_property
    def cpus(self) -> tuple[Cpu, ...]:
        """All possible CPUs, ascending."""
        widths = self.threads if isinstance(self.threads, tuple) else (self.threads,) * self.cores
        per_socket = len(widths)
        widths *= self.sockets
        # (core, thread) of each CPU, in the order of their numbers
        places = [(core, thread) for core, width in enumerate(widths) for thread in range(width)]
        if self.split:
            places.sort(key=lambda place: place[1])
        numbers = islice((number for number in count() if number not in self.skip), len(places))

        def share(core: int, parts: int) -> int:
            socket, within = divmod(core, per_socket)
            return socket * parts + within * parts // per_socket

        return tuple(
            Cpu(
                number,
                core,
                share(core, self.caches or 1),
                share(core, self.nodes) if self.nodes else 0,
                share(core, 1),
                number not in self.offline,
            )
            for number, (core, _) in zip(numbers, places, strict=True)
        )

    @cached_property
    def online(self) -> tuple[Cpu, ...]:
        return tuple(cpu for cpu in self.cpus if cpu.online)

    def alike(self, cpu: Cpu, what: str) -> CpuSet:
        """The online CPUs that share a core, cache, node or package with this one."""
        return self._groups[what, getattr(cpu, what)]

    @cached_property
    def _groups(self) -> dict[tuple[str, int], CpuSet]:
        groups: dict[tuple[str, int], set[int]] = {}
        for cpu in self.online:
            for what in "core", "cache", "node", "package":
                groups.setdefault((what, getattr(cpu, what)), set()).add(cpu.number)
        return {key: CpuSet(numbers) for key, numbers in groups.items()}

    def write(self, directory: Path) -> Path:
        """Write the files; returns the directory, for use in place of /sys."""
        root = directory / "devices/system/cpu"
        possible = {cpu.number for cpu in self.cpus}
        _write(root / "possible", _list(possible))
        _write(root / "present", _list(possible))
        _write(root / "online", _list(cpu.number for cpu in self.online))
        _write(root / "offline", _list(possible & self.offline))
        _write(root / "isolated", _list(possible & self.isolated))
        for cpu in self.cpus:
            if cpu.online:
                self._write_cpu(root / f"cpu{cpu.number}", cpu)
            else:
                (root / f"cpu{cpu.number}").mkdir()
        if self.nodes:
            self._write_nodes(directory / "devices/system/node")
        return directory

    def _write_cpu(self, directory: Path, cpu: Cpu) -> None:
        core = _list(self.alike(cpu, "core"))
        _write(directory / "topology/physical_package_id", f"{cpu.package}\n")
        _write(directory / "topology/thread_siblings_list", core)
        if not self.old_names:
            _write(directory / "topology/core_cpus_list", core)
        if self.caches:
            levels = (1, "Data", core), (2, "Unified", _list(self.alike(cpu, "cache")))
            for index, (level, kind, sharers) in enumerate(levels):
                for name, text in ("level", f"{level}\n"), ("type", f"{kind}\n"), ("shared_cpu_list", sharers):
                    _write(directory / f"cache/index{index}" / name, text)

    def _write_nodes(self, directory: Path) -> None:
        # A node keeps its memory when its CPUs are gone.
        nodes = {cpu.node for cpu in self.cpus}
        _write(directory / "online", _list(nodes))
        _write(directory / "possible", _list(nodes))
        _write(directory / "has_cpu", _list(cpu.node for cpu in self.online))
        for node in nodes:
            _write(directory / f"node{node}/cpulist", _list(cpu.number for cpu in self.online if cpu.node == node))


def _list(numbers: Iterable[int]) -> str:
    return f"{CpuSet(numbers)}\n"


def _write(file: Path, text: str) -> None:
    try:
        file.write_text(text)
    except FileNotFoundError:
        file.parent.mkdir(parents=True)
        file.write_text(text)
