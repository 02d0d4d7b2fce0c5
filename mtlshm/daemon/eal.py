# SPDX-License-Identifier: BSD-3-Clause
"""lcore ids of other processes, as CPUs.

From DPDK 25.11 on libmtl lets each process number its lcores 0..N over its own CPU set, so an id says nothing by
itself. But EAL names each worker thread after its lcore id and pins it to its CPU before libmtl asks for an lcore;
both can be seen. The main lcore's thread keeps the program's name, and libmtl does not ask for that lcore.

A PROCESS WITH NO WORKERS is not one of EAL's, and its ids are CPUs. One whose threads we could not see may be either.
Then there is nothing better than to take the id for the CPU, and to say so.

NAMES DO NOT LAST. From libmtl 23.12 on a scheduler renames the worker that it runs on, and the name stays when the
scheduler has given the lcore back (seen with 26.01). So we look once, before the first lcore is granted, and what was
found is kept for the next daemon if that one gets the connection. If nothing was kept, a renamed worker stands for no
id; it still tells that the process is one of EAL's.

NAMES HAVE 15 CHARACTERS. lcore-worker-100 reads as lcore-worker-10, so a name of that length is but the beginning of
one. A thread whose name fits an id is the one only if no other fits. Where several fit, ids may still be CPUs, if that
is true of each worker that there is. Else no CPU is the right one: rather none than another thread's.

How many threads a process has is its own choice. Of few, this is quick; of more, an observer is asked.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mtlshm import CpuSet
from mtlshm._core import lib
from mtlshm.daemon.observer import Observer
from mtlshm.strangers import threads

# dpdk-worker<id> since DPDK 23.11; before that lcore-worker-<id>, or rte-worker-<id>
_PREFIXES = ("dpdk-worker", "lcore-worker-", "rte-worker-")
_DIGITS = re.compile(r"\d+$")
_RENAMED = "mtl_sch_"
_WORKER = rf"({'|'.join((*_PREFIXES, _RENAMED))})\d*$"
_NAME = 15  # characters, TASK_COMM_LEN
_FEW, _MOST = 64, 65536
_LCORES = int(lib.MTLSHM_LCORES)
ONLINE = Path("/sys/devices/system/cpu/online")


@dataclass(frozen=True, slots=True)
class Lcores:
    """The CPUs of a process's lcores."""

    seen: bool  # else its threads could not be
    online: CpuSet | None = None  # None: who knows
    workers: tuple[tuple[str, tuple[int, ...]], ...] = ()  # names and CPUs

    def cpu(self, lcore_id: int) -> int | None:
        """None: which one cannot be told, or there is no such lcore."""
        if not self.workers:
            return lcore_id if self.online is None or lcore_id in self.online else None
        names = _names(lcore_id)
        fitting = {cpus for name, cpus in self.workers if name in names}
        if len(fitting) == 1 and len(cpus := fitting.pop()) == 1:
            return cpus[0]
        identity = all(len(cpus) == 1 and name in _names(cpus[0]) for name, cpus in self.workers)
        return lcore_id if identity and (lcore_id,) in fitting else None

    def known(self) -> Iterator[tuple[int, int]]:
        """The ids, and what cpu() says of each, if that takes no time; else none."""
        ids: Iterable[int] = range(_LCORES) if self.online is None else self.online
        if self.workers:
            names = [name for name, _ in self.workers] if len(self.workers) <= _FEW else []
            ids = {int(digits[0]) for name in names if (digits := _DIGITS.search(name))}
        for lcore_id in ids:
            if (cpu := self.cpu(lcore_id)) is not None:
                yield lcore_id, cpu

    def keep(self) -> int:
        """A descriptor of a file that kept() reads. OSError."""
        fd = os.memfd_create("lcores", os.MFD_CLOEXEC)
        try:
            os.write(fd, json.dumps(self.workers).encode())
        except OSError:
            os.close(fd)
            raise
        return fd


def kept(fd: int) -> Lcores:
    """The lcore ids that an earlier daemon stored. OSError, ValueError or TypeError if they cannot be read."""
    found = json.loads(os.pread(fd, os.fstat(fd).st_size, 0))
    return _lcores([(str(name), [int(cpu) for cpu in cpus]) for name, cpus in found])


def at_once(pid: int) -> Lcores | None:
    """None if it has so many threads that it takes a while."""
    try:
        if os.stat(f"/proc/{pid}/task").st_nlink - 2 > _FEW:
            return None
    except OSError:
        return _lcores(None)
    return _lcores(threads(pid, 2 * _FEW, named=_WORKER))


async def in_a_while(observer: Observer, pid: int) -> Lcores:
    """OSError if there is no observer."""
    answer = await observer.ask("threads", pid=pid, most=_MOST, named=_WORKER)
    return _lcores(answer["threads"] if answer else None)


def _lcores(found: Iterable[tuple[str, list[int]]] | None) -> Lcores:
    workers = tuple((name, tuple(cpus)) for name, cpus in found or () if not _is_no_worker(name, cpus))
    return Lcores(found is not None, _online(), workers)


def _is_no_worker(name: str, cpus: list[int]) -> bool:
    """A scheduler in a thread of its own, which is not pinned."""
    return name.startswith(_RENAMED) and len(cpus) > 1


def _names(lcore_id: int) -> set[str]:
    return {f"{prefix}{lcore_id}"[:_NAME] for prefix in _PREFIXES}


def _online() -> CpuSet | None:
    """In a container the list may be of other numbers than the kernel's, which are those of affinity masks."""
    try:
        return CpuSet.parse(ONLINE.read_text()) | os.sched_getaffinity(0)
    except (OSError, ValueError):  # there is no /sys
        return None
