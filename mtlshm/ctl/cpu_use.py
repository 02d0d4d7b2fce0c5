# SPDX-License-Identifier: BSD-3-Clause
"""How busy each CPU is, whoever uses it: proc(5) stat, since psutil gives no CPU numbers."""

from __future__ import annotations

import re

from mtlshm import CpuSet, Topology

_TIMES = re.compile(r"^cpu(\d+) (\d+(?: \d+)*)$", re.MULTILINE)


class CpuUse:
    """Per cent of each online CPU since it was last asked. CPUs come and go, and each has its own number."""

    def __init__(self) -> None:
        self._before = _times()

    def take(self) -> dict[int, float | None]:
        """By online CPU; None if it was not online before, or if this cannot be known here."""
        now, before = _times(), self._before
        self._before = now
        if not now:
            return dict.fromkeys(sorted(Topology.read().online))
        return {cpu: _percent(before[cpu], times) if cpu in before else None for cpu, times in now.items()}


def online() -> CpuSet:
    """The online CPUs."""
    return CpuSet(_times()) or Topology.read().online


def ticks(text: str) -> dict[int, list[int]]:
    """Of proc(5) stat, by CPU: user, nice, system, idle, iowait, irq, softirq, steal. What guests use is in user and
    nice as well."""
    return {int(number): [int(time) for time in line.split()][:8] for number, line in _TIMES.findall(text)}


def _percent(before: tuple[int, int], now: tuple[int, int]) -> float:
    busy, all_of_it = (max(after - earlier, 0) for earlier, after in zip(before, now, strict=True))
    return round(100 * min(busy / all_of_it, 1), 1) if all_of_it else 0.0


def _times() -> dict[int, tuple[int, int]]:
    """How long each online CPU was busy, and that with the time it was idle."""
    try:
        with open("/proc/stat") as file:
            text = file.read()
    except OSError:
        return {}
    return {cpu: (sum(times) - sum(times[3:5]), sum(times)) for cpu, times in ticks(text).items()}
