# SPDX-License-Identifier: BSD-3-Clause
"""Events in words, and as data."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime
from typing import Any

from mtlshm import Event, EventKind, Kind
from mtlshm.ctl import wording
from mtlshm.ctl.look import name

_HOW = {
    Kind.DAEMON: " as the daemon",
    Kind.SOCKET: " at the manager socket",
    Kind.LEGACY: " on the legacy table",
}


def sentence(event: Event) -> str:
    """Say what happened, without the time."""
    who, lcores = _who(event), str(event.lcores)
    match event.kind:
        case EventKind.LOST:
            return "an event was lost: its writer was killed, or was stopped for long"
        case EventKind.REGISTERED:
            return (
                f"{who} registered{_HOW.get(event.instance_kind, '') if isinstance(event.instance_kind, Kind) else ''}"
            )
        case EventKind.CLAIMED:
            return f"{who} claimed {_lcores(lcores)}"
        case EventKind.RESERVED:
            return f"{who} reserved {_lcores(lcores)}"
        case EventKind.ENDED:
            return f"{who} ended{_fate(event)}"
        case EventKind.DIED:
            return f"{who} died{_fate(event)}"
        case EventKind.KEPT:
            return f"{who} ended{_fate(event)}; its record is kept for its tenants"
        case EventKind.EVICTED:
            return f"{_lcores(lcores)} taken away from {who}{' for its parent' if event.parent else ''}"
        case EventKind.TAKEOVER:
            return f"{who} took the semaphore from a dead holder"
        case EventKind.XDP | EventKind.NIC:
            return f"interface {event.label}: {event.text}"


def line(event: Event) -> str:
    """The sentence after the local time; a lost event has no time."""
    when = "-" if event.kind == EventKind.LOST else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event.when))
    return f"{when:19}  {sentence(event)}"


def as_data(event: Event) -> dict[str, Any]:
    """Return the object that --json prints; a lost event has only its number."""
    data: dict[str, Any] = {"number": event.number, "event": name(event.kind)}
    if event.kind == EventKind.LOST:
        return data
    data["time"] = datetime.fromtimestamp(event.when, UTC).isoformat()
    data |= {"host": event.hostname, "pid": event.pid, "pid_namespace": event.pid_namespace, "comm": event.comm}
    if event.kind in (EventKind.XDP, EventKind.NIC):
        return data | {"interface": event.label, "text": event.text}
    return data | {
        "owner": f"{event.owner:#x}",
        "parent": f"{event.parent:#x}" if event.parent else None,
        "kind": name(event.instance_kind),
        "label": event.label,
        "key": event.text or None,
        "user": wording.user(event.uid),
        "lcores": sorted(event.lcores),
    }


def _who(event: Event) -> str:
    if event.instance_kind == Kind.RESERVATION:
        return f"reservation {event.text}"
    if event.instance_kind == Kind.POOL:
        return "the pool of the legacy table"
    if not event.pid:
        return f"an unknown instance ({event.owner:#x})"
    elsewhere = "" if event.hostname == os.uname().nodename else f" on {event.hostname}"
    return f"{event.label} (pid {wording.process(event)}{elsewhere})"


def _lcores(lcores: str) -> str:
    return f"lcore{'s' * (not lcores.isdecimal())} {lcores}"


def _fate(event: Event) -> str:
    """Say where its lcores went."""
    if not event.lcores:
        return ""
    lcores, several = str(event.lcores), len(event.lcores) > 1
    if event.parent:
        return f"; {_lcores(lcores)} {'go' if several else 'goes'} back to its parent"
    return f"; {_lcores(lcores)} {'are' if several else 'is'} free"
