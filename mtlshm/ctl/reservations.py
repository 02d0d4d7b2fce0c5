# SPDX-License-Identifier: BSD-3-Clause
"""reserve and end: lcores that are kept for tenants until somebody ends the reservation."""

from __future__ import annotations

import errno
import json

import click

from mtlshm import Busy, Host, Kind, MtlshmError
from mtlshm.cpuset import counted
from mtlshm.ctl import wording
from mtlshm.ctl.families import Families
from mtlshm.ctl.policy import Policy, demand, lcores_option, one_of, policy_options, workers_option
from mtlshm.ctl.refusal import explained
from mtlshm.host import Reservation
from mtlshm.kinds import NOBODY

_LONGEST = 63  # bytes of a key


class NoReservation(MtlshmError):
    """There is none of that name."""

    exit_status = 3


def _name(_: click.Context, __: click.Parameter, text: str) -> str:
    if not 0 < len(text.encode(errors="surrogateescape")) <= _LONGEST:
        raise click.BadParameter(f"a name has 1 to {_LONGEST} bytes")
    return text


@click.command()
@lcores_option
@workers_option
@policy_options
@click.option("--json", "as_json", is_flag=True, help="One object: name, lcores[], lease, owner, existed.")
@click.argument("name", callback=_name)
@click.pass_context
def reserve(
    context: click.Context, lcores: int | None, workers: int | None, policy: Policy, as_json: bool, name: str
) -> None:
    """Reserve lcores under a name, until `end` or the next boot.

    Prints MTLSHM_LCORES=... and MTLSHM_LEASE=..., two lines for `eval` or env(1). A program with these variables claims
    from these lcores, and an lcore that it gives back stays reserved. `run --reservation NAME` sets the variables and
    the affinity. If NAME is reserved already, prints what that reservation has; exit status 4 if that is another number
    of lcores.
    """
    one_of(lcores=lcores, workers=workers)
    with Host(context.obj) as host:
        wanted = demand(host, lcores, workers, policy)
        with explained(host, wanted, NOBODY):
            there = host.reserve(name, wanted.count, **wanted.terms())
        if there.found and len(there.lcores) != wanted.count:
            text = f"{name} has {counted(len(there.lcores))} reserved ({there.lcores}), {wanted.count} asked for"
            raise Busy(errno.EBUSY, f"{text}; to change that: mtlshm-ctl end {name}, then reserve it anew")
        lease = host.lease(there.owner)
        if as_json:
            data = {
                "name": name,
                "lcores": sorted(there.lcores),
                "lease": lease,
                "owner": f"{there.owner:#x}",
                "existed": there.found,
            }
            click.echo(json.dumps(data, indent=2))
        else:
            click.echo(f"MTLSHM_LCORES={there.lcores}\nMTLSHM_LEASE={lease}")


@click.command()
@click.argument("name", callback=_name)
@click.pass_context
def end(context: click.Context, name: str) -> None:
    """End a reservation.

    Its lcores are free. Its tenants keep the lcores that they use until they give them back.
    """
    with Host(context.obj, create=False) as host:
        there = found(host, name)
        tenants = Families(host.snapshot()).tenants(there.owner)
        try:
            host.end(there.owner)
        except MtlshmError as error:
            if error.errno == errno.ESRCH:  # somebody else did, meanwhile
                raise _none(host, name) from None
            raise
        click.echo(f"{name} ended: lcores {there.lcores or 'none'}")
        for info in tenants:
            if info.lcores:
                click.echo(f"lcores {info.lcores} are in use until they are given back: by {wording.name(info)}")


def found(host: Host, name: str) -> Reservation:
    """The reservation of that name. NoReservation if there is none."""
    if there := host.reservation(name):
        return there
    raise _none(host, name)


def _none(host: Host, name: str) -> NoReservation:
    keys = sorted(info.key for info in host.snapshot().instances if info.kind == Kind.RESERVATION)
    others = f"there are {', '.join(keys)}" if keys else "nothing is reserved"
    return NoReservation(errno.ESRCH, f"no reservation {name}; {others}: mtlshm-ctl reserve makes one")
