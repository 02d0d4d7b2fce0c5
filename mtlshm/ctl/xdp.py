# SPDX-License-Identifier: BSD-3-Clause
"""xdp: our programs on interfaces, whether clients use them or not.

All is done as the daemon does it, with the same lock and ledger, and so is right while one runs: what we load it
finds and takes over, and what it loads we find.
"""

from __future__ import annotations

import json
import os
import socket
from contextlib import suppress
from dataclasses import asdict
from errno import EBUSY, ENODEV, EPERM
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mtlshm import Busy, NotPermitted
from mtlshm.ctl import survey, wording
from mtlshm.ctl.options import pins_option, state_option
from mtlshm.ctl.terminal import add_row, new_table, show
from mtlshm.errors import reason

if TYPE_CHECKING:
    from mtlshm.net.gate import Gate
    from mtlshm.net.ledger import Ledger, State
    from mtlshm.net.xdp import Loader

_dry_run = click.option("--dry-run", is_flag=True, help="Only print the commands that would run.")
_SERVES = {
    "chain": "for all clients, those on DPDK's AF_XDP driver too; on queues 1-63",
    "fused": "for clients with sockets or the xsks_map from mtlshmd, not for DPDK's AF_XDP driver; on queues 1-1023",
}

_json = click.option("--json", "as_json", is_flag=True, help="One object: what is so now; with --dry-run, commands[].")


@click.group()
def xdp() -> None:
    """Show, load and unload our XDP programs.

    They bring packets to AF_XDP sockets.
    """


@xdp.command()
@click.option("--json", "as_json", is_flag=True, help="One object: interfaces[] with programs[], missing[].")
@state_option
@pins_option
def status(as_json: bool, state: Path, pins: Path) -> None:
    """Show the XDP programs on all interfaces.

    The kernel names them, those of others too. Of ours it also shows what is pinned, how many ports they let through,
    and their counters (see `interfaces`).
    """
    import asyncio

    found = asyncio.run(_survey(state, pins))
    if as_json:
        click.echo(json.dumps(asdict(found), indent=2))
        return
    table = new_table("interface", "mode", "program", "id", "by", "ports", "hits", "passes", "unclaimed", "pins")
    for row in found.interfaces:
        whole = [row["ports"], *survey.count(row["counters"]), row["pins"] and Path(row["pins"][0]).parent]
        for program in row["programs"] or [{"name": None, "id": None, "by": "mtlshm"}]:
            ours = program["by"] == "mtlshm"
            by = "mtlshm, kept" if ours and row["kept"] else program["by"]
            add_row(table, survey.named(row), row["mode"], program["name"], program["id"], by, *(whole if ours else ""))
    show(table, "no XDP program is attached to any interface", found.missing)
    for way in sorted({row["way"] for row in found.interfaces if row["pins"] is not None and row["way"]}):
        click.echo(f"{way}: {_SERVES[way]}")


@xdp.command()
@click.argument("interface")
@click.option(
    "--way",
    type=click.Choice(("auto", "chain", "fused")),
    default="auto",
    help="As a chain under libxdp's dispatcher, fused into one program, or as a chain where the kernel can (auto).",
)
@_dry_run
@_json
@state_option
@pins_option
def load(interface: str, way: str, dry_run: bool, as_json: bool, state: Path, pins: Path) -> None:
    """Load our XDP programs and keep them loaded.

    They stay on INTERFACE whether clients use them or not, until `xdp unload` or the next boot. What is loaded already
    stays as it is. A dry run cannot know what the kernel will refuse: it shows a chain in native mode, and the result
    may be a fused program in skb mode.
    """
    import asyncio

    ifindex = _index_of(interface)
    _check_root(dry_run)
    done = asyncio.run(_load(ifindex, way, dry_run, state, pins))
    _say(done, as_json, "{interface}: {way}, {mode} mode, kept")


@xdp.command()
@click.argument("interface")
@_dry_run
@_json
@state_option
@pins_option
def unload(interface: str, dry_run: bool, as_json: bool, state: Path, pins: Path) -> None:
    """Stop keeping our XDP programs loaded.

    If no client uses INTERFACE, they are unloaded now. Otherwise this names the clients, and the programs are unloaded
    after the last of them has ended. Programs of others stay.
    """
    import asyncio

    ifindex = _index_of(interface)
    _check_root(dry_run)
    done = asyncio.run(_unload(ifindex, interface, dry_run, state, pins))
    _say(done, as_json, "{interface}: unloaded" if done.get("unloaded") else "{interface}: nothing of ours was loaded")


def _say(done: dict[str, Any], as_json: bool, words: str) -> None:
    if as_json:
        click.echo(json.dumps(done, indent=2))
    else:
        for line in done["commands"] if "commands" in done else [words.format(**done)]:
            click.echo(line)


