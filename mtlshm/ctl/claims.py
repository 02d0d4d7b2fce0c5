# SPDX-License-Identifier: BSD-3-Clause
"""run and hold, which claim lcores for as long as something lasts; and place, which only says which it would be."""

from __future__ import annotations

import signal
import sys
from contextlib import closing

import click

from mtlshm import CpuSet, Host, Instance, LcoreType, MtlshmError
from mtlshm.config import ConfigError
from mtlshm.ctl.explanation import Explanation
from mtlshm.ctl.policy import (
    LIST,
    Demand,
    Policy,
    demand,
    lcores_option,
    one_of,
    policy_options,
    run_workers_option,
    workers_option,
)
from mtlshm.ctl.refusal import explained, holder_named, inherited, lease_explained
from mtlshm.ctl.reservations import found
from mtlshm.ctl.supervision import NOT_STARTED, supervise
from mtlshm.errors import reason


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@lcores_option
@run_workers_option
@click.option("--reservation", metavar="NAME", help="Claim nothing: use the lcores that are reserved under this name.")
@policy_options
@click.option("--explain", is_flag=True, help="Say why these lcores, on standard error, before CMD starts.")
@click.argument("cmd", nargs=-1, required=True, type=click.UNPROCESSED)
@click.pass_context
def run(
    context: click.Context,
    lcores: int | None,
    workers: int | None,
    reservation: str | None,
    policy: Policy,
    explain: bool,
    cmd: tuple[str, ...],
) -> None:
    """Run a command on lcores of its own.

    Claims lcores, runs CMD on them, and frees them when CMD ends. They are the affinity mask of CMD. MTLSHM_LCORES
    lists them (such as 0-3,8), and the list replaces {lcores} in the words of CMD. CMD and all that it starts share
    these lcores: libmtl, another `run` and every program that uses the library claim from them, and each lcore is given
    once. MTLSHM_LEASE tells them so. Passes every signal that can be caught on to CMD, except SIGCHLD. Stops when job
    control stops CMD.
    """
    one_of(lcores=lcores, workers=workers, reservation=reservation)
    if reservation is not None and (explain or not policy.is_default):
        raise click.UsageError("--numa, --near, --smt and --explain apply to --lcores N and --workers N only")
    try:
        with Host(context.obj, create=reservation is None) as host:
            if reservation is not None:
                there = found(host, reservation)
                status = _supervise(cmd, there.lcores, host.lease(there.owner))
            else:
                listed = any(LIST in word for word in cmd)
                wanted = demand(host, lcores, workers, policy, listed=listed)
                status = _run_on_a_claim(host, wanted, cmd, explain)
    except (MtlshmError, ConfigError) as error:
        click.echo(f"mtlshm-ctl: {reason(error)}", err=True)
        status = NOT_STARTED
    context.exit(status)


def _run_on_a_claim(host: Host, wanted: Demand, cmd: tuple[str, ...], explain: bool) -> int:
    with lease_explained():
        me = host.register(" ".join(cmd), cpus=wanted.cpus)
    with closing(me):
        parent = inherited(host)
        with explained(host, wanted, parent):
            lcores = wanted.claim(me, LcoreType.LEASE)
        if explain:
            why = Explanation(wanted, lcores, host.topology(), host.snapshot(), me.owner, parent)
            for line in why.lines():
                click.echo(line, err=True)
        return _supervise(cmd, lcores, me.lease)


def _supervise(cmd: tuple[str, ...], lcores: CpuSet, lease: str) -> int:
    return supervise(tuple(word.replace(LIST, str(lcores)) for word in cmd), lcores, lease)


@click.command()
@click.option("--dry-run", is_flag=True, help="Claim nothing. That is so without it, too.")
@lcores_option
@workers_option
@policy_options
@click.pass_context
def place(context: click.Context, dry_run: bool, lcores: int | None, workers: int | None, policy: Policy) -> None:
    """Show which lcores a claim would get now, and why these.

    Claims nothing, and needs read permission for the segment only. Under `run`, shows what would come from its lcores.
    """
    one_of(lcores=lcores, workers=workers)
    with Host(context.obj, create=False, read_only=True) as host:
        wanted = demand(host, lcores, workers, policy)
        with lease_explained():
            parent = inherited(host)
        with explained(host, wanted, parent):
            chosen = host.choose(wanted.count, parent=parent, **wanted.terms())
        click.echo(str(chosen))
        for line in Explanation(wanted, chosen, host.topology(), host.snapshot(), parent=parent).lines():
            click.echo(line)


@click.command()
@lcores_option
@policy_options
@click.argument("which", required=False)
@click.pass_context
def hold(context: click.Context, lcores: int | None, policy: Policy, which: str | None) -> None:
    """Claim lcores and keep them until SIGINT or SIGTERM.

    Claims the lcores in WHICH (such as 2-3,8), or as many as --lcores says, and prints them. Nobody else can claim them
    meanwhile, for instance during a measurement.
    """
    if (which is None) == (lcores is None):
        raise click.UsageError("name the lcores (such as 2-3) or give --lcores N, one of the two")
    if which is not None and not policy.is_default:
        raise click.UsageError("--numa, --near and --smt apply to --lcores N only")
    try:
        chosen = None if which is None else CpuSet.parse(which)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="WHICH") from error
    until = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, until)
    with Host(context.obj) as host:
        with lease_explained():
            me = host.register("hold")
        with closing(me):
            if chosen is None:
                wanted = demand(host, lcores, None, policy)
                with explained(host, wanted, inherited(host)):
                    chosen = wanted.claim(me, LcoreType.APP)
            else:
                _claim_each(host, me, chosen)
            click.echo(str(chosen))
            sys.stdout.flush()
            signal.sigwait(until)


def _claim_each(host: Host, me: Instance, lcores: CpuSet) -> None:
    """All or none: closing the instance gives back what it got before one was refused."""
    if not lcores:
        raise click.BadParameter("names no lcore", param_hint="WHICH")
    for lcore in sorted(lcores):
        with holder_named(host, lcore):
            me.claim(lcore)
