# SPDX-License-Identifier: BSD-3-Clause
"""What `status` shows to people: a summary, a row for each owner, and on demand one for each lcore."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mtlshm import InstanceInfo, Kind, Lcore
from mtlshm.ctl import wording
from mtlshm.ctl.look import Look, name, purpose_and_lease
from mtlshm.ctl.table import Column, Paper


def overview(look: Look, paper: Paper, *, wide: bool) -> Iterator[str]:
    """Line after line."""
    yield from _head(look, paper)
    if wide and (lcores := look.lcores):
        yield ""
        yield from paper.table(_lcores(look, lcores))
    if look.shown:
        yield ""
        yield from paper.table(_owners(look, wide))
    elif look.snapshot.instances:
        yield "nobody of that name or pid is registered"


def summary(look: Look) -> str:
    """How many lcores are held, lent and free, and which are free."""
    held, lent, free = look.held, look.lent, look.free
    which = f" ({free})" if free else ""
    return f"{len(held) + len(lent) + len(free)} lcores: {len(held)} held, {len(lent)} lent, {len(free)} free{which}"


def _head(look: Look, paper: Paper) -> Iterator[str]:
    yield from paper.lines(summary(look))
    daemon = look.snapshot.daemon
    yield from paper.lines(f"{look.path}; {f'daemon: pid {_pid(look, daemon)}' if daemon else 'no daemon'}")


def _owners(look: Look, wide: bool) -> list[Column]:
    shown, families, types = look.shown, look.families, _types(look)
    tenants = [str(families.lent(info.owner)) for info in shown]
    columns = [
        Column("lcores", [str(info.lcores) or "-" for info in shown], fold=True),
        Column("type", [types.get(info.owner, "-") for info in shown]),
        Column("owner", [info.key if info.kind == Kind.RESERVATION else info.label for info in shown], cut=True),
        Column("pid", [_pid(look, info) for info in shown], rank=2),
        Column("node", [str(look.node(info.lcores)) or "-" for info in shown], rank=4),
        Column("container", [look.container(info) or "-" for info in shown], rank=3, cut=True),
        Column("kind", [name(info.kind) for info in shown], rank=8),
        Column("user", [wording.user(info.uid) for info in shown], rank=7),
        Column("age", [wording.duration(info.age) for info in shown], rank=6),
    ]
    if wide:
        columns[4:4] = _who(shown)
    if look.use is not None:
        columns.append(Column("CPU %", [_busy(look, info.lcores) for info in shown], rank=1))
    if families:
        columns.append(Column("parent", [_parent(look, info) for info in shown], rank=5, cut=True))
        columns.append(Column("tenants", [lent or "-" for lent in tenants], rank=1, fold=True))
    return [*columns, _states(look, shown)]


def _lcores(look: Look, lcores: list[Lcore]) -> list[Column]:
    owners = [lcore.owner for lcore in lcores]
    columns = [
        Column("lcore", [f"{one.number}{f' (id {one.id})' * (one.id != one.number)}" for one in lcores]),
        Column("type", [purpose_and_lease(lcore) for lcore in lcores]),
        Column("label", [info.label for info in owners], cut=True),
        Column("pid", [_pid(look, info) for info in owners], rank=2),
        *_who(owners),
        Column("user", [wording.user(info.uid) for info in owners], rank=6),
        Column("node", [str(look.nodes.get(lcore.number, "-")) for lcore in lcores], rank=3),
        Column("age", [wording.duration(lcore.age) for lcore in lcores], rank=5),
        Column("CPU %", [_busy(look, [lcore.number]) for lcore in lcores], rank=1),
    ]
    if look.families:
        columns.insert(-2, Column("parent", [_parent(look, info) for info in owners], rank=4, cut=True))
    return [*columns, _states(look, owners)]


def _who(shown: Sequence[InstanceInfo]) -> list[Column]:
    """The columns with what a process says of itself."""
    comms = ["-" if info.kind == Kind.RESERVATION else info.comm for info in shown]
    return [Column("comm", comms, rank=9), Column("host", [info.hostname for info in shown], rank=10)]


def _states(look: Look, shown: Sequence[InstanceInfo]) -> Column:
    states = map(look.families.state, shown)
    return Column("", [state if state != "alive" else "" for state in states])


def _types(look: Look) -> dict[int, str]:
    """By owner, of all its lcores."""
    found: dict[int, set[str]] = {}
    for lcore in look.snapshot.lcores:
        found.setdefault(lcore.owner.owner, set()).add(purpose_and_lease(lcore))
    return {owner: ",".join(sorted(types)) for owner, types in found.items()}


def _pid(look: Look, info: InstanceInfo) -> str:
    if info.kind in (Kind.RESERVATION, Kind.POOL):
        return "-"
    here = look.pid(info)
    return wording.process(info) if here is None else str(here)


def _parent(look: Look, info: InstanceInfo) -> str:
    above = look.families.parent(info)
    return wording.short(above) if above else "gone" if info.parent else "-"


def _busy(look: Look, lcores: Sequence[int] | frozenset[int]) -> str:
    """On average."""
    known = [use for number in lcores if look.use and (use := look.use.get(number)) is not None]
    return f"{sum(known) / len(known):.0f}" if known else "-"
