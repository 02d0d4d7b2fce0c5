# SPDX-License-Identifier: BSD-3-Clause
"""ping: does the manager answer libmtl?"""

from __future__ import annotations

import time
from errno import EACCES, ECONNREFUSED, ENOENT

import click

from mtlshm.errors import reason
from mtlshm.manager_client import Manager, default_socket

_PATIENCE = 5.0  # seconds
_ADVICE = {
    ENOENT: "; no daemon serves there: start mtlshmd",
    ECONNREFUSED: "; no daemon serves there: start mtlshmd",
    EACCES: "; only its owner and group may use it: ls -l {path}",
}


@click.command()
@click.option("--socket", "path", default=default_socket, help="Socket to ask; default where mtlshmd serves.")
@click.pass_context
def ping(context: click.Context, path: str) -> None:
    """Ask the manager socket for a sign of life.

    Sends what libmtl would send. Exit status 1 if no answer comes.
    """
    try:
        with Manager(path, timeout=_PATIENCE) as manager:
            start = time.perf_counter()
            manager.heartbeat(1)
            took = time.perf_counter() - start
    except OSError as error:
        advice = _ADVICE.get(error.errno or 0, "")
        click.echo(f"mtlshm-ctl: {path}: {reason(error)}{advice.format(path=path)}", err=True)
        context.exit(1)
    click.echo(f"{path} answers, in {took * 1e6:.0f} \N{MICRO SIGN}s")
