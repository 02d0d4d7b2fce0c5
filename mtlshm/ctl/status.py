# SPDX-License-Identifier: BSD-3-Clause
"""status: who holds what."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from mtlshm.ctl.cpu_use import CpuUse
from mtlshm.ctl.look import ORDERS, Choice, Look
from mtlshm.ctl.options import pins_option, state_option
from mtlshm.ctl.status_data import as_data
from mtlshm.ctl.survey import Survey
from mtlshm.ctl.terminal import can_redraw, paper, show_lines
from mtlshm.ctl.view import View, open_segment

_SAMPLE = 0.2  # seconds over which CPU use is measured where there is no round before


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One object, as mtlshm/ctl/status.schema.json says.")
@click.option("--wide", is_flag=True, help="Also a row for each lcore, with the use of its CPU.")
@click.option(
    "--sort",
    "order",
    type=click.Choice(list(ORDERS)),
    default="lcores",
    help="What owners are sorted by: their first lcore (default), the most lcores, name, PID, or the oldest first.",
)
@click.option(
    "--owner",
    default="",
    metavar="TEXT",
    help="Only owners with this PID, or with this in their label, command, reservation, container or host name.",
)
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
def status(
    context: click.Context,
    as_json: bool,
    wide: bool,
    order: str,
    owner: str,
    watch: float | None,
    state: Path,
    pins: Path,
) -> None:
    """Show owners of lcores, and interfaces in use.

    Needs read permission for the segment only, and changes nothing. LENT are lcores that libmtl's own table may have;
    PID is the process's on this host, if it can be seen from here. What a dead process left is shown as its own until
    it is collected. An lcore of type lease is held for tenants, as by a reservation; that of a process which uses it
    itself until a tenant claims it, as the command of `run` does, is of type app (lease). One that a tenant uses is
    shown as that one's, with the parent it came from. CPU % counts all processes on those CPUs; it is shown by --wide
    and --watch.
    """
    if watch is not None and not watch >= 0.1:  # FloatRange lets "nan" pass
        raise click.BadParameter("is not a number", param_hint="--watch")
    with open_segment(context.obj) as host:
        view = View(host, str(state), str(pins), Choice(order, owner), wide)
        if watch is not None:
            with suppress(KeyboardInterrupt):
                _watch(view, watch, as_json)
            return
        use = CpuUse() if as_json or wide else None
        if use:
            time.sleep(_SAMPLE)
        if as_json and use:
            click.echo(json.dumps(_data(view, use), indent=2))
        else:
            show_lines(view.lines(paper(), use))


def _data(view: View, use: CpuUse) -> dict[str, Any]:
    found = view.interfaces() or Survey([], [])
    return as_data(Look.take(view.host, view.choice, use.take())) | asdict(found)


def _watch(view: View, interval: float, as_json: bool) -> None:
    use = CpuUse()
    if as_json:
        while True:
            time.sleep(interval)
            click.echo(json.dumps(_data(view, use)))
    while not can_redraw():
        show_lines(view.lines(paper(), use))
        time.sleep(interval)
    _redraw(lambda: list(view.lines(paper(), use)), interval)


def _redraw(lines: Callable[[], list[str]], interval: float) -> None:
    from rich.live import Live
    from rich.text import Text

    from mtlshm.ctl.terminal import console

    screen = console()

    def frame() -> Text:
        """As many lines as fit."""
        found, room = lines(), screen.height
        if len(found) > room:
            found[room - 1 :] = [f"... {len(found) - room + 1} more lines: make the terminal higher, or use --owner"]
        return Text.from_ansi("\n".join(found), no_wrap=True)

    with Live(frame(), console=screen, screen=True, auto_refresh=False) as live:
        while True:
            time.sleep(interval)
            live.update(frame(), refresh=True)
