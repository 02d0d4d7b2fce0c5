# SPDX-License-Identifier: BSD-3-Clause
"""Where the processes of instances are on this host, as far as /proc shows it: their PIDs here, their containers."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from typing import NamedTuple

from mtlshm import InstanceInfo, Kind, namespaces
from mtlshm.containers import container
from mtlshm.kinds import TableOwner

NO_PROCESS = (Kind.RESERVATION, Kind.POOL)


class Where(NamedTuple):
    """The place of one process: its PID on this host, its container."""

    pid: int  # in our own PID namespace
    container: str  # '': in none, or not known


def whereabouts(instances: Iterable[InstanceInfo]) -> dict[TableOwner, Where]:
    """The places of living instances that this process can see."""
    try:
        here = namespaces.own("pid")
    except OSError:
        return {}
    living = [info for info in instances if info.alive and info.kind not in NO_PROCESS]
    pids = {info.owner: info.pid for info in living if info.pid > 0 and info.pid_namespace == here and _is_that(info)}
    if elsewhere := [info for info in living if info.pid <= 0 or info.pid_namespace != here]:
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


def _search(elsewhere: list[InstanceInfo]) -> dict[TableOwner, int]:
    """PIDs here of processes in other PID namespaces, where each has another number: by what pidfds.is_same() goes by,
    but looked up, as there may be hundreds of each."""
    from mtlshm import pidfds, strangers

    by_inode: dict[int, list[TableOwner]] = {}
    by_number: dict[tuple[int, int], list[TableOwner]] = {}
    for info in elsewhere:
        by_inode.setdefault(info.pidfd_inode, []).append(info.owner)
        by_number.setdefault((info.pid_namespace, info.pid), []).append(info.owner)
    found = {}
    for pid in map(int, filter(str.isdecimal, os.listdir("/proc"))):
        with suppress(OSError):  # it has ended, or is not ours to see
            pidfd = os.pidfd_open(pid)
            try:
                if inode := pidfds.inode(pidfd):
                    owners = by_inode.get(inode, [])
                else:
                    number = os.stat(f"/proc/{pid}/ns/pid").st_ino, strangers.inner_pid(pidfd)
                    owners = by_number.get(number, [])
            finally:
                os.close(pidfd)
            found.update(dict.fromkeys(owners, pid))
    return found
