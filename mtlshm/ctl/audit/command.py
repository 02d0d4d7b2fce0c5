# SPDX-License-Identifier: BSD-3-Clause
"""audit, in words. The shape of --json is in audit.schema.json, beside this file."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict

import click

from mtlshm import CpuSet, Host, InstanceInfo, Kind, Snapshot, Topology
from mtlshm.ctl import wording
from mtlshm.ctl.audit import settings
from mtlshm.ctl.audit.counters import Counters
from mtlshm.ctl.audit.threads import Watch
from mtlshm.ctl.audit.verdict import Audited, Interrupts, Intruder, Measured
from mtlshm.ctl.whereabouts import NO_PROCESS, Where, whereabouts
from mtlshm.kinds import TableOwner

_PERIOD = 0.1  # seconds between two looks
_REST = 3  # and at least so many times as long as one took
_KTHREADD = 2  # the PID of the first kernel thread, which only those see that see all


@click.command()
@click.option(
    "--seconds", type=click.FloatRange(0.1, 86400), default=5.0, show_default=True, help="How long to measure."
)
@click.option(
    "--limit",
    type=click.FloatRange(0, 100),
    default=1.0,
    show_default=True,
    metavar="PERCENT",
    help="What others may have of an lcore, or of its SMT sibling.",
)
@click.option("--json", "as_json", is_flag=True, help="One object, as mtlshm/ctl/audit/audit.schema.json says.")
@click.argument("which", metavar="[LIST]", required=False)
@click.pass_context
def audit(context: click.Context, seconds: float, limit: float, as_json: bool, which: str | None) -> None:
    """Measure whether held lcores are really alone.

    Looks at all held lcores, or at those in LIST (such as 2-3,8), and says who else ran there: threads that belong to
    neither the owner nor its tenants nor their child processes, interrupts, and what SMT siblings did; and which
    setting keeps that away. Changes nothing, and needs no root. What cannot be seen is said.

    Exit status 0 if no lcore is disturbed beyond --limit, 1 if one is.
    """
    for name, value in ("--seconds", seconds), ("--limit", limit):
        if value != value:  # FloatRange lets "nan" pass
            raise click.BadParameter("is not a number", param_hint=name)
    try:
        chosen = None if which is None else CpuSet.parse(which)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="LIST") from error
    with Host(context.obj, create=False, read_only=True) as host:
        path, snapshot, topology = host.path, host.snapshot(), host.topology()
    held = CpuSet(lcore.number for lcore in snapshot.lcores if lcore.owner.kind != Kind.POOL)
    lcores = held if chosen is None else chosen
    if offline := lcores - topology.online:
        if chosen is not None:
            raise click.BadParameter(f"{offline}: not online; online: {topology.online}", param_hint="LIST")
        lcores -= offline
    missing = [f"lcores {offline}: held, but not online"] if offline else []
    measured = _measure(snapshot, topology, lcores, held, seconds, limit, missing)
    results = [measured.audit(lcore) for lcore in sorted(lcores)]
    missing += _missing(measured, results)
    if as_json:
        data = {
            "segment": path,
            "seconds": round(measured.seconds, 3),
            "limit": limit,
            "lcores": [asdict(result) for result in results],
            "missing": missing,
        }
        click.echo(json.dumps(data, indent=2))
    else:
        for line in _lines(results, measured, missing):
            click.echo(line)
    context.exit(1 if any(result.verdict == "disturbed" for result in results) else 0)


def _measure(
    snapshot: Snapshot,
    topology: Topology,
    lcores: CpuSet,
    held: CpuSet,
    seconds: float,
    limit: float,
    missing: list[str],
) -> Measured:
    siblings = {c.cpu: topology.siblings(c) - {c.cpu} for c in topology.cpus if c.cpu in lcores}
    rest = topology.online - held - lcores
    where = whereabouts(snapshot.instances)
    lost = frozenset(lcore.owner.owner for lcore in snapshot.lcores if _is_lost(lcore.owner, where))
    watch = Watch({found.pid: owner for owner, found in where.items()})
    if lcores:
        _step_aside(rest - CpuSet(cpu for those in siblings.values() for cpu in those), rest, missing)
    watch.look()
    before = Counters.read()
    end = before.at + seconds * bool(lcores)
    took = 0.0
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(max(_PERIOD, _REST * took), left))
        took = watch.look()
    after = Counters.read()
    owners = frozenset(settings.unit(pid) for pid in watch.families) - {""}
    advice = settings.Settings(held | lcores, rest, owners, settings.irqbalance_runs(watch.comms))
    return Measured(snapshot, watch, before, after, siblings, advice, lost, limit)


def _is_lost(owner: InstanceInfo, where: Mapping[TableOwner, Where]) -> bool:
    """Whether the owner lives, but this process cannot see it."""
    return bool(owner.alive) and owner.kind not in NO_PROCESS and owner.owner not in where


def _step_aside(best: CpuSet, good: CpuSet, missing: list[str]) -> None:
    """So as not to be what we are looking for."""
    for cpus in best, good:
        if cpus:
            with suppress(OSError):  # a cpuset has none of them, or seccomp
                os.sched_setaffinity(0, cpus)
                return
    missing.append("what this audit itself uses: no other CPU is free for it, so its own threads are not counted")


def _missing(measured: Measured, results: list[Audited]) -> list[str]:
    """A sentence for each thing that could not be measured."""
    watch, after = measured.watch, measured.after
    found = list(after.missing)
    if watch.hidden or not os.path.exists(f"/proc/{_KTHREADD}/stat") or watch.comms.get(_KTHREADD) != "kthreadd":
        found.append("kernel threads, and processes that /proc hides here: run it as root, on the host")
    if watch.coarse:
        found.append("short times: this kernel tells those of threads in clock ticks only")
    if watch.unfinished:
        found.append("some threads: there are too many to look at all of them each time")
    for pid in sorted(watch.truncated):
        found.append(f"all threads of {watch.comms.get(pid, 'a process')} (pid {pid}): it has too many")
    if after.forks is not None and measured.before.forks is not None:
        began = after.forks - measured.before.forks - watch.started
        if began > 0:
            found.append(f"where {began} threads ran that began and ended between two looks")
    if results and all(result.governor is None for result in results):
        found.append("frequency governors: this kernel has none (a virtual machine, or the firmware decides)")
    return found


# --- for people --------------------------------------------------------------------------------------------


def _lines(results: list[Audited], measured: Measured, missing: list[str]) -> Iterator[str]:
    if not results:
        yield "no lcore is held"
    holders = {f"{info.owner:#x}": info for info in measured.snapshot.instances}
    for result in results:
        by = wording.name(holders[result.owner]) if result.owner else "nobody"
        why = f" ({'; '.join(result.reasons)})" if result.reasons else ""
        yield f"lcore {result.lcore}: {result.verdict}{why}; held by {by}"
        yield f"    {_figures(result)}"
        if result.verdict == "disturbed":
            yield from (f"    {line}" for line in _causes(result))
    for text in missing:
        yield f"not seen: {text}"


def _figures(result: Audited) -> str:
    def percent(value: float | None) -> str:
        return "?" if value is None else f"{value:.1f} %"

    interrupts = sum(source.per_second for source in result.interrupts)
    words = [
        f"owner {percent(result.own_percent)}, waited {percent(result.waited_percent)}, "
        f"switched out {result.switches} times",
        f"others {percent(result.others_percent)}, interrupts {percent(result.interrupts_percent)}, "
        f"hypervisor {percent(result.stolen_percent)}",
        f"interrupts {interrupts:.0f}/s and timer {result.ticks_per_second or 0:.0f}/s",
    ]
    if result.governor:
        words.append(f"governor {result.governor}")
    return "; ".join(words)


def _causes(result: Audited) -> Iterator[str]:
    yield from _threads("thread", result.threads)
    for sibling in result.siblings:
        busy = "?" if sibling.busy_percent is None else f"{sibling.busy_percent:.1f} %"
        yield f"SMT sibling {sibling.lcore}: busy {busy}"
        yield from _threads(f"thread on {sibling.lcore}", sibling.threads)
    yield from _sources("interrupt", result.interrupts)
    yield from _sources("soft interrupt", result.soft_interrupts)
    if result.ticks_per_second:
        yield _with(f"timer: {result.ticks_per_second:.0f}/s", result.tick_setting)
    if result.governor_setting:
        yield _with(f"governor {result.governor}", result.governor_setting)


def _threads(what: str, intruders: Iterable[Intruder]) -> Iterator[str]:
    for one in intruders:
        names = one.comm if one.comm == one.process else f"{one.process}, {one.comm}"
        number = f"pid {one.pid}" if one.tid == one.pid else f"pid {one.pid}, tid {one.tid}"
        kind = ", kernel" if one.kernel else f", of instance {one.instance}" if one.instance else ""
        share = f"{'' if one.exact else 'up to '}{one.percent:.1f} %"
        yield _with(f"{what} {names} ({number}{kind}): {share}", one.setting)


def _sources(what: str, sources: Iterable[Interrupts]) -> Iterator[str]:
    for one in sources:
        about = f" ({one.about})" if one.about else ""
        yield _with(f"{what} {one.name}{about}: {one.per_second:.0f}/s", one.setting)


def _with(text: str, setting: str | None) -> str:
    return f"{text}; {setting}" if setting else text
