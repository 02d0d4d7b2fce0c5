# SPDX-License-Identifier: BSD-3-Clause
"""Where the processes of instances are on this host, as far as /proc shows it: their PIDs here, their containers."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from typing import NamedTuple

from mtlshm import InstanceInfo, Kind
from mtlshm.containers import container
from mtlshm.kinds import TableOwner

_NO_PROCESS = (Kind.RESERVATION, Kind.POOL)


class Where(NamedTuple):
    """Of one process."""

    pid: int  # in our own PID namespace
    container: str  # '': in none, or not known


def whereabouts(instances: Iterable[InstanceInfo]) -> dict[TableOwner, Where]:
    """Of those that live and can be seen from here."""
    try:
        here = os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return {}
    living = [info for info in instances if info.alive and info.kind not in _NO_PROCESS and info.pid > 0]
    pids = {info.owner: info.pid for info in living if info.pid_namespace == here and _is_that(info)}
    elsewhere = {(info.pid_namespace, info.pid): info.owner for info in living if info.pid_namespace not in (0, here)}
    if elsewhere:
        pids |= _search(elsewhere)
    return {owner: Where(pid, container(pid)) for owner, pid in pids.items()}


def _is_that(info: InstanceInfo) -> bool:
    """An instance that holds its own life lock is the process that registered. The process of another one may have
    ended with nobody there to see it, and its PID may be somebody else's."""
    if info.kind in (Kind.SHM, Kind.DAEMON) or not info.start_ticks:
        return True
    from mtlshm.strangers import start_ticks

    with suppress(OSError):
        return start_ticks(info.pid) == info.start_ticks
    return False


def _search(elsewhere: dict[tuple[int, int], TableOwner]) -> dict[TableOwner, int]:
    """PIDs here of processes in other PID namespaces, each known by the namespace and its number there."""
    from mtlshm.strangers import inner_pid

    found = {}
    namespaces = {namespace for namespace, _ in elsewhere}
    for pid in map(int, filter(str.isdecimal, os.listdir("/proc"))):
        with suppress(OSError):  # it has ended, or is not ours to see
            if (namespace := os.stat(f"/proc/{pid}/ns/pid").st_ino) in namespaces:
                pidfd = os.pidfd_open(pid)
                try:
                    owner = elsewhere.get((namespace, inner_pid(pidfd)))
                finally:
                    os.close(pidfd)
                if owner is not None:
                    found[owner] = pid
    return found
