# SPDX-License-Identifier: BSD-3-Clause
"""The process that listens at a Unix socket."""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path
from typing import NamedTuple

from mtlshm.snapshot import printable

_UCRED = struct.Struct("iII")  # pid, uid, gid


class Listener(NamedTuple):
    """The process that listens at a socket, as the kernel says."""

    pid: int  # as we see it; 0 if it is in a PID namespace that we do not see into, or too busy to tell
    connection: socket.socket | None  # to it; None: it lets nobody in at the moment

    @property
    def name(self) -> str:
        """For people."""
        try:
            comm = printable(Path(f"/proc/{self.pid}/comm").read_text(errors="replace").strip())
        except OSError:
            comm = "another process"
        return f"{comm} (pid {self.pid})" if self.pid else comm

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self.connection:
            self.connection.close()


def peer(connection: socket.socket) -> Listener:
    """The process that listens at the other end of a connection. Does not keep the connection."""
    pid, _, _ = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return Listener(pid, None)


def who_listens(path: str | os.PathLike[str]) -> Listener | None:
    """The process that listens at a socket; None if none does, or if it refuses us. Connects, but sends nothing.

    Does not wait.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        connection.connect(os.fspath(path))
    except BlockingIOError:  # its backlog is full
        connection.close()
        return Listener(0, None)
    except OSError:
        connection.close()
        return None
    return peer(connection)._replace(connection=connection)
