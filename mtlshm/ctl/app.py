# SPDX-License-Identifier: BSD-3-Clause
"""mtlshm-ctl: the verbs put together, and exceptions turned into one line and an exit status."""

from __future__ import annotations

import errno
import os
import sys
from importlib import import_module

import click

from mtlshm import Busy, MtlshmError, NoSegment, NotPermitted, OtherLayout
from mtlshm.ctl import terminal
from mtlshm.errors import reason

# By name: where it is, and the summary of it that --help prints. A verb is imported when it is used, since all of them
# together take several times as long as most have to do.
_VERBS = {
    "audit": ("audit.command:audit", "Measure whether held lcores are really alone."),
    "create": ("create:create", "Make the segment, if there is none, and say where it is."),
    "doctor": ("doctor:doctor", "Report what is wrong with the segment and the host."),
    "end": ("reservations:end", "End a reservation."),
    "events": ("events:events", "Show what happened last, and what happens."),
    "fleet": ("fleet:fleet", "Show the lcores of all hosts that Prometheus knows."),
    "flows": ("interfaces:flows", "Show the flow rules inserted for clients."),
    "gc": ("collection:gc", "Collect what dead processes left."),
    "health": ("health:health", "Say in one line whether clients are served."),
    "hold": ("claims:hold", "Claim lcores and keep them until SIGINT or SIGTERM."),
    "interfaces": ("interfaces:interfaces", "Show the interfaces in use."),
    "legacy": ("legacy:legacy", "Manage the lcores of processes on libmtl's System V table."),
    "ping": ("ping:ping", "Ask the manager socket for a sign of life."),
    "place": ("claims:place", "Show which lcores a claim would get now, and why these."),
    "ports": ("interfaces:ports", "Show the UDP ports that lead to AF_XDP sockets."),
    "queues": ("interfaces:queues", "Show the queues in use and their owners."),
    "release": ("collection:release", "Take an lcore away from its owner."),
    "reserve": ("reservations:reserve", "Reserve lcores under a name, until `end` or the next boot."),
    "run": ("claims:run", "Run a command on lcores of its own."),
    "status": ("status:status", "Show owners of lcores, and interfaces in use."),
    "top": ("top:top", "Watch cores, their owners and use, and the last events."),
    "topology": ("topology:topology", "Show cores, caches and NUMA nodes of this host."),
    "xdp": ("xdp:xdp", "Show, load and unload our XDP programs."),
}

_STATUS: dict[type[MtlshmError], int] = {
    NoSegment: 3,
    Busy: 4,
    NotPermitted: 5,
    OtherLayout: 6,
}


class _Verbs(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in _VERBS and cmd_name not in self.commands:
            module, _, name = _VERBS[cmd_name][0].partition(":")
            self.add_command(getattr(import_module(f"mtlshm.ctl.{module}"), name), cmd_name)
        return super().get_command(ctx, cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in _VERBS.items()])


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
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


def load() -> click.Group:
    """The command with all its verbs imported: for who looks at all, or cannot import any more."""
    for name in _VERBS:
        command.get_command(click.Context(command), name)
    return command


def main() -> None:
    """Run the verb that the command line names."""
    terminal.replace_what_it_cannot_show()
    try:
        command(prog_name="mtlshm-ctl")
    except OSError as error:
        fail(error)


def fail(error: OSError) -> None:
    """Say what went wrong, and exit with the status for that."""
    about = (
        "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
    )  # those of our own say all in their text
    print(f"mtlshm-ctl: {about}{reason(error)}", file=sys.stderr)
    sys.exit(_status(error))


def _status(error: OSError) -> int:
    if own := getattr(error, "exit_status", 0):
        return int(own)
    if isinstance(error, MtlshmError):
        return next((code for kind, code in _STATUS.items() if isinstance(error, kind)), 1)
    if error.errno == errno.EBUSY:
        return 4
    return 5 if isinstance(error, PermissionError) else 1
