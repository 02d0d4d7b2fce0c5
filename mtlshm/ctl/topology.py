# SPDX-License-Identifier: BSD-3-Clause
"""topology: what the host's CPUs look like."""

from __future__ import annotations

import json
from itertools import groupby

import click

from mtlshm import CpuSet, Topology
from mtlshm.ctl.terminal import console


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One object: possible, online, isolated, nodes, cpus[].")
def topology(as_json: bool) -> None:
    """Show cores, caches and NUMA nodes of this host.

    Claims by policy use the same view. Needs no segment.
    """
    host = Topology.read()
    if as_json:
        data = {name: sorted(getattr(host, name)) for name in ("possible", "online", "isolated", "nodes")}
        data["cpus"] = [
            {"cpu": c.cpu, "core": c.core, "llc": c.llc, "node": c.node, "package": c.package, "isolated": c.isolated}
            for c in host.cpus
        ]
        click.echo(json.dumps(data, indent=2))
        return

    from rich.table import Table

    table = Table("CPUs", "core", "cache", "NUMA node", "socket", "isolated", box=None, header_style="bold")
    by_core = sorted(host.cpus, key=lambda c: (c.node, c.llc, c.core, c.cpu))
    for _, siblings in groupby(by_core, key=lambda c: c.core):
        cpus = list(siblings)
        first = cpus[0]
        table.add_row(
            str(CpuSet(c.cpu for c in cpus)),
            *map(str, (first.core, first.llc, first.node, first.package)),
            "yes" if first.isolated else "",
        )
    screen = console()
    screen.print(table)
    if absent := host.possible - host.online:
        screen.print(f"offline or absent: {absent}")
