# SPDX-License-Identifier: BSD-3-Clause
"""interfaces, queues, flows, ports: what AF_XDP clients have of the host's interfaces, as the daemon's ledger says.

Reading the ledger takes SQLite, and asking the kernel pyroute2, which is bigger than all the rest of us: both are
imported only where there is something to read.
"""

from __future__ import annotations

import json
import socket
from contextlib import suppress
from dataclasses import asdict, dataclass
from errno import ENOENT
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mtlshm.ctl import people
from mtlshm.ctl.terminal import add_row, new_table, show
from mtlshm.net import places

if TYPE_CHECKING:
    from rich.table import Table

    from mtlshm.net.ledger import Owner, State, Use

state_option = click.option(
    "--state",
    type=click.Path(path_type=Path),
    default=places.STATE,
    envvar="MTLSHMD_STATE",
    help=f"The daemon's state directory; default {places.STATE}.  [env: MTLSHMD_STATE]",
)
pins_option = click.option(
    "--pins",
    type=click.Path(path_type=Path),
    default=places.PINS,
    envvar="MTLSHMD_PINS",
    help=f"The daemon's directory in a BPF file system; default {places.PINS}.  [env: MTLSHMD_PINS]",
)


class NoLedger(FileNotFoundError):
    """There is nothing to read: no daemon has served interfaces."""


@dataclass(frozen=True, slots=True)
class Survey:
    """Interfaces, each in the shape of status.schema.json, and what could not be found out about them."""

    interfaces: list[dict[str, Any]]
    missing: list[str]


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One object: interfaces[], missing[]; see status.schema.json.")
@state_option
@pins_option
def interfaces(as_json: bool, state: Path, pins: Path) -> None:
    """Show the interfaces that clients use or an operator keeps loaded.

    QUEUES are those with an owner, of all. HITS are packets to the ports that clients asked for, PASSES all others;
    UNCLAIMED are hits that came to a queue with no socket, and so went to the kernel. These are for root only.
    """
    found = survey(read_ledger(state), state, pins)
    if as_json:
        click.echo(json.dumps(asdict(found), indent=2))
    else:
        show(as_table(found), "no interface is in use", found.missing)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One object: queues[].")
@state_option
def queues(as_json: bool, state: Path) -> None:
    """Show which queues of interfaces have an owner, and whom. Queue 0 is the system's."""
    book = read_ledger(state)
    owners = _owners(book)
    rows = [{**where(row.ifindex), "queue": row.queue, **_who(owners[row.owner])} for row in book.queues]
    _list("queues", rows, as_json, ("interface", "queue"))


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One object: flows[]; null and 0 in a rule mean any.")
@state_option
def flows(as_json: bool, state: Path) -> None:
    """Show the flow rules that were inserted for clients. Those of others: ethtool -n.

    LOCATION is the rule's number in the NIC. A rule that is not complete is being inserted or deleted, or has to wait
    for a daemon to find out whether it is there.
    """
    book = read_ledger(state)
    owners = _owners(book)
    rows = [
        {
            **where(row.ifindex),
            "location": row.location,
            "queue": row.queue,
            "rule": str(row.spec),
            "type": row.spec.type.word,
            "source": row.spec.source and str(row.spec.source),
            "destination": row.spec.destination and str(row.spec.destination),
            "source_port": row.spec.source_port,
            "destination_port": row.spec.destination_port,
            "complete": row.complete,
            **_who(owners[row.owner]),
        }
        for row in book.flows
    ]
    _list("flows", rows, as_json, ("interface", "location", "queue", "rule", "complete"))


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One object: ports[].")
@state_option
def ports(as_json: bool, state: Path) -> None:
    """Show the UDP ports whose packets go to AF_XDP, and who asked for them, how often."""
    book = read_ledger(state)
    owners = _owners(book)
    rows = [
        {**where(row.ifindex), "port": row.port, "count": row.count, **_who(owners[row.owner])} for row in book.ports
    ]
    _list("ports", rows, as_json, ("interface", "port", "count"))


