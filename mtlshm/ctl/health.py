# SPDX-License-Identifier: BSD-3-Clause
"""health: is all that clients need there and answering? For probes, which want one line and an exit status.

It waits for nobody longer than _PATIENCE: whoever was stopped, or has taken the daemon's place, may never answer.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from errno import EACCES, EAGAIN, ECONNREFUSED, ENOENT
from pathlib import Path

import click

from mtlshm import Host, InstanceInfo, MtlshmError, namespaces, pidfds
from mtlshm.ctl.options import pins_option, state_option
from mtlshm.ctl.survey import NoLedger, read_ledger
from mtlshm.ctl.verdict import State, Verdict
from mtlshm.damage import examine
from mtlshm.errors import reason
from mtlshm.host import default_path
from mtlshm.listener import peer
from mtlshm.manager_client import Manager, default_socket

_PATIENCE = 5.0  # seconds, for the socket and for the kernel's word on interfaces
_START = "start mtlshmd: systemctl start mtlshmd"


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One object: healthy, checks[].")
@click.option("--socket", "path", help="Socket to ask; default where mtlshmd serves.")
@state_option
@pins_option
@click.pass_context
def health(context: click.Context, as_json: bool, path: str | None, state: Path, pins: Path) -> None:
    """Say in one line whether clients are served.

    Is the segment sound? Does a daemon live? Does that daemon answer at its socket? Are the interfaces in use served?
    For probes and container health checks. Exit status 0 if so, 1 if not, whatever the reason.
    """
    verdicts = list(_look(os.path.abspath(context.obj or default_path()), path, state, pins))
    failures = [verdict for verdict in verdicts if verdict.state is State.FAILURE]
    if as_json:
        click.echo(json.dumps({"healthy": not failures, "checks": [each.as_json() for each in verdicts]}, indent=2))
    elif failures:
        click.echo(f"unhealthy: {'; '.join(map(str, failures))}")
    else:
        click.echo(f"healthy: {'; '.join(map(str, verdicts))}")
    context.exit(1 if failures else 0)


def _look(segment: str, path: str | None, state: Path, pins: Path) -> Iterator[Verdict]:
    yield (sound := _segment(segment))
    daemon = None
    with suppress(MtlshmError), Host(segment, create=False, read_only=True) as host:  # else that was said just now
        daemon = host.snapshot().daemon
    if sound.state is State.OK:
        yield _daemon(daemon)
    yield _socket(path, daemon, known=sound.state is State.OK)
    yield _interfaces(state, pins)


def _segment(path: str) -> Verdict:
    try:
        damages = [damage for damage in examine(path) if not damage.passing]
    except MtlshmError as error:
        return Verdict("segment", State.FAILURE, reason(error))
    if damages:
        return Verdict("segment", State.FAILURE, f"{path}: {damages[0]}", "for what mends it: mtlshm-ctl doctor")
    return Verdict("segment", State.OK, f"{path} is sound")


def _daemon(daemon: InstanceInfo | None) -> Verdict:
    """By its life lock, which the kernel keeps: no other process can have it."""
    if daemon is None:
        return Verdict("daemon", State.FAILURE, "no daemon serves the segment", _START)
    who = f"mtlshmd (pid {daemon.pid})"
    if _is_stopped(daemon):
        return Verdict("daemon", State.FAILURE, f"{who} is stopped", f"kill -CONT {daemon.pid}")
    return Verdict("daemon", State.OK, f"{who} lives")


def _is_stopped(daemon: InstanceInfo) -> bool:
    """By a signal or a debugger, as far as /proc here shows that process."""
    with suppress(OSError):
        if daemon.pid_namespace == namespaces.own("pid"):
            fields = Path(f"/proc/{daemon.pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
            return fields[0] in "Tt" and int(fields[19]) == daemon.start_ticks
    return False


def _socket(path: str | None, daemon: InstanceInfo | None, *, known: bool) -> Verdict:
    """Whether the daemon, not another program, answers at the socket. `known`: the segment says who the daemon is."""
    try:
        path = path or default_socket()
    except FileNotFoundError as error:
        return Verdict("socket", State.OK, reason(error))
    try:
        with Manager(path, timeout=_PATIENCE) as manager:
            who = peer(manager.socket)
            if known and not (daemon and _is(manager.socket, who.pid, daemon)):
                text = f"{path} belongs to {who.name}, which does not serve this segment and may grant lcores twice"
                return Verdict("socket", State.FAILURE, text, "end its clients, then that manager")
            manager.heartbeat(1)
    except OSError as error:
        return Verdict("socket", State.FAILURE, f"{path}: {_why(error)}", _advice(error, path))
    return Verdict("socket", State.OK, f"{path} answers")


def _is(connection: socket.socket, pid: int, daemon: InstanceInfo) -> bool:
    """Whether the daemon is at the other end. True also if the kernel does not tell: it may be in a container."""
    with suppress(OSError):
        if daemon.pid_namespace == namespaces.own("pid"):
            return pid == daemon.pid
    with suppress(OSError):
        pidfd = connection.getsockopt(socket.SOL_SOCKET, pidfds.SO_PEERPIDFD)
        try:
            inode = pidfds.inode(pidfd)
        finally:
            os.close(pidfd)
        if inode and daemon.pidfd_inode:
            return inode == daemon.pidfd_inode
    return True


def _why(error: OSError) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {_PATIENCE:g} s"
    return "its queue of new connections is full" if error.errno == EAGAIN else reason(error)


def _advice(error: OSError, path: str) -> str:
    if error.errno in (ENOENT, ECONNREFUSED):
        return _START
    if error.errno == EACCES:
        return f"only its owner and group may use it: ls -l {path}"
    return "see what it does: journalctl --unit mtlshmd"


def _interfaces(state: Path, pins: Path) -> Verdict:
    """The interfaces in the ledger. Only root can ask the kernel whether their packets reach clients."""
    try:
        uses = [use.ifindex for use in read_ledger(state).uses] if (state / "ledger").exists() else []
    except NoLedger:
        uses = []
    except OSError as error:
        private = isinstance(error, PermissionError)
        return Verdict("interfaces", State.UNKNOWN if private else State.FAILURE, f"interfaces: {reason(error)}")
    if not uses:
        return Verdict("interfaces", State.OK, "no interface is in use")
    import asyncio

    return asyncio.run(_served(uses, state, pins))


async def _served(uses: list[int], state: Path, pins: Path) -> Verdict:
    import asyncio

    from mtlshm.net.tool import Tools
    from mtlshm.net.xdp import Loader

    missing: list[str] = []
    try:
        async with asyncio.timeout(_PATIENCE):
            loader = Loader(Tools(state), pins)
            for ifindex in uses:
                name = _name(ifindex)
                if name is None:  # it has just gone, or is in another network namespace
                    return Verdict("interfaces", State.UNKNOWN, f"interface {ifindex} is not seen from here")
                if gate := await loader.find(ifindex):
                    gate.close()
                else:
                    missing.append(name)
    except PermissionError as error:
        if os.geteuid():
            return Verdict(
                "interfaces", State.UNKNOWN, f"{len(uses)} interfaces in use, of which the kernel tells root only"
            )
        return Verdict("interfaces", State.FAILURE, f"interfaces: {reason(error)}")
    except TimeoutError:
        return Verdict("interfaces", State.FAILURE, f"interfaces: the kernel does not answer within {_PATIENCE:g} s")
    except OSError as error:
        return Verdict("interfaces", State.FAILURE, f"interfaces: {reason(error)}")
    if missing:
        text = f"{', '.join(missing)}: the XDP programs are not loaded"
        return Verdict("interfaces", State.FAILURE, text, "for the reason: mtlshm-ctl xdp status")
    return Verdict("interfaces", State.OK, f"{len(uses)} interface{'s' * (len(uses) > 1)} served")


def _name(ifindex: int) -> str | None:
    with suppress(OSError):
        return socket.if_indextoname(ifindex)
    return None
