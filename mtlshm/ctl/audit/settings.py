# SPDX-License-Identifier: BSD-3-Clause
"""The setting that keeps a disturbance away from lcores.

None of these may cost a living process anything: no unit is narrowed that an owner of lcores is in, of a process only
one thread is moved, and nothing is said where no CPU is left for others.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mtlshm import CpuSet
from mtlshm.ctl.audit.counters import Source, listed
from mtlshm.ctl.audit.threads import Thread

_LONGEST = 4096  # bytes of a cgroup's path
_UNIT = re.compile(r"[\w:.@\\-]+\.(service|scope)")  # what a shell takes as it is
_SYSTEMD = Path("/run/systemd/system")
_RCU = re.compile(r"rcu|cpuhp|RCU")


def unit(pid: int) -> str:
    """The unit of the system's systemd that a process is in; "" if there is none, or no cgroup v2."""
    with suppress(OSError), open(f"/proc/{pid}/cgroup", errors="replace") as file:
        first = file.readline(_LONGEST)
        if first.startswith("0::") and _SYSTEMD.is_dir():
            parts = first.removeprefix("0::").strip().split("/")
            return next((part for part in parts if _UNIT.fullmatch(part)), "")
    return ""


@dataclass(frozen=True, slots=True)
class Settings:
    """For these lcores."""

    keep: CpuSet  # what to protect
    rest: CpuSet  # the CPUs that are left for others
    owners: frozenset[str]  # units that owners of lcores are in
    irqbalance: bool  # it runs here, and would undo what it is not told

    def thread(self, thread: Thread, bound: bool) -> str | None:
        """The setting that keeps this thread away. `bound`: the thread may run on that lcore only."""
        if not self.rest:
            return None
        if thread.kernel:
            return self._kernel_thread(thread.comm, bound)
        found = unit(thread.pid)
        if found and found not in self.owners:
            return f"systemctl set-property --runtime {found} AllowedCPUs={self.rest}"
        return f"taskset -pc {self.rest} {thread.tid}"

    def _kernel_thread(self, comm: str, bound: bool) -> str | None:
        if comm.startswith("kworker/u"):
            mask = f"{sum(1 << cpu for cpu in self.rest):x}"
            groups = [mask[max(end - 8, 0) : end] for end in range(len(mask), 0, -8)]
            return f"echo {','.join(reversed(groups))} > /sys/devices/virtual/workqueue/cpumask"
        if comm.startswith("ksoftirqd"):
            return self._boot("irqaffinity")
        if _RCU.match(comm):
            return self._boot("rcu_nocbs")
        return self._boot("nohz_full" if bound else "isolcpus")

    def interrupt(self, source: Source) -> str | None:
        """A device's."""
        if not source.name.isdecimal() or not self.rest:
            return None
        if self.irqbalance:
            return f"IRQBALANCE_BANNED_CPULIST={self.keep} in the environment of irqbalance, then restart it"
        return f"echo {self.rest} > /proc/irq/{source.name}/smp_affinity_list"

    def soft_interrupt(self, source: Source) -> str | None:
        """Most follow something else."""
        if not self.rest:
            return None
        if source.name in ("NET_RX", "NET_TX"):
            return f"{self._boot('irqaffinity')}, and leave {self.keep} out of rps_cpus of network interfaces"
        boot = {"BLOCK": "irqaffinity", "RCU": "rcu_nocbs", "TIMER": "nohz_full", "HRTIMER": "nohz_full"}
        name = boot.get(source.name) or {"SCHED": "isolcpus"}.get(source.name)
        return self._boot(name) if name else None

    def tick(self, cpu: int) -> str | None:
        """If the kernel could do without."""
        if not self.rest or cpu in listed("nohz_full"):
            return None
        return self._boot("nohz_full")

    def governor(self, cpu: int, name: str | None) -> str | None:
        """The one with which the frequency does not change."""
        if name in (None, "performance"):
            return None
        return f"cpupower -c {cpu} frequency-set -g performance"

    def _boot(self, name: str) -> str:
        """The value of a parameter of the kernel's command line."""
        values = {"irqaffinity": str(self.rest), "isolcpus": f"managed_irq,domain,{self.keep}"}
        return f"boot with {name}={values.get(name, str(self.keep))}"


def irqbalance_runs(comms: dict[int, str]) -> bool:
    """Among processes, by their names."""
    return os.path.exists("/proc/irq") and "irqbalance" in comms.values()
