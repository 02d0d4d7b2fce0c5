# SPDX-License-Identifier: BSD-3-Clause
"""events: what happened last, and what happens."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import click

from mtlshm import Event, Follower, Host
from mtlshm.ctl.event_text import as_data, line
from mtlshm.host import default_path

_PAUSE = 0.5  # seconds between two looks: it costs a read of memory, and wakes nobody else


@click.command()
@click.option("--follow", is_flag=True, help="Go on, and show events as they happen, until interrupted.")
@click.option("--json", "as_json", is_flag=True, help="One object a line.")
@click.pass_context
def events(context: click.Context, follow: bool, as_json: bool) -> None:
    """Show what happened last, and what happens.

    Registrations, claims by policy, ends and deaths, evictions, and what the daemon changed on interfaces: the last
    256, whether or not a daemon ran. Claims and releases of single lcores write none. Needs read permission for the
    segment only.
    """
    path = context.obj or default_path()
    with suppress(KeyboardInterrupt):
        before = -1
        for event in _followed(path) if follow else _past(path):
            if before >= 0 and event.number > before + 1 and not as_json:
                click.echo(f"{'-':19}  {event.number - before - 1} events were overwritten before they could be shown")
            before = event.number
            click.echo(json.dumps(as_data(event)) if as_json else line(event))


def _past(path: str) -> list[Event]:
    with Host(path, create=False, read_only=True) as host:
        found = Follower(host.events).look(last=True)
    return found


def _followed(path: str) -> Iterator[Event]:
    """Yield events for ever, also those of a segment that takes the place of this one."""
    while True:
        with ExitStack() as held:
            host = held.enter_context(Host(path, create=False, read_only=True))
            follower = Follower(host.events)
            while True:
                yield from follower.look()
                time.sleep(_PAUSE)
                if _replaced(host):
                    yield from follower.look(last=True)
                    break
        while not os.path.exists(path):
            time.sleep(_PAUSE)


def _replaced(host: Host) -> bool:
    """Does the path lead to another file by now, or to none?"""
    try:
        found = os.stat(host.path)
    except FileNotFoundError:
        return True
    return (found.st_dev, found.st_ino) != host.file()[:2]
