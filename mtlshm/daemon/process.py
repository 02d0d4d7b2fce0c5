# SPDX-License-Identifier: BSD-3-Clause
"""Processes that do not map the table: their identity, and how to find them again.

A pidfd names a process for ever; a PID is somebody else's one day. So a process is met through a pidfd, and what
the table keeps of it must suffice to find it again after our own restart: its PID as we see it, our PID namespace, and
the inode of its pidfd, which Linux gives to no other process until the next boot (pidfs, 6.9). Before that kernel the
start time has to do; it has a resolution of 10 ms, within which a PID would have to be used twice.
"""

from __future__ import annotations

import errno
import os
import resource
import select
from pathlib import Path
from typing import NamedTuple

from mtlshm import InstanceInfo, Process, namespaces, pidfds, strangers
from mtlshm.kinds import TableOwner
from mtlshm.snapshot import printable

# ESRCH: nobody has the PID. It is a thread's of another process: EINVAL, ENOENT in newer kernels (seen with 6.18).
_NO_PROCESS = (errno.ESRCH, errno.EINVAL, errno.ENOENT)

_FOR_OTHERS = 20  # descriptors: a listener and a client at the socket, a look into /proc, a command with its files


class Client(NamedTuple):
    """A registration at the manager socket."""

    owner: TableOwner  # its instance in the table
    process: Process

    @property
    def identity(self) -> tuple[int, ...]:
        """Tells it from all others. Its owner alone does not: who may write the table can have one given twice."""
        who = self.process
        return self.owner, who.pid, who.pid_namespace, who.start_ticks, who.pidfd_inode


def identify(pidfd: int, pid: int, uid: int, hostname: str, start_ticks: int) -> Process:
    """Describes the process behind a pidfd. `pid` is 0 if our PID namespace does not contain it.

    `start_ticks` is for the caller to find out, 0 if he cannot: a process can keep us waiting for it (lease.py).
    """
    comm = _comm(pid)
    return Process(
        pid=pid,
        pid_namespace=namespaces.own("pid"),
        start_ticks=start_ticks,
        pidfd_inode=pidfds.inode(pidfd),
        uid=uid,
        comm=comm,
        hostname=hostname,
        label=comm or "unknown",
    )


def find(info: InstanceInfo | Process) -> int | None:
    """A pidfd on the process that `info` was registered for, or None if it is dead.

    LookupError if that cannot be told from here: it was registered by a daemon in another PID namespace, or was in one
    itself that we do not see into.
    """
    here = namespaces.own("pid")
    if info.pid_namespace != here and info.pid > 0 and namespaces.is_gone("pid", info.pid_namespace, 0):
        return None
    if info.pid_namespace != here or info.pid <= 0:
        raise LookupError(f"{info.label}, pid {info.pid} in PID namespace {info.pid_namespace}")
    try:
        pidfd = os.pidfd_open(info.pid)
    except OSError as error:
        if error.errno not in _NO_PROCESS:
            raise
        return None
    same = is_that(pidfd, info.pid, info.pidfd_inode, info.start_ticks)
    if same and not _ended(pidfd):  # else nobody has waited for it yet
        return to_keep(pidfd)
    os.close(pidfd)
    return None


def is_that(pidfd: int, pid: int, pidfd_inode: int, start_ticks: int) -> bool:
    """Whether the process has this pidfd inode and start time. A start time of 0 is unknown."""
    if (inode := pidfds.inode(pidfd)) and pidfd_inode:
        return inode == pidfd_inode
    return not start_ticks or start_ticks == _start_ticks(pid)


def _ended(pidfd: int) -> bool:
    poll = select.poll()  # select() is for descriptors below 1,024
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def to_keep(pidfd: int) -> int:
    """The same; or OSError, and it is closed, if too few descriptors would be left to serve anybody."""
    if pidfd < resource.getrlimit(resource.RLIMIT_NOFILE)[0] - _FOR_OTHERS:
        return pidfd
    os.close(pidfd)
    raise OSError(errno.EMFILE, f"{os.strerror(errno.EMFILE)}; raise the limit (ulimit -n)")


def _comm(pid: int) -> str:
    try:
        return printable(Path(f"/proc/{pid}/comm").read_text(errors="replace").removesuffix("\n"))
    except OSError:
        return ""


def _start_ticks(pid: int) -> int:
    try:
        return strangers.start_ticks(pid)
    except OSError:
        return -1
