# SPDX-License-Identifier: BSD-3-Clause
"""What the kernel counts for each CPU: times, interrupts and soft interrupts; and its settings for one."""

from __future__ import annotations

import os
import re
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from mtlshm import CpuSet
from mtlshm.ctl.cpu_use import ticks
from mtlshm.errors import reason
from mtlshm.snapshot import printable

_TICK = os.sysconf("SC_CLK_TCK")
_CPUS = Path("/sys/devices/system/cpu")


@dataclass(frozen=True, slots=True)
class Times:
    """The times of one CPU, in seconds."""

    threads: float  # of all threads
    interrupts: float  # hard and soft ones
    stolen: float  # by the hypervisor


@dataclass(frozen=True, slots=True)
class Source:
    """A source of interrupts: a number, or the kernel's name for one without a number."""

    name: str
    about: str = ""  # the device, say

    @property
    def is_tick(self) -> bool:
        """The local timer: the tick, if the CPU has one, and timers of threads."""
        return self.name == "LOC" or self.about.endswith("arch_timer")

    def __str__(self) -> str:
        return f"{self.about} ({self.name})" if self.about else self.name


@dataclass(slots=True)
class Counters:
    """At one moment. What could not be read is in `missing`."""

    at: float
    times: dict[int, Times] = field(default_factory=dict)
    interrupts: dict[Source, dict[int, int]] = field(default_factory=dict)
    soft: dict[Source, dict[int, int]] = field(default_factory=dict)
    forks: int | None = None  # processes and threads that began since boot
    missing: list[str] = field(default_factory=list)

    @classmethod
    def read(cls) -> Counters:
        """Now."""
        counters = cls(time.monotonic())
        if text := counters._text("/proc/stat", "times of CPUs"):
            counters.times = {cpu: _times(times) for cpu, times in ticks(text).items()}
            forks = re.search(r"^processes (\d+)$", text, re.MULTILINE)
            counters.forks = int(forks[1]) if forks else None
        counters.interrupts = _table(counters._text("/proc/interrupts", "interrupts"))
        counters.soft = _table(counters._text("/proc/softirqs", "soft interrupts"))
        return counters

    def _text(self, path: str, what: str) -> str:
        try:
            return Path(path).read_text(errors="replace")
        except OSError as error:
            self.missing.append(f"{what}: {path}: {reason(error)}")
            return ""


def _times(found: list[int]) -> Times:
    user, nice, system, _, _, hard, soft, stolen = (count / _TICK for count in found)
    return Times(user + nice + system, hard + soft, stolen)


def _table(text: str) -> dict[Source, dict[int, int]]:
    """Columns are named by CPU, as those that are offline have none."""
    head, *rows = text.splitlines() or [""]
    cpus = [int(name.removeprefix("CPU")) for name in head.split()]
    found = {}
    for row in rows:
        name, _, rest = row.partition(":")
        cells = rest.split(None, len(cpus))
        if len(cells) >= len(cpus) and all(cell.isdecimal() for cell in cells[: len(cpus)]):  # ERR and MIS have one
            about = cells[len(cpus)] if len(cells) > len(cpus) else ""
            if name.strip().isdecimal():  # "IO-APIC 4-edge ttyS0": the last word names the device
                about = about.rsplit("  ", 1)[-1].strip()
            found[Source(name.strip(), printable(about.strip()))] = dict(zip(cpus, map(int, cells), strict=False))
    return found


def counted(before: dict[Source, dict[int, int]], after: dict[Source, dict[int, int]], cpu: int) -> dict[Source, int]:
    """How often each came on a CPU meanwhile, the most frequent first."""
    found = {source: row.get(cpu, 0) - before.get(source, {}).get(cpu, 0) for source, row in after.items()}
    return dict(sorted(((s, n) for s, n in found.items() if n > 0), key=lambda pair: -pair[1]))


def governor(cpu: int) -> str | None:
    """That of its frequency; None if the kernel sets none."""
    with suppress(OSError):
        return (_CPUS / f"cpu{cpu}/cpufreq/scaling_governor").read_text().strip()
    return None


def listed(name: str) -> CpuSet:
    """The CPUs of a list such as isolated or nohz_full."""
    with suppress(OSError, ValueError):  # "(null)" where the kernel has the file and no list
        return CpuSet.parse((_CPUS / name).read_text())
    return CpuSet()
