# SPDX-License-Identifier: BSD-3-Clause
"""top: the host's cores and their owners, live."""

from __future__ import annotations

from errno import ENOTTY
from pathlib import Path

import click

from mtlshm.ctl.options import pins_option, state_option
from mtlshm.ctl.terminal import can_redraw
from mtlshm.ctl.view import View, open_segment


@click.command()
@click.option(
    "--interval",
    type=click.FloatRange(0.1, 86400),
    default=2.0,
    metavar="SECONDS",
    help="How often it is looked at; every 2 seconds by default.",
)
@state_option
@pins_option
@click.pass_context
def top(context: click.Context, interval: float, state: Path, pins: Path) -> None:
    """Watch cores, their owners and use, and the last events.

    Cores stand as they are in the machine: by socket, NUMA node, cache and SMT pair. Keys: s sorts the owners by the
    next criterion, / shows one owner only, q quits. Needs read permission for the segment only.
    """
    if not interval >= 0.1:  # FloatRange lets "nan" pass
        raise click.BadParameter("is not a number", param_hint="--interval")
    if not can_redraw():
        raise OSError(
            ENOTTY, "top needs a terminal whose cursor can be moved; elsewhere run: mtlshm-ctl status --watch"
        )
    try:
        from mtlshm.ctl.top_screen import Top
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("textual"):
            raise
        raise OSError(0, "top needs Textual, which is not installed: pip install 'mtlshm[top]'") from None
    with open_segment(context.obj) as host:
        Top(View(host, str(state), str(pins)), interval).run()
