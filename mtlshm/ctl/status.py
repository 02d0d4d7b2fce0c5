# SPDX-License-Identifier: BSD-3-Clause
"""status: who holds what. The shape of --json is in status.schema.json, beside this file."""

from __future__ import annotations

import json
import re
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mtlshm import CpuSet, Host, InstanceInfo, Kind, Lcore, LcoreType, OtherLayout, Snapshot
from mtlshm.ctl import listening, survey, wording
from mtlshm.ctl.families import Families
from mtlshm.ctl.options import pins_option, state_option
from mtlshm.ctl.terminal import can_redraw, console
from mtlshm.errors import reason
from mtlshm.host import default_path
from mtlshm.previous_layout import PreviousHost

if TYPE_CHECKING:
    from rich.console import Group, RenderableType

_SAMPLE = 0.2  # seconds over which CPU use is measured when there is no interval of --watch


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One object, as mtlshm/ctl/status.schema.json says.")
@click.option(
    "--watch",
    is_flag=False,
    flag_value=2.0,
    type=click.FloatRange(0.1, 86400),
    metavar="[SECONDS]",
    help="Show it again and again, every 2 seconds by default, until interrupted.",
)
@state_option
@pins_option
@click.pass_context
def status(context: click.Context, as_json: bool, watch: float | None, state: Path, pins: Path) -> None:
    """Show lcores, instances and interfaces in use.

    Needs read permission for the segment only, and changes nothing. What a dead process left is shown as its own until
    it is collected. An lcore of type lease is held for tenants, as by a reservation; that of a process which uses it
    itself until a tenant claims it, as the command of `run` does, is of type app (lease). One that a tenant uses is
    shown as that one's, with the parent it came from. CPU % counts all processes on that CPU.
    """
    if watch is not None and not watch >= 0.1:  # FloatRange lets "nan" pass
        raise click.BadParameter("is not a number", param_hint="--watch")
    with _open(context.obj) as host:
        view = _View(host, _CpuUse(host), state, pins)
        if watch is None:
            time.sleep(_SAMPLE)
            if as_json:
                click.echo(json.dumps(view.as_data(), indent=2))
            else:
                console().print(view.as_tables())
            return
        with suppress(KeyboardInterrupt):
            _watch(view, watch, as_json)


def _open(path: str | None) -> Host | PreviousHost:
    """Also a segment of the version before this one, which goes on until its last user ends."""
    try:
        return Host(path, create=False, read_only=True)
    except OtherLayout as error:
        with suppress(LookupError):
            found = PreviousHost(path or default_path())
            click.echo(f"mtlshm-ctl: {reason(error)}", err=True)
            return found
        raise


def _watch(view: _View, interval: float, as_json: bool) -> None:
    if as_json:
        while True:
            time.sleep(interval)
            click.echo(json.dumps(view.as_data()))

    screen = console()
    time.sleep(_SAMPLE)
    while not can_redraw():
        screen.print(view.as_tables())
        time.sleep(interval)

    from rich.live import Live

    with Live(view.as_tables(), console=screen, screen=True) as live:
        while True:
            time.sleep(interval)
            live.update(view.as_tables(), refresh=True)


@dataclass(frozen=True, slots=True)
class _View:
    """What is shown, as it is at each call."""

    host: Host | PreviousHost
    usage: _CpuUse
    state: Path
    pins: Path

    def as_data(self) -> dict[str, Any]:
        """What --json prints."""
        found = survey.survey_if_any(self.state, self.pins)
        return _as_data(self.host, self.host.snapshot(), self.usage) | asdict(found)

    def as_tables(self) -> Group:
        found = survey.survey_if_any(self.state, self.pins)
        return _as_tables(self.host, self.host.snapshot(), self.usage, found)


_CPU_TIMES = re.compile(r"^cpu(\d+) (\d+(?: \d+)*)$", re.MULTILINE)


class _CpuUse:
    """Per cent of each online CPU since it was last asked. CPUs come and go, and each has its own number."""

    def __init__(self, host: Host | PreviousHost) -> None:
        self._host = host
        self._before = _cpu_times()

    def take(self) -> dict[int, float | None]:
        """By online CPU; None if it was not online before, or if this cannot be known here."""
        now, before = _cpu_times(), self._before
        self._before = now
        if not now:
            return dict.fromkeys(sorted(self._host.topology().online))
        return {cpu: _percent(before[cpu], times) if cpu in before else None for cpu, times in now.items()}


def _percent(before: tuple[int, int], now: tuple[int, int]) -> float:
    busy, all_of_it = (max(after - earlier, 0) for earlier, after in zip(before, now, strict=True))
    return round(100 * min(busy / all_of_it, 1), 1) if all_of_it else 0.0


def _cpu_times() -> dict[int, tuple[int, int]]:
    """How long each online CPU was busy, and that with the time it was idle. proc(5) stat; psutil gives no numbers."""
    try:
        text = Path("/proc/stat").read_text()
    except OSError:
        return {}
    found = {}
    for number, line in _CPU_TIMES.findall(text):
        times = [int(time) for time in line.split()][:8]  # what guests use is in user and nice as well
        found[int(number)] = (sum(times) - sum(times[3:5]), sum(times))
    return found


