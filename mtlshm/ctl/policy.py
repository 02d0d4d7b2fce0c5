# SPDX-License-Identifier: BSD-3-Clause
"""The options of a claim by policy.

HOW MANY LCORES N WORKERS NEED. libmtl never hands out its main lcore. Without a core list in its init parameters DPDK
takes the affinity mask, and the main lcore is the lowest CPU in it: N workers need N + 1 lcores. With a core list
libmtl adds a main lcore of its own, which is lcore 0: N workers need N lcores, and CPU 0 must not be among them.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any

import click

from mtlshm import CpuSet, Host, Instance, LcoreType, MtlshmError, Smt
from mtlshm.errors import reason

LIST = "{lcores}"  # in a command's words: to be replaced by the core list
_NODES = 1023  # the kernel's CONFIG_NODES_SHIFT allows no higher number


@dataclass(frozen=True, slots=True)
class Policy:
    """The options --numa, --near and --smt."""

    numa: int | None
    near: str | None
    smt: Smt

    @property
    def is_default(self) -> bool:
        """None of them was given."""
        return self.numa is None and self.near is None and self.smt == Smt.ANY


@dataclass(frozen=True, slots=True)
class Demand:
    """A number of lcores, and where they shall come from."""

    count: int
    smt: Smt
    node: int | None
    device: str | None  # the one that is on the node: that makes the node a wish
    main: bool  # one of the lcores is for libmtl itself
    listed: bool  # they go into a core list: CPU 0 is left out

    @property
    def mask(self) -> CpuSet:
        """The CPUs that they may come from."""
        mask = CpuSet(os.sched_getaffinity(0))
        return mask - {0} if self.listed else mask

    @property
    def cpus(self) -> CpuSet | None:
        """The same; None if that is what the library takes by itself."""
        return self.mask if self.listed else None

    def claim(self, me: Instance, type: LcoreType) -> CpuSet:
        """Claim them."""
        return me.claim_many(self.count, type=type, **self.terms())

    def terms(self) -> dict[str, Any]:
        """The arguments for Instance.claim_many(), Host.reserve() and Host.choose()."""
        return {"node": self.node, "near": self.device is not None, "smt": self.smt}


def demand(host: Host, lcores: int | None, workers: int | None, policy: Policy, *, listed: bool = False) -> Demand:
    """The demand of --lcores or --workers (one of the two) and the policy. `listed`: the command gets a core list."""
    node, device = policy.numa, None
    if policy.near is not None:
        node = _node_of(host, policy.near)
        device = None if node is None else policy.near
    main = workers is not None and not listed
    return Demand(
        count=(workers or lcores or 0) + main,
        smt=policy.smt,
        node=node,
        device=device,
        main=main,
        listed=listed and workers is not None,
    )


def one_of(**options: object) -> None:
    """Exactly one of these is to be given; the keys name them."""
    if sum(value is not None for value in options.values()) != 1:
        names = [f"--{name}" for name in options]
        raise click.UsageError(f"give one of {', '.join(names[:-1])} and {names[-1]}")


def _node_of(host: Host, device: str) -> int | None:
    """The NUMA node of a network device, by any of its names; None, and a word about it, if that is of no help."""
    import asyncio

    from mtlshm.net import links

    try:
        name = socket.if_indextoname(asyncio.run(links.index_of(device)))
    except OSError as error:
        raise MtlshmError(error.errno or errno.ENODEV, f"--near {device}: {reason(error)}") from None
    try:
        node = host.interface_node(name)
    except MtlshmError as error:
        if error.errno != errno.ENODEV:  # sysfs may be that of another network namespace
            raise
        node = None
    if node is not None and node in host.topology().nodes:
        return node
    why = "the kernel knows no NUMA node of it" if node is None else f"its NUMA node {node} has no CPUs"
    click.echo(f"mtlshm-ctl: --near {device}: {why}; lcores are taken from any node", err=True)
    return None


def policy_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options of a claim by policy; the function gets them as `policy`."""

    @wraps(function)
    def bundled(*args: Any, numa: int | None, near: str | None, smt: str, **others: Any) -> Any:
        if numa is not None and near is not None:
            raise click.UsageError("give --numa or --near, not both")
        return function(*args, policy=Policy(numa, near, Smt[smt.upper()]), **others)

    for option in (
        click.option(
            "--smt",
            type=click.Choice([policy.name.lower() for policy in Smt]),
            default="any",
            help="any: ignore SMT siblings. avoid: take no lcore whose sibling is held. whole: take whole physical "
            "cores; all their siblings count. Default any.",
        ),
        click.option(
            "--near",
            metavar="INTERFACE",
            help="Prefer lcores of this network interface's NUMA node; take others if that node has not enough.",
        ),
        click.option("--numa", type=click.IntRange(0, _NODES), help="Take lcores of this NUMA node only."),
    ):
        bundled = option(bundled)
    return bundled


lcores_option = click.option("--lcores", type=click.IntRange(1), help="Number of lcores.")
workers_option = click.option(
    "--workers",
    type=click.IntRange(1),
    help="Number of lcores that libmtl can hand out. One more is taken, since libmtl keeps its main lcore for itself.",
)
run_workers_option = click.option(
    "--workers",
    type=click.IntRange(1),
    help="Number of lcores that libmtl can hand out. libmtl keeps its main lcore for itself, so one more is taken. "
    f"With {LIST} in CMD none is, and CPU 0 is left out, as libmtl adds that to a core list as its main lcore.",
)
