# SPDX-License-Identifier: BSD-3-Clause
"""CPU cores (lcores) of one host, shared out among its media processes.

    from mtlshm import Host

    with Host() as host, host.register("encoder") as me:
        lcores = me.claim_many(4, node=0)      # CpuSet: str(lcores) == "4-7"

The table is in shared memory; a claim is one C call, with or without a daemon. What a process held when it died is free
for whoever needs it next. An instance lives as long as the process's address space: not over exec(), and not in a
forked child, which registers for itself.
"""

from mtlshm.cpuset import CpuSet
from mtlshm.errors import Busy, InstanceGone, MtlshmError, NoSegment, NotPermitted, OtherLayout, TimedOut
from mtlshm.events import Event, EventKind, Follower
from mtlshm.host import Host
from mtlshm.instance import Instance
from mtlshm.kinds import Kind, LcoreType, Smt
from mtlshm.snapshot import InstanceInfo, Lcore, Process, Snapshot
from mtlshm.topology import Cpu, Topology

__all__ = [
    "Busy",
    "Cpu",
    "CpuSet",
    "Event",
    "EventKind",
    "Follower",
    "Host",
    "Instance",
    "InstanceGone",
    "InstanceInfo",
    "Kind",
    "Lcore",
    "LcoreType",
    "MtlshmError",
    "NoSegment",
    "NotPermitted",
    "OtherLayout",
    "Process",
    "Smt",
    "Snapshot",
    "TimedOut",
    "Topology",
]
