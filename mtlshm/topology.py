# SPDX-License-Identifier: BSD-3-Clause
"""The host's CPUs, caches and NUMA nodes, as the C core reads them from sysfs."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import NamedTuple

from mtlshm._core import ffi, lib
from mtlshm.cpuset import CpuSet
from mtlshm.errors import check


class Cpu(NamedTuple):
    """One online CPU and what it shares with others."""

    cpu: int
    core: int  # its physical core, named by the lowest CPU among its SMT siblings
    llc: int  # its last-level cache, named by the lowest CPU that shares it
    node: int  # its NUMA node
    package: int  # its socket
    isolated: bool


class Topology(NamedTuple):
    """The CPUs of a host."""

    possible: CpuSet
    online: CpuSet
    isolated: CpuSet
    nodes: CpuSet  # NUMA nodes that have CPUs, by node number
    cpus: tuple[Cpu, ...]  # the online ones, ascending

    @classmethod
    def read(cls, sysfs: str | os.PathLike[str] | None = None) -> Topology:
        """This host's, or that of the machine which a directory in sysfs format describes.

        On this host the CPUs in the calling thread's affinity mask are online, whatever /sys shows.
        """
        c = ffi.new("struct mtlshm_topology *")
        path = ffi.NULL if sysfs is None else os.fsencode(sysfs)
        check(lib.mtlshm_topology_read(c, path), f"CPU topology in {'/sys' if sysfs is None else os.fspath(sysfs)}")
        isolated, online = CpuSet.from_c(c.isolated), CpuSet.from_c(c.online)
        return cls(
            possible=CpuSet.from_c(c.possible),
            online=online,
            isolated=isolated,
            nodes=CpuSet.from_c(c.nodes),
            cpus=tuple(Cpu(n, c.core[n], c.llc[n], c.node[n], c.package[n], n in isolated) for n in sorted(online)),
        )

    def siblings(self, cpu: Cpu) -> CpuSet:
        """The online CPUs on the same physical core, itself included."""
        return CpuSet(other.cpu for other in self.cpus if other.core == cpu.core)


def unknown() -> str:
    """Why this host's CPUs are not known here, for people; '' if they are."""
    online = "/sys/devices/system/cpu/online"
    if os.access(online, os.R_OK):
        return ""
    return (
        f"{online} cannot be read here: CPUs are those of the affinity mask, and cores, caches, sockets and NUMA nodes "
        "are made up; mount sysfs in this container"
    )


def numa_nodes() -> dict[int, int]:
    """The NUMA node of each CPU of this host, without reading all the rest; {} if the kernel does not tell."""
    nodes = "/sys/devices/system/node"
    found: dict[int, int] = {}
    with suppress(OSError, ValueError):
        for name in os.listdir(nodes):
            if (number := name.removeprefix("node")).isdecimal():
                with open(f"{nodes}/{name}/cpulist") as file:
                    found |= dict.fromkeys(CpuSet.parse(file.read()), int(number))
    return found
