# SPDX-License-Identifier: BSD-3-Clause
"""The interfaces in use: what the daemon's ledger says of them, and what the kernel does.

Reading the ledger takes SQLite, and asking the kernel pyroute2, which is bigger than all the rest of us: both are
imported only where there is something to read.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from errno import ENOENT
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtlshm.ctl import wording
from mtlshm.ctl.table import Column, Paper
from mtlshm.ctl.terminal import add_row, new_table, text
from mtlshm.errors import reason

if TYPE_CHECKING:
    from rich.table import Table

    from mtlshm.net.ledger import Owner, State, Use


class NoLedger(FileNotFoundError):
    """There is nothing to read: no daemon has served interfaces."""

    exit_status = 3


@dataclass(frozen=True, slots=True)
class Survey:
    """Interfaces, each in the shape of status.schema.json, and what could not be found out about them."""

    interfaces: list[dict[str, Any]]
    missing: list[str]


def read_ledger(state: Path) -> State:
    """Reads the ledger. NoLedger if there is none."""
    from mtlshm.net.ledger import Ledger

    try:
        with Ledger(state, read_only=True) as ledger:
            return ledger.state()
    except FileNotFoundError as error:
        raise NoLedger(ENOENT, f"no daemon has served interfaces here: {reason(error)}") from None


def survey(book: State, state: Path, pins: Path) -> Survey:
    """All interfaces in use, as the kernel has them now."""
    import asyncio

    async def run() -> Survey:
        found = Survey([], [])
        for use in book.uses:
            found.interfaces.append(await _describe(book, use, state, pins, found.missing))
        return found

    return asyncio.run(run())


def survey_if_any(state: Path, pins: Path) -> Survey:
    """Like survey(), but empty without a ledger. If the ledger cannot be read, the survey says so."""
    try:
        if not (state / "ledger").exists():
            return Survey([], [])
        return survey(read_ledger(state), state, pins)
    except NoLedger:
        return Survey([], [])
    except OSError as error:
        return Survey([], [f"interfaces: {reason(error)}"])


async def _describe(book: State, use: Use, state: Path, pins: Path, missing: list[str]) -> dict[str, Any]:
    from mtlshm.net import links
    from mtlshm.net.tool import Tools
    from mtlshm.net.xdp import Loader

    place = where(use.ifindex)
    name = place["interface"]
    way = mode = counters = total = driver = None
    if name:
        try:
            if gate := await Loader(Tools(state), pins).find(use.ifindex):
                with gate:
                    way, mode, counters = gate.way, gate.mode, asdict(gate.counters())
            else:
                missing.append(
                    f"{name}: no XDP programs: not loaded; the daemon's log and mtlshm-ctl xdp status say more"
                )
        except OSError as error:
            missing.append(why_not(name, "XDP programs and counters", error))
        try:
            driver = links.driver(name)
            total = await links.queues(use.ifindex, name)
        except OSError as error:
            missing.append(why_not(name, "number of queues", error))
    owners = owners_of(book)
    return {
        **place,
        "kept": use.kept,
        "users": [who(owners[number]) for number in use.owners],
        "way": way,
        "mode": mode,
        "driver": driver,
        "queues_used": sum(row.ifindex == use.ifindex for row in book.queues),
        "queues": total,
        "flows": sum(row.ifindex == use.ifindex for row in book.flows),
        "ports": len({row.port for row in book.ports if row.ifindex == use.ifindex}),
        "counters": counters,
    }


def why_not(name: str, what: str, error: OSError) -> str:
    """Why something of an interface cannot be shown."""
    private = isinstance(error, PermissionError) and os.geteuid()
    because = "the kernel tells root only" if private else reason(error)
    return f"{name}: no {what}: {because}"


_TITLES = ("interface", "way", "mode", "driver", "queues", "flows", "ports", "hits", "passes", "unclaimed", "users")
_RANKS = {"driver": 6, "ports": 5, "flows": 4, "passes": 3, "unclaimed": 2, "hits": 1}


def as_table(found: Survey) -> Table:
    """For wording."""
    table = new_table(*_TITLES)
    for row in _rows(found):
        add_row(table, *row)
    return table


def as_lines(found: Survey, paper: Paper) -> Iterator[str]:
    """The same after other lines; and what is missing."""
    if rows := [[text(cell) for cell in row] for row in _rows(found)]:
        columns = [
            Column(title, list(cells), _RANKS.get(title, 0), cut=title == "users")
            for title, *cells in zip(_TITLES, *rows, strict=True)
        ]
        yield ""
        yield from paper.table(columns)
    yield from found.missing


def _rows(found: Survey) -> Iterator[list[object]]:
    for row in found.interfaces:
        users = [f"{user['label']} (pid {user['pid']})" for user in row["users"]]
        yield [
            named(row),
            row["way"],
            row["mode"],
            row["driver"],
            f"{row['queues_used']}/{'?' if row['queues'] is None else row['queues']}",
            row["flows"],
            row["ports"],
            *count(row["counters"]),
            ", ".join(["kept"] * row["kept"] + users),
        ]


def count(counters: dict[str, int | None] | None) -> list[int | None]:
    """Hits, passes and unclaimed hits, as far as they are known."""
    return [(counters or {}).get(name) for name in ("hits", "passes", "unclaimed")]


def owners_of(book: State) -> dict[int, Owner]:
    """By their numbers in the ledger."""
    return {owner.id: owner for owner in book.owners}


def where(ifindex: int) -> dict[str, Any]:
    """Which interface, in JSON."""
    name = None
    with suppress(OSError):  # it is gone
        name = socket.if_indextoname(ifindex)
    return {"interface": name, "ifindex": ifindex}


def named(row: dict[str, Any]) -> str:
    """Which interface, for wording."""
    return row["interface"] or f"gone ({row['ifindex']})"


def who(owner: Owner) -> dict[str, Any]:
    """Which owner, in JSON."""
    process = owner.process
    return {
        "owner": f"{owner.token:#x}",
        "label": process.label,
        "pid": process.pid,
        "comm": process.comm,
        "user": wording.user(process.uid),
        "host": process.hostname,
        "leaving": owner.leaving,
    }
