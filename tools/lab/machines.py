# SPDX-License-Identifier: BSD-3-Clause
"""Machines of all shapes, and what a topology must say of one."""

from __future__ import annotations

from lab.sysfs import Machine
from mtlshm import CpuSet, Topology

ALL = CpuSet(range(1024))


TWO_SOCKETS = Machine(sockets=2, cores=8, threads=2)


MACHINES = {
    "one CPU": Machine(cores=1),
    "two sockets, siblings adjacent": TWO_SOCKETS,
    "two sockets, siblings at + half": Machine(sockets=2, cores=8, threads=2, split=True),
    "four threads a core": Machine(cores=6, threads=4, split=True),
    "offline siblings, a core and a node": Machine(
        sockets=2, cores=4, threads=2, split=True, offline=frozenset({0, 9, 2, 10, *range(4, 8), *range(12, 16)})
    ),
    "holes in the numbering": Machine(sockets=2, cores=6, threads=2, skip=frozenset({0, *range(5, 70), 72, 200})),
    "several caches a node": Machine(sockets=2, cores=16, threads=2, caches=4, split=True),
    "several nodes a socket": Machine(sockets=2, cores=12, threads=2, nodes=2, caches=4),
    "several nodes a cache": Machine(sockets=2, cores=8, threads=2, nodes=2, caches=1, split=True),
    "hybrid": Machine(cores=12, threads=(2,) * 4 + (1,) * 8),
    "isolated": Machine(sockets=2, cores=4, isolated=frozenset({2, 3, 7})),
    "no NUMA, no caches": Machine(sockets=2, cores=4, threads=2, nodes=0, caches=0),
    "an old kernel": Machine(sockets=2, cores=4, threads=2, split=True, old_names=True),
}


LARGEST = Machine(sockets=2, cores=256, threads=2, nodes=2, caches=16, split=True)  # as the table is built for


def check_topology(machine: Machine, topology: Topology) -> None:
    """The topology says of the machine what it is."""
    assert topology.possible == CpuSet(cpu.number for cpu in machine.cpus)
    assert topology.online == CpuSet(cpu.number for cpu in machine.online)
    assert topology.isolated == machine.isolated
    assert topology.nodes == CpuSet(cpu.node for cpu in machine.online)
    cache = "cache" if machine.caches else "package"
    for seen, cpu in zip(topology.cpus, machine.online, strict=True):
        assert seen.cpu == cpu.number
        assert seen.core == min(machine.alike(cpu, "core"))
        assert seen.llc == min(machine.alike(cpu, cache))
        assert (seen.node, seen.package) == (cpu.node, cpu.package)
        assert seen.isolated == (cpu.number in machine.isolated)
