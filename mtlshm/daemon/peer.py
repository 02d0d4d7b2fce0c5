# SPDX-License-Identifier: BSD-3-Clause
"""The process at the other end of a connection, as the kernel alone names it."""

from __future__ import annotations

import errno
import os
import socket
import struct
from typing import NamedTuple

from mtlshm.errors import reason
from mtlshm.pidfds import SO_PEERPIDFD

# asm-generic/socket.h, Linux 4.13; not in Python 3.11
_SO_PEERGROUPS = 59
_NOT_HERE = (errno.ENOPROTOOPT, errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM, errno.EACCES)
_UCRED = struct.Struct("iII")  # pid, uid, gid
_GID = struct.Struct("I")


class Unseen(OSError):
    """The kernel lets nobody, or not us, see when that process ends."""


class Peer(NamedTuple):
    """The process that connected. A child that inherited the socket may be the one that speaks now."""

    pid: int  # as we see it; 0: it is in no PID namespace that we see into
    uid: int
    pidfd: int | None  # ours to close; None: the kernel gives us none, see `unseen`
    admitted: bool  # may it use the socket?
    unseen: str = ""  # why not


def meet(connection: socket.socket, gid: int | None) -> Peer:
    """Members of group `gid` are admitted, or of our own if it is None; root and we ourselves always.

    OSError if its process is dead already, or if there is no descriptor left.
    """
    pid, uid, peer_gid = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    admitted = _may_enter(connection, uid, peer_gid, os.getegid() if gid is None else gid)
    try:
        return Peer(pid, uid, _pidfd(connection, pid), admitted)
    except Unseen as error:
        return Peer(pid, uid, None, admitted, reason(error))


def _may_enter(connection: socket.socket, uid: int, peer_gid: int, gid: int) -> bool:
    """The socket file's mode says the same at the door."""
    if uid in (0, os.geteuid()):
        return True
    try:
        supplementary = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 1024)  # Python takes no more: 256
    except OSError as error:
        if error.errno != errno.ERANGE:
            raise
        supplementary = b""
    return gid in {peer_gid, *(group for (group,) in _GID.iter_unpack(supplementary))}


def why_all_are_unseen() -> str:
    """Empty if the kernel gives us pidfds, as it does unless it is old and a seccomp filter forbids pidfd_open()."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        met = meet(ours, None)
    if met.pidfd is not None:
        os.close(met.pidfd)
    return met.unseen


def _pidfd(connection: socket.socket, pid: int) -> int:
    try:
        pidfd = connection.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD)
        os.set_inheritable(pidfd, False)
        return pidfd
    except OSError as error:
        # ESRCH, EINVAL, ENODATA: it is dead already. ENOPROTOOPT: before Linux 6.5.
        if error.errno not in _NOT_HERE:
            raise
        why = reason(error)
    if pid <= 0:
        raise Unseen(errno.EPERM, f"it is in a PID namespace that we do not see into, and SO_PEERPIDFD says: {why}")
    # The PID may have changed hands between connect() and here, if its process died meanwhile and its child goes on
    # with the socket. That cannot be told on such a kernel.
    try:
        return os.pidfd_open(pid)
    except OSError as error:
        if error.errno not in _NOT_HERE:
            raise
        text = f"the kernel gives no pidfd (SO_PEERPIDFD: {why}; pidfd_open: {reason(error)})"
        raise Unseen(errno.EPERM, f"{text}; let the seccomp filter pass pidfd_open") from None
