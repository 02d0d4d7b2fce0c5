# SPDX-License-Identifier: BSD-3-Clause
"""ping: does the manager answer libmtl?"""

from __future__ import annotations

import time

import click

from mtlshm.ctl.wording import reason
from mtlshm.manager import Manager, default_socket

_PATIENCE = 5.0  # seconds


@click.command()
@click.option("--socket", "path", default=default_socket, help="Where; by default where mtlshmd serves.")
@click.pass_context
def ping(context: click.Context, path: str) -> None:
    """Ask the manager socket for a sign of life, as libmtl would. Exit status 1 if there is none."""
    try:
        with Manager(path, timeout=_PATIENCE) as manager:
            start = time.perf_counter()
            manager.heartbeat(1)
            took = time.perf_counter() - start
    except OSError as error:
        click.echo(f"mtlshm-ctl: {path}: {reason(error)}: is mtlshmd running, and may you use it?", err=True)
        context.exit(1)
    click.echo(f"{path} answers, in {took * 1e6:.0f} \N{MICRO SIGN}s")
