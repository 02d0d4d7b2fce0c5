# SPDX-License-Identifier: BSD-3-Clause
"""mtlshm-ctl: the verbs put together, and exceptions turned into one line and an exit status."""

from __future__ import annotations

import errno
import os
import sys

import click

from mtlshm import Busy, MtlshmError, NoSegment, NotPermitted, OtherLayout
from mtlshm.ctl import (
    claims,
    collection,
    create,
    doctor,
    health,
    interfaces,
    legacy,
    ping,
    reservations,
    status,
    survey,
    terminal,
    topology,
    xdp,
)
from mtlshm.ctl.audit.command import audit
from mtlshm.errors import reason

_STATUS: dict[type[MtlshmError], int] = {
    NoSegment: 3,
    reservations.NoReservation: 3,
    Busy: 4,
    NotPermitted: 5,
    OtherLayout: 6,
}


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--segment",
    envvar="MTLSHM_PATH",
    help="Segment to use; default as in mtlshmd.toml, else /dev/shm/mtlshm.  [env: MTLSHM_PATH]",
)
@click.version_option(package_name="mtlshm")
@click.pass_context
def command(context: click.Context, segment: str | None) -> None:
    """Show and claim the lcores that the MTL processes of this host share, and show what they use of its interfaces.
    Works with or without a daemon.

    Exit status: 0 done, 1 failed, 2 wrong usage, 3 no segment, ledger or reservation there, 4 held by somebody or not
    enough free, 5 not permitted, 6 a segment of another version is in use. Of `run`: that of the command, 128 + n if
    signal n ended it, 125 if it was not started, 126 if it cannot be executed, 127 if it does not exist.
    """
    context.obj = segment


for verb in (
    status.status,
    claims.run,
    claims.hold,
    claims.place,
    reservations.reserve,
    reservations.end,
    collection.release,
    collection.gc,
    create.create,
    doctor.doctor,
    health.health,
    topology.topology,
    audit,
    legacy.legacy,
    ping.ping,
    interfaces.interfaces,
    interfaces.queues,
    interfaces.flows,
    interfaces.ports,
    xdp.xdp,
):
    command.add_command(verb)


def main() -> None:
    """Entry point."""
    terminal.replace_what_it_cannot_show()
    try:
        command(prog_name="mtlshm-ctl")
    except OSError as error:  # those of our own say all in their text
        about = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
        click.echo(f"mtlshm-ctl: {about}{reason(error)}", err=True)
        sys.exit(_status(error))


def _status(error: OSError) -> int:
    if isinstance(error, MtlshmError):
        return next((code for kind, code in _STATUS.items() if isinstance(error, kind)), 1)
    if isinstance(error, survey.NoLedger):
        return 3
    if error.errno == errno.EBUSY:
        return 4
    return 5 if isinstance(error, PermissionError) else 1
