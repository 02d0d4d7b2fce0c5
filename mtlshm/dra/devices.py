# SPDX-License-Identifier: BSD-3-Clause
"""The devices of a node: the pool's lcores, as one device for each NUMA node.

The scheduler gives claims a share of a device, in steps of a physical core, since a claim gets whole cores. It must
never give what we would refuse, for kubelet would ask for the same again on the same node. So a pool has whole cores
only, and those of a NUMA node have the same number of threads.
"""

from __future__ import annotations

from dataclasses import dataclass

from mtlshm import CpuSet
from mtlshm.cpuset import counted
from mtlshm.topology import Topology


class NoPool(ValueError):
    """These lcores can be no pool; the text says why."""


@dataclass(frozen=True, slots=True)
class Device:
    """The lcores of the pool on one NUMA node."""

    name: str
    node: int
    lcores: CpuSet
    step: int  # threads of a core


def devices(pool: CpuSet, topology: Topology) -> dict[str, Device]:
    """By name. NoPool if it cannot be shared out."""
    if not pool:
        raise NoPool("a pool has at least one lcore")
    if missing := pool - topology.online:
        raise NoPool(f"{pool}: there is no CPU {missing} online")
    cores: dict[int, CpuSet] = {}
    for cpu in topology.cpus:
        cores[cpu.core] = cores.get(cpu.core, CpuSet()) | {cpu.cpu}
    found: dict[str, Device] = {}
    for cpu in topology.cpus:
        if cpu.cpu not in pool:
            continue
        siblings = cores[cpu.core]
        if others := siblings - pool:
            raise NoPool(f"{pool}: a pool has whole cores only; CPU {others} is on the core of CPU {cpu.cpu}")
        name = f"lcores-node{cpu.node}"
        device = found.get(name, Device(name, cpu.node, CpuSet(), len(siblings)))
        if device.step != len(siblings):
            raise NoPool(
                f"{pool}: cores with {counted(device.step)} and with {len(siblings)} on NUMA node {cpu.node}; "
                "a pool has one kind of core on a node"
            )
        found[name] = Device(name, cpu.node, device.lcores | {cpu.cpu}, device.step)
    return found
