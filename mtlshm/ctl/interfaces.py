# SPDX-License-Identifier: BSD-3-Clause
"""interfaces, queues, flows, ports: the entries of AF_XDP clients in the daemon's ledger."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from mtlshm.ctl.options import pins_option, state_option
from mtlshm.ctl.survey import as_table, named, owners_of, read_ledger, survey, where, who
from mtlshm.ctl.terminal import add_row, new_table, show


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One object: interfaces[], missing[]; see status.schema.json.")
@state_option
@pins_option
def interfaces(as_json: bool, state: Path, pins: Path) -> None:
    """Show the interfaces in use.

    Clients use them, or an operator keeps them loaded. QUEUES: how many have an owner, of how many. HITS: packets to
    the ports that clients asked for. PASSES: all other packets. UNCLAIMED: hits on a queue without a socket, which
    went to the kernel. Only root sees these counters.
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
    """Show the queues in use and their owners.

    Queue 0 belongs to the system.
    """
    book = read_ledger(state)
    owners = owners_of(book)
    rows = [{**where(row.ifindex), "queue": row.queue, **who(owners[row.owner])} for row in book.queues]
    _list("queues", rows, as_json, ("interface", "queue"))


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One object: flows[]; null and 0 in a rule mean any.")
@state_option
def flows(as_json: bool, state: Path) -> None:
    """Show the flow rules inserted for clients.

    To see all rules, run ethtool -n. LOCATION is the rule's number in the NIC, as far as it is known. A rule that is
    not complete is being inserted or deleted, or waits for a daemon to look whether it is there.
    """
    book = read_ledger(state)
    owners = owners_of(book)
    rows = [
        {
            **where(row.ifindex),
            "location": row.place,
            "queue": row.queue,
            "rule": str(row.spec),
            "type": row.spec.type.word,
            "source": row.spec.source and str(row.spec.source),
            "destination": row.spec.destination and str(row.spec.destination),
            "source_port": row.spec.source_port,
            "destination_port": row.spec.destination_port,
            "complete": row.complete,
            **who(owners[row.owner]),
        }
        for row in book.flows
    ]
    _list("flows", rows, as_json, ("interface", "location", "queue", "rule", "complete"))


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One object: ports[].")
@state_option
def ports(as_json: bool, state: Path) -> None:
    """Show the UDP ports that lead to AF_XDP sockets.

    COUNT is how often the owner asked for the port.
    """
    book = read_ledger(state)
    owners = owners_of(book)
    rows = [
        {**where(row.ifindex), "port": row.port, "count": row.count, **who(owners[row.owner])} for row in book.ports
    ]
    _list("ports", rows, as_json, ("interface", "port", "count"))


def _list(name: str, rows: list[dict[str, Any]], as_json: bool, columns: tuple[str, ...]) -> None:
    if as_json:
        click.echo(json.dumps({name: rows}, indent=2))
        return
    owner = ("label", "pid", "comm", "user", "host")
    table = new_table(*columns, *owner, "")
    for row in rows:
        add_row(table, named(row), *(row[key] for key in (*columns[1:], *owner)), "leaving" if row["leaving"] else "")
    show(table, f"nobody has any {name}")