def read_ledger(state: Path) -> State:
    """What is in the ledger. NoLedger if there is none."""
    from mtlshm.net.ledger import Ledger

    try:
        with Ledger(state, read_only=True) as ledger:
            return ledger.state()
    except FileNotFoundError as error:
        raise NoLedger(ENOENT, f"no daemon has served interfaces here: {error.strerror}") from None


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
    """As survey(); none where there is no ledger, and if it cannot be read, that is what is missing."""
    try:
        if not (state / "ledger").exists():
            return Survey([], [])
        return survey(read_ledger(state), state, pins)
    except NoLedger:
        return Survey([], [])
    except OSError as error:
        return Survey([], [f"interfaces: {error.strerror}"])


async def _describe(book: State, use: Use, state: Path, pins: Path, missing: list[str]) -> dict[str, Any]:
    from mtlshm.net.ethtool import Ethtool
    from mtlshm.net.tool import Tools
    from mtlshm.net.xdp import Loader

    place = where(use.ifindex)
    name = place["interface"]
    tools = Tools(state)
    way = mode = counters = total = driver = None
    if name:
        try:
            if gate := await Loader(tools, pins).find(use.ifindex):
                with gate:
                    way, mode, counters = gate.way, gate.mode, asdict(gate.counters())
            else:
                missing.append(
                    f"{name}: no XDP programs: not loaded; the daemon's log and mtlshm-ctl xdp status say more"
                )
        except OSError as error:
            missing.append(why_not(name, "XDP programs and counters", error))
        try:
            total = await Ethtool(tools).channels(name)
            driver = await Ethtool(tools).driver(name)
        except OSError as error:
            missing.append(why_not(name, "driver and number of queues", error))
    owners = _owners(book)
    return {
        **place,
        "kept": use.kept,
        "users": [_who(owners[number]) for number in use.owners],
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
    reason = "the kernel tells root only" if isinstance(error, PermissionError) else error.strerror
    return f"{name}: no {what}: {reason}"


def as_table(found: Survey) -> Table:
    """For people."""
    columns = ("interface", "way", "mode", "driver", "queues", "flows", "ports", "hits", "passes", "unclaimed", "users")
    table = new_table(*columns)
    for row in found.interfaces:
        users = [f"{user['label']} (pid {user['pid']})" for user in row["users"]]
        add_row(
            table,
            named(row),
            row["way"],
            row["mode"],
            row["driver"],
            f"{row['queues_used']}/{'?' if row['queues'] is None else row['queues']}",
            row["flows"],
            row["ports"],
            *count(row["counters"]),
            ", ".join(["kept"] * row["kept"] + users),
        )
    return table


def count(counters: dict[str, int | None] | None) -> list[int | None]:
    """Hits, passes and unclaimed hits, as far as they are known."""
    return [(counters or {}).get(name) for name in ("hits", "passes", "unclaimed")]


def _owners(book: State) -> dict[int, Owner]:
    return {owner.id: owner for owner in book.owners}


def where(ifindex: int) -> dict[str, Any]:
    """Which interface, in JSON."""
    name = None
    with suppress(OSError):  # it is gone
        name = socket.if_indextoname(ifindex)
    return {"interface": name, "ifindex": ifindex}


def named(row: dict[str, Any]) -> str:
    """Which interface, for people."""
    return row["interface"] or f"gone ({row['ifindex']})"


def _who(owner: Owner) -> dict[str, Any]:
    process = owner.process
    return {
        "owner": f"{owner.token:#x}",
        "label": process.label,
        "pid": process.pid,
        "comm": process.comm,
        "user": people.user(process.uid),
        "host": process.hostname,
        "leaving": owner.leaving,
    }


def _list(name: str, rows: list[dict[str, Any]], as_json: bool, columns: tuple[str, ...]) -> None:
    if as_json:
        click.echo(json.dumps({name: rows}, indent=2))
        return
    who = ("label", "pid", "comm", "user", "host")
    table = new_table(*columns, *who, "")
    for row in rows:
        add_row(table, named(row), *(row[key] for key in (*columns[1:], *who)), "leaving" if row["leaving"] else "")
    show(table, f"nobody has any {name}")
