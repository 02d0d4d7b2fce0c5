# SPDX-License-Identifier: BSD-3-Clause
"""lcore ids of other processes, as CPUs.

From DPDK 25.11 on libmtl lets each process number its lcores 0..N over its own CPU set, so an id says nothing by
itself. But EAL names each worker thread after its lcore id and pins it to its CPU before libmtl asks for an lcore;
both can be read from /proc. The main lcore's thread keeps the program's name, and libmtl does not ask for that lcore.

/proc lists threads in the order of their creation, and EAL's come early: before those that libmtl makes. So only the
first ones are looked at: anyone may have very many, and whoever looks does nothing else meanwhile.
"""

from __future__ import annotations

import os
import re
from itertools import islice
from pathlib import Path

from mtlshm import CpuSet

# dpdk-worker<id> since DPDK 23.11; before that lcore-worker-<id>, or rte-worker-<id>
_WORKER = re.compile(r"(?:dpdk-worker|lcore-worker-|rte-worker-)(\d+)$")
_MOST = 2048  # threads; that takes 50 ms
_AFFINITY = re.compile(r"^Cpus_allowed_list:\s*(.*)$", re.MULTILINE)


def lcores(pid: int) -> dict[int, int]:
    """The CPU of each worker lcore of a process; empty if it has none, is none of EAL's or cannot be seen."""
    found: dict[int, int] = {}
    try:
        with os.scandir(f"/proc/{pid}/task") as entries:
            threads = [Path(entry) for entry in islice(entries, _MOST)]
    except OSError:
        return found
    for thread in threads:
        try:
            worker = _WORKER.match((thread / "comm").read_text().strip())
            allowed = _AFFINITY.search((thread / "status").read_text()) if worker else None
            cpus = CpuSet.parse(allowed[1]) if allowed else CpuSet()
        except (OSError, ValueError):  # a thread that has ended; or one on CPUs beyond the table
            continue
        if worker and len(cpus) == 1:  # else it may run anywhere among them, and stands for no CPU
            found[int(worker[1])] = min(cpus)
    return found