async def _load(ifindex: int, way: str, dry_run: bool, state: Path, pins: Path) -> dict[str, Any]:
    from mtlshm.net.attached import Way
    from mtlshm.net.ledger import Ledger
    from mtlshm.net.tool import Tools
    from mtlshm.net.xdp import Loader

    commands: list[str] = []
    loader = Loader(Tools(state, show=commands.append if dry_run else None), pins)
    if dry_run:
        await loader.rehearse(ifindex, Way(way))
        return {"commands": commands}
    with Ledger(state) as ledger:
        kept = any(use.kept for use in ledger.uses() if use.ifindex == ifindex)
        ledger.keep(ifindex)
        try:
            gate = await loader.load(ifindex, Way(way))
        except BaseException:
            if not kept:
                ledger.unkeep(ifindex)
            raise
        with gate:
            _set_ports(ledger, gate)
            return {"interface": gate.attached.name, "way": gate.way, "mode": gate.mode, "kept": True}


def _set_ports(ledger: Ledger, gate: Gate) -> None:
    """Sets the ports that clients of a dead daemon asked for. A living daemon does so itself."""
    try:
        ledger.serve(patience=0)
    except OSError as error:
        if error.errno == EBUSY:
            return
        raise
    wanted = ledger.ports(gate.attached.ifindex)
    for port in gate.ports() ^ wanted:
        gate.set_port(port, port in wanted)


async def _unload(ifindex: int, name: str, dry_run: bool, state: Path, pins: Path) -> dict[str, Any]:
    from mtlshm.net.ledger import Ledger
    from mtlshm.net.tool import Tools
    from mtlshm.net.xdp import Loader

    commands: list[str] = []
    loader = Loader(Tools(state, show=commands.append if dry_run else None), pins)
    if dry_run:
        with suppress(survey.NoLedger):
            _check_unused(survey.read_ledger(state), ifindex, name)
        await loader.rehearse(ifindex, None)
        return {"commands": commands}
    with Ledger(state) as ledger:
        loaded = loader.pins(ifindex) is not None
        ledger.unkeep(ifindex)
        await loader.unload(ifindex, lambda: ledger.in_use(ifindex))
        _check_unused(ledger.state(), ifindex, name)
        if text := await loader.unknown(ifindex):
            raise Busy(EBUSY, text)
    return {"interface": name, "unloaded": loaded}


def _check_unused(book: State, ifindex: int, name: str) -> None:
    used = {number for use in book.uses if use.ifindex == ifindex for number in use.owners}
    if users := [wording.name(owner.process) for owner in book.owners if owner.id in used]:
        when = "mtlshmd unloads it when they have ended"
        raise Busy(EBUSY, f"{name} stays loaded, no longer kept but used by {'; '.join(users)}: {when}")


async def _survey(state: Path, pins: Path) -> survey.Survey:
    from mtlshm.net.tool import Tools
    from mtlshm.net.xdp import Loader

    loader = Loader(Tools(state), pins)
    found = survey.Survey([], [])
    kept: set[int] | None = None
    try:
        kept = {use.ifindex for use in survey.read_ledger(state).uses if use.kept}
    except survey.NoLedger:
        kept = set()
    except OSError as error:
        found.missing.append(f"which interfaces are kept: {reason(error)}")
    begun: list[int] = []
    try:
        begun = loader.interfaces()
    except OSError as error:
        found.missing.append(f"which programs are ours, and their pins: {error}")
    for ifindex in sorted({*begun, *(index for index, _ in socket.if_nameindex())}):
        row = await _describe(loader, ifindex, found.missing)
        row["kept"] = None if kept is None else ifindex in kept
        if row["programs"] or row["pins"] or row["kept"]:
            found.interfaces.append(row)
    return found


async def _describe(loader: Loader, ifindex: int, missing: list[str]) -> dict[str, Any]:
    from mtlshm.net.attached import look

    row = survey.where(ifindex) | dict.fromkeys(
        ("mode", "way", "dispatcher", "programs", "pins", "kept", "ports", "counters")
    )
    try:
        pins = loader.pins(ifindex)
        row["pins"] = pins and [str(pin) for pin in pins]
        attached = await look(ifindex)
        row |= {"mode": attached.mode, "way": attached.way, "dispatcher": attached.dispatcher}
        row["programs"] = [
            {
                "name": program.name,
                "id": program.id,
                "by": "mtlshm" if program in attached.ours and pins is not None else "somebody else",
            }
            for program in attached.programs
        ]
        if gate := await loader.find(ifindex):
            with gate:
                row |= {"ports": len(gate.ports()), "counters": asdict(gate.counters())}
    except OSError as error:
        if error.errno != ENODEV:
            missing.append(survey.why_not(survey.named(row), "XDP programs", error))
    return row


def _index_of(name: str) -> int:
    import asyncio

    from mtlshm.net import links

    return asyncio.run(links.index_of(name))


def _check_root(dry_run: bool) -> None:
    if os.geteuid() and not dry_run:
        raise NotPermitted(EPERM, "only root may load XDP programs; with --dry-run, others see what would be done")
