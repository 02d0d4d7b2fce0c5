# SPDX-License-Identifier: BSD-3-Clause
"""The processes of owners, by the PIDs that they have here."""

from __future__ import annotations

import os
from contextlib import suppress

from mtlshm import InstanceInfo, Snapshot, namespaces, strangers
from mtlshm.kinds import Kind, TableOwner

_NO_PROCESS = (Kind.POOL, Kind.RESERVATION)


def processes(snapshot: Snapshot) -> tuple[dict[int, TableOwner], frozenset[TableOwner]]:
    """By PID here: the owner; and the owners of lcores whose process is not to be found from here."""
    here = namespaces.own("pid")
    infos = [info for info in snapshot.instances if info.kind not in _NO_PROCESS and info.alive]
    found = {info.pid: info.owner for info in infos if info.pid_namespace == here and info.pid > 0}
    elsewhere = [info for info in infos if info.owner not in found.values()]
    if elsewhere:
        for pid in (int(name) for name in os.listdir("/proc") if name.isdecimal()):
            with suppress(OSError):  # it has ended, or is not ours to see
                if owner := _which(pid, elsewhere):
                    found[pid] = owner
    return found, frozenset(info.owner for info in elsewhere if info.lcores) - frozenset(found.values())


def _which(pid: int, infos: list[InstanceInfo]) -> TableOwner | None:
    """A process in another PID namespace has a number there that is another's here: the inode of its pidfd tells, which
    no other process has; before Linux 6.9, where all have one, the number there with the namespace."""
    pidfd = os.pidfd_open(pid)
    try:
        inode = os.fstat(pidfd).st_ino
        those = [info for info in infos if info.pidfd_inode == inode]
        if len(those) == 1 and inode != _shared_inode():
            return those[0].owner
        if inode != _shared_inode():
            return None
        there = (strangers.inner_pid(pidfd), os.stat(f"/proc/{pid}/ns/pid").st_ino)
        return next((info.owner for info in infos if (info.pid, info.pid_namespace) == there), None)
    finally:
        os.close(pidfd)


def _shared_inode() -> int:
    """Of pidfds before pidfs: that of eventfds and others."""
    event = os.eventfd(0)
    try:
        return os.fstat(event).st_ino
    finally:
        os.close(event)
