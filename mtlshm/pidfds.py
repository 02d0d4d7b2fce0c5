# SPDX-License-Identifier: BSD-3-Clause
"""What a pidfd tells of its process: whether it is the one that somebody else has met, in whatever PID namespace."""

from __future__ import annotations

import os
from contextlib import suppress

from mtlshm import namespaces, strangers
from mtlshm.snapshot import InstanceInfo

SO_PEERPIDFD = 77  # asm-generic/socket.h, Linux 6.5; not in Python 3.11


def _eventfd_inode() -> int:
    event = os.eventfd(0)
    try:
        return os.fstat(event).st_ino
    finally:
        os.close(event)


SHARED_INODE = _eventfd_inode()  # looked up now: later there may be no descriptor left for it


def inode(pidfd: int) -> int:
    """No other process has the same before the next boot. 0: it says nothing; before pidfs (Linux 6.9) pidfds shared
    one inode with eventfds and others."""
    found = os.fstat(pidfd).st_ino
    return found if found != SHARED_INODE else 0


def is_same(info: InstanceInfo, pidfd: int, pid: int) -> bool:
    """Is a process that lives, and that `pid` names here, the one that registered `info` for itself, and lives too? It
    may be in another PID namespace than we: it says then which number it has there, and in which one."""
    if (found := inode(pidfd)) and info.pidfd_inode:
        return found == info.pidfd_inode
    if info.pid_namespace == namespaces.own("pid"):
        return info.pid == pid
    with suppress(OSError):
        return (strangers.inner_pid(pidfd), os.stat(f"/proc/{pid}/ns/pid").st_ino) == (info.pid, info.pid_namespace)
    return False
