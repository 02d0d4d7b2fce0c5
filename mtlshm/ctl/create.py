# SPDX-License-Identifier: BSD-3-Clause
"""create: the segment, before anyone needs it."""

from __future__ import annotations

import click

from mtlshm import Host, access


@click.command()
@click.pass_context
def create(context: click.Context) -> None:
    """Make the segment, if there is none, and say where it is.

    For root, at boot. Otherwise the first process that needs the segment makes it, and systemd-logind deletes a user's
    segment when that user logs out.
    """
    with Host(context.obj) as host:
        if warning := access.give_to_group(host):
            click.echo(f"mtlshm-ctl: {warning}", err=True)
        click.echo(host.path)
