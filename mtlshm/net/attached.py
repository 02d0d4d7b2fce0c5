# SPDX-License-Identifier: BSD-3-Clause
"""Which XDP programs the kernel says are attached to an interface."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum

from mtlshm.net import bpf

_DISPATCHER = "xdp_dispatcher"


class Way(StrEnum):
    """How to load: AUTO takes the chain where the kernel can, else the fused program."""

    AUTO = "auto"
    CHAIN = "chain"
    FUSED = "fused"


PROGRAMS = {Way.CHAIN: ("mtl_dp_filter", "xsk_def_prog"), Way.FUSED: ("mtl_dp_fused",)}  # front to end
OURS = {name for programs in PROGRAMS.values() for name in programs}


class Mode(StrEnum):
    """Where programs see packets: in the driver, in the kernel's generic code, or in the NIC."""

    NATIVE = "native"
    SKB = "skb"
    OFFLOAD = "hw"


_MODES = {"xdp": Mode.NATIVE, "xdpgeneric": Mode.SKB, "xdpoffload": Mode.OFFLOAD}  # as pyroute2 says it


@dataclass(frozen=True)
class Attached:
    """An interface and its XDP programs, as the kernel describes them."""

    ifindex: int
    name: str
    mode: Mode | None  # None: no program, or several in different modes
    programs: tuple[bpf.ProgramInfo, ...]  # in a dispatcher, or the one that is attached itself
    dispatcher: bool

    @property
    def ours(self) -> tuple[bpf.ProgramInfo, ...]:
        """The programs with our names, whoever loaded them."""
        return tuple(program for program in self.programs if program.name in OURS)

    @property
    def way(self) -> Way | None:
        """Which of the two is complete."""
        names = sorted(program.name for program in self.ours)
        if names == sorted(PROGRAMS[Way.CHAIN]) and self.dispatcher:
            return Way.CHAIN
        return Way.FUSED if names == sorted(PROGRAMS[Way.FUSED]) else None


async def look(ifindex: int) -> Attached:
    """Ask the kernel what is attached to an interface."""
    from pyroute2 import AsyncIPRoute  # only here: it is half as big as all the rest of us
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        async with AsyncIPRoute() as netlink:
            (link,) = await netlink.link("get", index=ifindex)
    except NetlinkError as error:
        raise OSError(error.code, f"interface {ifindex}: {os.strerror(error.code)}") from None
    name = link.get("ifname")
    xdp = dict(link.get("xdp", {"attrs": []})["attrs"])
    mode = _MODES.get(str(xdp.get("IFLA_XDP_ATTACHED")))
    # One program for each mode; the first attribute only if there is one in all.
    roots = _programs({number for key, number in xdp.items() if key.endswith("PROG_ID")})
    if [root.name for root in roots] == [_DISPATCHER]:
        return Attached(ifindex, name, mode, tuple(_programs(bpf.extensions_of(roots[0].id))), True)
    return Attached(ifindex, name, mode, tuple(roots), False)


def _programs(ids: Iterable[int]) -> list[bpf.ProgramInfo]:
    """The programs with these ids. Leaves out those that are gone by now."""
    found = []
    for number in ids:
        with suppress(FileNotFoundError), bpf.Program.by_id(number) as program:
            found.append(program.info)
    return found
