# SPDX-License-Identifier: BSD-3-Clause
"""CPUs and memory: what keeps lcores from being alone on their CPUs. It costs pictures, and no claim."""

from __future__ import annotations

import re
from pathlib import Path

from mtlshm import CpuSet, Host, Kind, MtlshmError
from mtlshm.ctl.host.place import Place
from mtlshm.ctl.verdict import State, Verdict

_CPUS = "sys/devices/system/cpu"
_PLENTY = 8 << 20  # KiB of memory of which nobody misses one GiB
_FEW = 5  # interrupts that are named


def lent_lcores(place: Place) -> Verdict:
    """Do idle loans to legacy processes leave nothing to others?"""
    try:
        with Host(place.segment, create=False, read_only=True) as host:
            snapshot = host.snapshot()
    except MtlshmError:
        return Verdict("lent-lcores", State.UNKNOWN, f"{place.segment} cannot be read")
    idle = CpuSet(lcore.number for lcore in snapshot.lcores if lcore.owner.kind == Kind.POOL)
    free = (place.cpus(f"{_CPUS}/online") or CpuSet()) - CpuSet(lcore.number for lcore in snapshot.lcores)
    if not idle:
        return Verdict("lent-lcores", State.OK, "no lcore is lent and idle")
    if free:
        return Verdict("lent-lcores", State.OK, f"{idle} lent to legacy processes and idle, {free} free")
    text = f"no lcore is free, and {idle} are lent to legacy processes that do not use them"
    # Even one as a range: a number alone would be how many.
    listed = ",".join(f"{first}-{last}" for first, last in idle.ranges())
    return Verdict("lent-lcores", State.WARNING, text, f"mtlshm-ctl legacy reclaim {listed}")


def hugepages(place: Place) -> Verdict:
    """libmtl keeps its packets there."""
    sizes = []
    for directory in sorted((place.root / "sys/kernel/mm/hugepages").glob("hugepages-*kB")):
        there, free = (int((directory / name).read_text()) for name in ("nr_hugepages", "free_hugepages"))
        if there:
            kib = int(directory.name.removeprefix("hugepages-").removesuffix("kB"))
            sizes.append(f"{there} of {kib >> 10} MiB, {free} free")
    if sizes:
        return Verdict("hugepages", State.OK, "; ".join(sizes))
    text = "there are no huge pages, which libmtl needs for all but AF_XDP and kernel sockets"
    available = re.search(r"^MemAvailable: +(\d+) kB", place.read("proc/meminfo") or "", re.MULTILINE)
    plenty = available is not None and int(available[1]) >= _PLENTY
    advice = "for 1 GiB: sysctl vm.nr_hugepages=512" if plenty else None
    return Verdict("hugepages", State.WARNING, text, advice)


def isolated_cpus(place: Place) -> Verdict:
    """Are there any, and may processes here use them?"""
    isolated = place.cpus(f"{_CPUS}/isolated")
    if isolated is None:
        return Verdict("isolated-cpus", State.UNKNOWN, "the kernel does not say which CPUs are isolated")
    if not isolated:
        text = "no CPU is isolated: the scheduler may put other threads on any lcore"
        return Verdict("isolated-cpus", State.WARNING, text, "isolcpus=LIST on the kernel's command line")
    allowed = _cpuset(place)
    if allowed is None:
        return Verdict("isolated-cpus", State.UNKNOWN, f"{isolated} are isolated; the cpuset here is not known")
    if outside := isolated - allowed:
        text = f"isolated CPUs {outside} are outside the cpuset here, {allowed}: no process here can claim them"
        return Verdict("isolated-cpus", State.WARNING, text, "add them to AllowedCPUs= of its slice")
    text = f"{isolated} are isolated, and in the cpuset here; `taskset -c {isolated}` lets a command claim them"
    return Verdict("isolated-cpus", State.OK, text)


