# SPDX-License-Identifier: BSD-3-Clause
"""Who is at the other end of a connection, by the kernel's word and nobody else's."""

from __future__ import annotations

import errno
import os
import socket
import struct
from typing import NamedTuple

# asm-generic/socket.h, Linux 4.13 and 6.5; not in Python 3.11
_SO_PEERGROUPS, _SO_PEERPIDFD = 59, 77
_UCRED = struct.Struct("iII")  # pid, uid, gid
_GID = struct.Struct("I")


class Peer(NamedTuple):
    """Who connected, which need not be who speaks now: a child may have the socket."""

    pid: int  # as we see it; 0: it is in no PID namespace that we see into
    uid: int
    pidfd: int  # ours to close
    admitted: bool  # may it use the socket?


def meet(connection: socket.socket, gid: int | None) -> Peer:
    """Members of group `gid` are admitted, or of our own if it is None; root and we ourselves always.

    OSError if its process is dead already, or if there is no descriptor left.
    """
    pid, uid, peer_gid = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    admitted = _may_enter(connection, uid, peer_gid, os.getegid() if gid is None else gid)
    return Peer(pid, uid, _pidfd(connection, pid), admitted)


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


def _pidfd(connection: socket.socket, pid: int) -> int:
    try:
        pidfd = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
        os.set_inheritable(pidfd, False)
        return pidfd
    except OSError as error:
        if error.errno != errno.ENOPROTOOPT:  # before Linux 6.5; ESRCH, EINVAL: it is dead already
            raise
    # The PID may have changed hands between connect() and here, if its process died meanwhile and its child goes on
    # with the socket. That cannot be told on such a kernel.
    return os.pidfd_open(pid)
