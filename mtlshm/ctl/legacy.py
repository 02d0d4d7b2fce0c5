# SPDX-License-Identifier: BSD-3-Clause
"""legacy: libmtl's System V table beside ours, and lcores moved between them.

All is done on the tables themselves, under the legacy lock, and so is right with a daemon and without. A daemon is
woken by the lock file and sees to the rest. What an operator wants outlasts it: a reclaimed lcore is marked in the
legacy table, and one lent beyond what the daemon lends is in ours.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from errno import EBUSY
from pathlib import Path
from typing import Any

import click

from mtlshm import Busy, CpuSet, Host, InstanceInfo, Kind, NoSegment
from mtlshm.cpuset import counted
from mtlshm.ctl.options import key_option, lock_option
from mtlshm.ctl.terminal import console
from mtlshm.ctl.wording import describe
from mtlshm.legacy.attached import census, owners
from mtlshm.legacy.entry import Entry
from mtlshm.legacy.lending import LENT_BY_HAND, bring_home, end_lost_pools, is_pool_of, lend, open_pool, parse
from mtlshm.legacy.lock import LegacyLock
from mtlshm.legacy.table import LegacyTable

_PATIENCE = 5.0  # seconds to wait for the lock, which libmtl holds for microseconds


@dataclass(frozen=True, slots=True)
class _Lcore:
    """One lcore in both tables."""

    number: int
    entry: Entry | None
    owner: InstanceInfo | None
    tag: int

    @property
    def lent(self) -> bool:
        return self.owner is not None and self.owner.kind in (Kind.POOL, Kind.LEGACY)

    @property
    def state(self) -> str:
        """In the words of mtlshm/legacy/lending.py; and what should not be."""
        if self.entry is None:
            return "lent" if self.lent else "unprotected"
        if self.entry.reserved:
            return "between" if self.lent else "reclaimed" if self.entry.reclaimed else "ours"
        return "legacy" if self.lent else "clash" if self.owner else "not taken over"

    @property
    def available(self) -> bool:
        """To legacy processes: lent, and nobody uses it."""
        return self.entry is None and self.owner is not None and self.owner.kind == Kind.POOL

    @property
    def free(self) -> bool:
        """To us: not lent, and nobody uses it."""
        return self.entry is not None and self.entry.reserved and self.owner is None


@dataclass(frozen=True, slots=True)
class Place:
    """Where the two tables are: the path of ours (None: the default), the key of the legacy one, and its lock file."""

    segment: str | None
    key: int
    lock: Path

    @contextmanager
    def table(self) -> Iterator[LegacyTable]:
        """Under its lock."""
        lock = LegacyLock(self.lock, create=False)
        try:
            with lock.held(_PATIENCE), LegacyTable(self.key, create=False) as table:
                yield table
        finally:
            lock.close()


class _Amount(click.ParamType):  # type: ignore[type-arg] # generic since click 8.4 only
    """How many lcores, or which."""

    name = "count|list"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | CpuSet:
        try:
            return parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


@click.group()
@key_option("--key", "Of the table.")
@lock_option("--lock", "File that locks it.")
@click.pass_context
def legacy(context: click.Context, key: int, lock: Path) -> None:
    """Manage the lcores of processes on libmtl's System V table.

    Such processes know no manager. A COUNT is a number. A LIST is like 4-7 or 4,6; a list of one is 4-4.
    """
    context.obj = Place(context.obj, key, lock)


@legacy.command()
@click.option("--json", "as_json", is_flag=True, help="One object: key, size, bridged, lcores[].")
@click.pass_obj
def info(place: Place, as_json: bool) -> None:
    """Show the legacy table beside the segment.

    Leaves out lcores that are ours alone. STATE is one of: lent (a legacy process may take it); legacy (a legacy
    process has it); reclaimed (not lent again until `lend`); ours; between (being moved, or a process was killed while
    it moved it); clash (two owners). The next daemon repairs two more: not taken over (a legacy process has it, and
    the segment does not show it); unprotected (a legacy process could take it, although it is ours).
    """
    with place.table() as table:
        lcores = both(place, table)
        bridged = any(lcore.entry and lcore.entry.reserved for lcore in lcores)
    if not bridged:  # then this is just what a legacy table is like
        lcores = [lcore for lcore in lcores if lcore.state != "unprotected"]
    if as_json:
        data = {
            "key": f"{place.key:#x}",
            "size": table.size,
            "bridged": bridged,
            "lcores": [_as_data(lcore) for lcore in lcores],
        }
        click.echo(json.dumps(data, indent=2))
        return

    from rich.markup import escape
    from rich.table import Table

    rows = Table("lcore", "state", "in the legacy table", "in ours", box=None, header_style="bold")
    for lcore in lcores:
        if lcore.state == "ours":
            continue
        entry = lcore.entry
        there = f"{entry.comm} (pid {entry.pid}) of {entry.user} on {entry.hostname}" if entry else "-"
        rows.add_row(
            *map(str, (lcore.number, lcore.state)),
            escape("reserved" if entry and entry.reserved else there),
            escape(describe(lcore.owner) if lcore.owner else "-"),
        )
    screen = console()
    screen.print(f"legacy table {place.key:#x}: {table.size} lcores, {'' if bridged else 'not '}bridged")
    if rows.row_count:
        screen.print(rows)


def _as_data(lcore: _Lcore) -> dict[str, Any]:
    entry, owner = lcore.entry, lcore.owner
    data: dict[str, Any] = {"lcore": lcore.number, "state": lcore.state, "legacy": None, "owner": None}
    if entry and not entry.reserved:
        data["legacy"] = asdict(entry)
    if owner:
        data["owner"] = {"owner": f"{owner.owner:#x}", "label": owner.label, "pid": owner.pid}
    return data


@legacy.command(name="lend")
@click.argument("amount", type=_Amount(), metavar="COUNT|LIST")
@click.pass_obj
def lend_(place: Place, amount: int | CpuSet) -> None:
    """Lend free lcores to legacy processes.

    These are lent in addition to what the daemon lends by itself. A COUNT takes reclaimed lcores first, then others
    that are online. Works without a daemon as long as the legacy table shows which lcores are ours.
    """
    with Host(place.segment, create=False) as host, place.table() as table:
        # The legacy table may have more entries than ours, and ours more than there are CPUs.
        free = [lcore for lcore in both(place, table) if lcore.free and lcore.number < host.snapshot().size]
        if isinstance(amount, int):
            online = host.topology().online
            free = [lcore for lcore in free if lcore.number in online or lcore.state == "reclaimed"]
        chosen = _choose(
            amount,
            free,
            lambda lcore: (lcore.state != "reclaimed", -lcore.number),
            "not free to lend",
        )
        pool = open_pool(host, place.key)
        for lcore in chosen:
            if not lend(pool, table, lcore.number):
                raise Busy(EBUSY, f"lcore {lcore.number}: another process has just claimed it")
            if lcore.state != "reclaimed":
                host.tag(lcore.number, pool.owner, LENT_BY_HAND)
    click.echo(f"lent {CpuSet(lcore.number for lcore in chosen)}")


@legacy.command()
@click.argument("amount", type=_Amount(), metavar="COUNT|LIST")
@click.pass_obj
def reclaim(place: Place, amount: int | CpuSet) -> None:
    """Take back lent lcores that no process uses.

    All that was lent to a table that is gone, such as a removed container's, comes home first. Then a COUNT takes
    those that an operator lent. The daemon does not lend the others again, nor others in their place, until `lend`.
    """
    with Host(place.segment, create=False) as host:
        if lost := end_lost_pools(host):
            click.echo(f"reclaimed {lost}, lent to a legacy table that is gone")
            amount = max(0, amount - len(lost)) if isinstance(amount, int) else amount - lost
            if not amount:
                return
        _reclaim(host, place, amount)


def _reclaim(host: Host, place: Place, amount: int | CpuSet) -> None:
    with place.table() as table:
        chosen = _choose(
            amount,
            [lc for lc in both(place, table) if lc.available and lc.owner and is_pool_of(lc.owner, place.key)],
            lambda lcore: (not lcore.tag & LENT_BY_HAND, lcore.number),
            "not lent, or in use",
        )
        for lcore in chosen:
            assert lcore.owner
            bring_home(host, table, lcore.number, lcore.owner.owner, reclaimed=not lcore.tag & LENT_BY_HAND)
    click.echo(f"reclaimed {CpuSet(lcore.number for lcore in chosen)}")


@legacy.command()
@click.pass_obj
def clean(place: Place) -> None:
    """Delete what dead processes left in that table.

    Deletes entries of any user and any container of this host, but only of processes proven dead: a living one has the
    table in its memory. A daemon does this by itself.
    """
    with place.table() as table:
        lcores = both(place, table)
        bridged = any(lcore.entry and lcore.entry.reserved for lcore in lcores)
        attached, complete = census(table)
        owner_of, unsure = owners(attached), 0
        for lcore in lcores:
            entry = lcore.entry
            if entry is None or entry.reserved or owner_of(entry.hostname, entry.pid):
                continue
            if not complete:
                unsure += 1
                continue
            # What is not lent is reserved again, or it would be free there whoever has it here.
            if bridged and not lcore.lent:
                table.reserve(lcore.number)
            else:
                table.clear(lcore.number)
            click.echo(
                f"lcore {lcore.number}: deleted {entry.comm} (pid {entry.pid}) of {entry.user} on {entry.hostname}"
            )
    if unsure:
        click.echo(
            f"{counted(unsure)} left alone: a process that we cannot see may own them; run this as root on the host"
        )


def both(place: Place, table: LegacyTable) -> list[_Lcore]:
    """Each lcore of the legacy table, with its owner in ours if there is one. For who holds the lock; OSError."""
    owners: dict[int, InstanceInfo] = {}
    tags: dict[int, int] = {}
    try:
        with Host(place.segment, create=False, read_only=True) as host:
            for held in host.snapshot().lcores:
                owners[held.number], tags[held.number] = held.owner, held.tag
    except NoSegment:  # a host where only libmtl runs
        pass
    return [_Lcore(n, entry, owners.get(n), tags.get(n, 0)) for n, entry in enumerate(table.entries())]


def _choose(amount: int | CpuSet, possible: list[_Lcore], order: Any, refusal: str) -> list[_Lcore]:
    if isinstance(amount, int):
        if amount > len(possible):
            raise Busy(EBUSY, f"{counted(amount)}: only {len(possible)} are available; see: mtlshm-ctl legacy info")
        return sorted(possible, key=order)[:amount]
    if missing := amount - (lcore.number for lcore in possible):
        raise Busy(EBUSY, f"lcores {missing}: {refusal}; see: mtlshm-ctl legacy info")
    return [lcore for lcore in possible if lcore.number in amount]