def _cpuset(place: Place) -> CpuSet | None:
    """The cpuset of this process's control group, or of the nearest ancestor that has one."""
    found = None
    for line in (place.read("proc/self/cgroup") or "").splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0":
            found = found or _nearest(place, "sys/fs/cgroup", path, "cpuset.cpus.effective")
        elif "cpuset" in controllers.split(","):
            found = _nearest(place, "sys/fs/cgroup/cpuset", path, "cpuset.effective_cpus")
    return found


def _nearest(place: Place, mount: str, group: str, name: str) -> CpuSet | None:
    for above in (Path(group), *Path(group).parents):
        if cpus := place.cpus(f"{mount}/{str(above).lstrip('/')}/{name}"):
            return cpus
    return None


def nohz_full(place: Place) -> Verdict:
    """The timer tick stops on isolated CPUs."""
    isolated = place.cpus(f"{_CPUS}/isolated")
    if not isolated:
        return Verdict("nohz-full", State.OK, "no CPU is isolated that the timer tick could disturb")
    without = place.cpus(f"{_CPUS}/nohz_full")
    if without is None:
        text = f"the timer ticks on isolated CPUs {isolated}: this kernel is built without CONFIG_NO_HZ_FULL"
        return Verdict("nohz-full", State.WARNING, text)
    if ticking := isolated - without:
        text = f"the timer ticks on isolated CPUs {ticking}"
        return Verdict("nohz-full", State.WARNING, text, f"nohz_full={isolated} on the kernel's command line")
    return Verdict("nohz-full", State.OK, f"the timer tick stops on {isolated} while one thread runs there")


def irq_affinity(place: Place) -> Verdict:
    """Do interrupts come to the CPUs that shall be undisturbed: the isolated ones, else those that are held?"""
    quiet, which = place.cpus(f"{_CPUS}/isolated"), "isolated CPUs"
    if not quiet:
        quiet, which = _held(place), "held lcores"
    if not quiet:
        return Verdict("irq-affinity", State.OK, "no CPU is isolated and no lcore is held")
    names = []
    for directory in sorted((place.root / "proc/irq").glob("[0-9]*"), key=lambda path: int(path.name)):
        number = directory.name
        goes = place.cpus(f"proc/irq/{number}/effective_affinity_list")
        if goes is None:  # before Linux 4.14, and on some machines
            goes = place.cpus(f"proc/irq/{number}/smp_affinity_list")
        if goes and goes & quiet:
            names.append(" ".join([number, *sorted(each.name for each in directory.iterdir() if each.is_dir())]))
    if not names:
        return Verdict("irq-affinity", State.OK, f"no interrupt goes to {which} {quiet}")
    more = f" and {len(names) - _FEW} more" if len(names) > _FEW else ""
    text = f"interrupts may come to {which} {quiet}: {', '.join(names[:_FEW])}{more}"
    others = (place.cpus(f"{_CPUS}/online") or CpuSet()) - quiet
    if not others:
        return Verdict("irq-affinity", State.WARNING, text)
    advice = f"irqaffinity={others} on the kernel's command line; IRQBALANCE_BANNED_CPULIST={quiet} for irqbalance"
    return Verdict("irq-affinity", State.WARNING, text, advice)


def _held(place: Place) -> CpuSet:
    try:
        with Host(place.segment, create=False, read_only=True) as host:
            return CpuSet(one.number for one in host.snapshot().lcores if one.owner.kind != Kind.POOL)
    except MtlshmError:
        return CpuSet()


def governor(place: Place) -> Verdict:
    """Do CPUs run as fast as they can?"""
    found: dict[str, set[int]] = {}
    for file in (place.root / _CPUS).glob("cpu[0-9]*/cpufreq/scaling_governor"):
        found.setdefault(file.read_text().strip(), set()).add(int(file.parts[-3].removeprefix("cpu")))
    if not found:
        return Verdict("governor", State.OK, "the kernel does not scale frequencies here")
    slow = {name: CpuSet(cpus) for name, cpus in found.items() if name != "performance"}
    if not slow:
        return Verdict("governor", State.OK, "all CPUs have the governor performance")
    text = "; ".join(f"CPUs {cpus} have the governor {name}" for name, cpus in sorted(slow.items()))
    return Verdict("governor", State.WARNING, text, "cpupower frequency-set --governor performance")
