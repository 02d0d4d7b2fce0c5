# SPDX-License-Identifier: BSD-3-Clause
"""release and gc: lcores taken from others, living or dead."""

from __future__ import annotations

import errno

import click

from mtlshm import Host, Kind, MtlshmError
from mtlshm.ctl.families import Families
from mtlshm.ctl.wording import describe, name


@click.command()
@click.option("--force", is_flag=True, help="Required: the owner may be alive.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.argument("lcore", type=click.IntRange(min=0))
@click.pass_context
def release(context: click.Context, lcore: int, force: bool, yes: bool) -> None:
    """Take an lcore away from its owner.

    Names the owner and asks first. The owner is not told and may go on using the lcore. To collect what dead owners
    left, use gc: it takes nothing from a living one.
    """
    if not force:
        raise click.UsageError("a living owner releases its own lcores; to take one away, add --force")
    with Host(context.obj, create=False) as host:
        snapshot = host.snapshot()
        if lcore >= snapshot.size:
            raise click.BadParameter(f"the table has lcores 0-{snapshot.size - 1}", param_hint="LCORE")
        held = next((held for held in snapshot.lcores if held.number == lcore), None)
        if held is None:
            click.echo(f"lcore {lcore} is free")
            return
        if held.owner.kind == Kind.POOL:
            raise click.ClickException(
                f"lcore {lcore} is lent to legacy processes; take it back: mtlshm-ctl legacy reclaim {lcore}-{lcore}"
            )
        parent = Families(snapshot).parent(held.owner)
        then = f"goes back to {name(parent)}" if parent else "is free"
        click.echo(f"lcore {lcore} is held by {describe(held.owner)}; released, it {then}")
        if not yes:
            click.confirm("The owner is not told and may go on using it. Release it?", abort=True)
        host.evict(lcore, held.owner.owner)
        click.echo(f"lcore {lcore} released: it {then}")


@click.command()
@click.pass_context
def gc(context: click.Context) -> None:
    """Collect what dead processes left.

    A daemon does this by itself, and so does every client that needs such an lcore. The lcores of a dead tenant go to
    its parent at once; its record stays until its own tenants have ended.
    """
    with Host(context.obj, create=False) as host:
        dead = [info for info in host.snapshot().instances if info.alive is False]
        for info in dead:
            try:
                host.collect(info.owner)
            except MtlshmError as error:
                if error.errno != errno.ESRCH:  # if so, it went with its last tenant, or somebody else collected it
                    raise
        late = host.sweep()
        left = {info.owner for info in host.snapshot().instances}
        gone = [info for info in dead if info.owner not in left]
        for info in gone:
            click.echo(f"collected {describe(info)}, lcores {info.lcores or 'none'}")
        if late:
            click.echo(f"collected {late} more that died meanwhile")
        if not gone and not late:
            click.echo("nothing to collect")
