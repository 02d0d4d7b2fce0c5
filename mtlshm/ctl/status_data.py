# SPDX-License-Identifier: BSD-3-Clause
"""What `status --json` prints; status.schema.json, beside this file, describes it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from mtlshm import InstanceInfo, LcoreType
from mtlshm.ctl import listening, wording
from mtlshm.ctl.look import Look, name, purpose

SCHEMA = "mtlshm/ctl/status.schema.json"
_COUNTERS = ("registered", "collected", "recovered", "takeovers", "claims", "releases")
VERSION = 1  # goes up if a key changes its meaning or goes


def as_data(look: Look) -> dict[str, Any]:
    """All but the interfaces."""
    snapshot, use = look.snapshot, look.use or {}
    return {
        "schema": SCHEMA,
        "version": VERSION,
        "segment": look.path,
        "created": datetime.fromtimestamp(snapshot.created, UTC).isoformat(),
        "daemon": f"{snapshot.daemon.owner:#x}" if snapshot.daemon else None,
        "warnings": list(listening.troubles(snapshot.daemon, ask=False)),
        "semaphore": f"{snapshot.semaphore.owner:#x}" if snapshot.semaphore else None,
        "counters": {each: getattr(snapshot, each) for each in _COUNTERS},
        "online": sorted(look.online),
        "held": sorted(look.held),
        "lent": sorted(look.lent),
        "free": sorted(look.free),
        "instances": [
            {
                **_identity(look, info),
                "kind": name(info.kind),
                "key": info.key or None,
                "pid_namespace": info.pid_namespace,
                "host_pid": look.pid(info),
                "container": look.container(info) or None,
                "uid": info.uid,
                "age": round(info.age, 3),
                "lcores": sorted(info.lcores),
                "nodes": sorted(look.node(info.lcores)),
                "lent": sorted(look.families.lent(info.owner)),
            }
            for info in look.shown
        ],
        "lcores": [
            {
                "lcore": lcore.number,
                "id": lcore.id,
                "type": purpose(lcore),
                "lease": lcore.type == LcoreType.LEASE,
                **_identity(look, lcore.owner),
                "node": look.nodes.get(lcore.number),
                "age": round(lcore.age, 3),
                "cpu_percent": use.get(lcore.number),
            }
            for lcore in look.lcores
        ],
    }


def _identity(look: Look, info: InstanceInfo) -> dict[str, Any]:
    return {
        "owner": f"{info.owner:#x}",
        "parent": f"{info.parent:#x}" if info.parent else None,
        "label": info.label,
        "state": look.families.state(info),
        "pid": info.pid,
        "comm": info.comm,
        "user": wording.user(info.uid),
        "host": info.hostname,
    }