def _as_data(host: Host | PreviousHost, snapshot: Snapshot, usage: _CpuUse) -> dict[str, Any]:
    use = usage.take()
    families = Families(snapshot)
    return {
        "segment": host.path,
        "created": datetime.fromtimestamp(snapshot.created, UTC).isoformat(),
        "daemon": f"{snapshot.daemon.owner:#x}" if snapshot.daemon else None,
        "warnings": list(listening.troubles(snapshot.daemon, ask=False)),
        "semaphore": f"{snapshot.semaphore.owner:#x}" if snapshot.semaphore else None,
        "counters": {name: getattr(snapshot, name) for name in ("registered", "collected", "recovered", "takeovers")},
        "online": sorted(use),
        "instances": [
            {
                **_identity(families, info),
                "kind": _name(info.kind),
                "key": info.key or None,
                "pid_namespace": info.pid_namespace,
                "uid": info.uid,
                "age": round(info.age, 3),
                "lcores": sorted(info.lcores),
                "lent": sorted(families.lent(info.owner)),
            }
            for info in snapshot.instances
        ],
        "lcores": [
            {
                "lcore": lcore.number,
                "id": lcore.id,
                "type": _use(lcore),
                "lease": lcore.type == LcoreType.LEASE,
                **_identity(families, lcore.owner),
                "age": round(lcore.age, 3),
                "cpu_percent": use.get(lcore.number),
            }
            for lcore in snapshot.lcores
        ],
    }


def _identity(families: Families, info: InstanceInfo) -> dict[str, Any]:
    return {
        "owner": f"{info.owner:#x}",
        "parent": f"{info.parent:#x}" if info.parent else None,
        "label": info.label,
        "state": families.state(info),
        "pid": info.pid,
        "comm": info.comm,
        "user": wording.user(info.uid),
        "host": info.hostname,
    }


def _use(lcore: Lcore) -> str:
    """What it is for. What a process holds for tenants it uses itself, as long as none has claimed it."""
    if lcore.type == LcoreType.LEASE and lcore.owner.kind == Kind.SHM:
        return _name(LcoreType.APP)
    return _name(lcore.type)


def _name(value: Any) -> str:
    return value.name.lower() if hasattr(value, "name") else str(value)


def _as_tables(host: Host | PreviousHost, snapshot: Snapshot, usage: _CpuUse, found: survey.Survey) -> Group:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    use = usage.take()
    owner_columns = ("label", "pid", "comm", "user", "host")
    families = Families(snapshot)
    parent_column = ("parent",) if families else ()  # a terminal is narrow

    def cells(info: InstanceInfo) -> list[Text]:  # not markup, whatever somebody calls himself
        made_by = ("-", "-") if info.kind == Kind.RESERVATION else (wording.process(info), info.comm)
        return [Text(text) for text in (info.label, *made_by, wording.user(info.uid), info.hostname)]

    def parent(info: InstanceInfo) -> list[Text]:
        above = families.parent(info)
        return [Text(wording.short(above) if above else "gone" if info.parent else "-")] if families else []

    def marked(info: InstanceInfo) -> str:
        marks = {"alive": "", "dead": "[red]dead[/]", "kept": "kept", "unknown": "[yellow]unknown[/]"}
        return marks[families.state(info)]

    lcores = Table("lcore", "type", *owner_columns, *parent_column, "age", "CPU %", "", box=None, header_style="bold")
    for lcore in snapshot.lcores:
        busy = "-" if (percent := use.get(lcore.number)) is None else f"{percent:.0f}"
        lcores.add_row(
            str(lcore.number) if lcore.id == lcore.number else f"{lcore.number} (id {lcore.id})",
            _use(lcore) + " (lease)" * (lcore.type == LcoreType.LEASE and _use(lcore) != "lease"),
            *cells(lcore.owner),
            *parent(lcore.owner),
            wording.duration(lcore.age),
            busy,
            marked(lcore.owner),
        )
    columns = ("instance", *owner_columns[1:], "kind", *parent_column, "age", "lcores", *("lent",) * bool(families), "")
    instances = Table(*columns, box=None, header_style="bold")
    for info in snapshot.instances:
        instances.add_row(
            *cells(info),
            _name(info.kind),
            *parent(info),
            wording.duration(info.age),
            str(info.lcores) or "-",
            *[str(families.lent(info.owner)) or "-"] * bool(families),
            marked(info),
        )

    held = CpuSet(lcore.number for lcore in snapshot.lcores)
    free = CpuSet(use) - held
    daemon = f"daemon: pid {wording.process(snapshot.daemon)}" if snapshot.daemon else "no daemon"
    summary = Text(f"{host.path}: held {held or 'none'}, free {free or 'none'}; {daemon}")
    parts: list[RenderableType] = [summary]
    for table in (lcores, instances, survey.as_table(found)):
        if table.row_count:
            parts += ["", table]
    parts += [Text(text) for text in found.missing]
    parts += [Text(text, style="bold red") for text in listening.troubles(snapshot.daemon, ask=False)]
    return Group(*parts)
