# SPDX-License-Identifier: BSD-3-Clause
"""topology: the host's CPUs, caches and NUMA nodes."""

from __future__ import annotations

import json
import os
from itertools import groupby

import click

from mtlshm import CpuSet, MtlshmError, NoSegment, Topology
from mtlshm.ctl.look import Choice, Look
from mtlshm.ctl.overview import summary
from mtlshm.ctl.terminal import console
from mtlshm.ctl.view import open_segment
from mtlshm.errors import reason
from mtlshm.topology import unknown


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One object: possible, online, isolated, nodes, cpus[].")
@click.option("--svg", metavar="FILE", help="Write a picture of the CPUs and their owners to this file.")
@click.pass_context
def topology(context: click.Context, as_json: bool, svg: str | None) -> None:
    """Show cores, caches and NUMA nodes of this host.

    Claims by policy use the same view. Needs no segment. With --svg, the picture replaces FILE when it is complete.
    """
    host = Topology.read()
    if remark := unknown():
        click.echo(f"mtlshm-ctl: {remark}", err=True)
    if svg is not None:
        _draw(host, svg, context.obj)
        return
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


def _draw(host: Topology, path: str, segment: str | None) -> None:
    from mtlshm.ctl.picture import Picture

    look, title = None, os.uname().nodename
    try:
        with open_segment(segment) as opened:
            look = Look.take(opened, Choice())
    except NoSegment:
        pass
    except MtlshmError as error:  # the CPUs can be shown all the same
        click.echo(f"mtlshm-ctl: owners are not shown: {reason(error)}", err=True)
    if look:
        title += f": {summary(look)}"
    try:
        Picture(host, look, title).write(path)
    except OSError as error:
        error.strerror = f"{reason(error)}: name a file in a directory where you may write"
        raise
