# SPDX-License-Identifier: BSD-3-Clause
"""mtlshm-ctl: the verbs put together, and exceptions turned into one line and an exit status."""

from __future__ import annotations

import sys

import click

from mtlshm import Busy, MtlshmError, NoSegment, NotPermitted
from mtlshm.ctl import claims, collection, doctor, legacy, machine, manager, status

_STATUS: dict[type[MtlshmError], int] = {NoSegment: 3, Busy: 4, NotPermitted: 5}


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--segment", envvar="MTLSHM_PATH", help="Segment to use.  [env: MTLSHM_PATH]")
@click.version_option(package_name="mtlshm")
@click.pass_context
def command(context: click.Context, segment: str | None) -> None:
    """See and claim the lcores that MTL processes of this host share. Works with or without a daemon.

    Exit status: 0 done, 1 failed, 2 wrong usage, 3 no segment there, 4 held by somebody or not enough free,
    5 not permitted. Of `run`: that of the command, 128 + n if signal n ended it, 125 if it was not started, 126 if
    it cannot be executed, 127 if it does not exist.
    """
    context.obj = segment


for verb in (
    status.status,
    claims.run,
    claims.hold,
    collection.release,
    collection.gc,
    doctor.doctor,
    machine.topology,
    legacy.legacy,
    manager.ping,
):
    command.add_command(verb)


def main() -> None:
    """Entry point."""
    try:
        command(prog_name="mtlshm-ctl")
    except MtlshmError as error:
        click.echo(f"mtlshm-ctl: {error.strerror}", err=True)
        sys.exit(next((code for kind, code in _STATUS.items() if isinstance(error, kind)), 1))
    except OSError as error:  # such as no room on the disk that our output goes to
        click.echo(f"mtlshm-ctl: {error}", err=True)
        sys.exit(1)
