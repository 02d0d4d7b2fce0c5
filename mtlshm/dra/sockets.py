# SPDX-License-Identifier: BSD-3-Clause
"""Sockets in kubelet's directories, and the lock that makes a driver the only one of its node.

Kubelet connects to a registration socket as soon as it sees the file, and tries again only when that is made anew. So a
socket is bound and listens under a name with a dot, which kubelet passes over, and is renamed then.

A driver that was killed leaves its sockets. They are taken away when the next starts: kubelet, too, may have been
restarted, and would register what nobody serves. Who holds the lock knows that they are dead.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mtlshm.listener import who_listens


@contextmanager
def only_driver(directory: Path, endpoint: Path) -> Iterator[None]:
    """Be the only driver that uses this directory. OSError if another does; the lock dies with its process."""
    directory.mkdir(mode=0o750, parents=True, exist_ok=True)
    lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            other = who_listens(endpoint)
            name = other.name if other else "another driver"
            if other:
                other.close()
            raise OSError(errno.EADDRINUSE, f"{directory}: {name} serves this node; end it first") from None
        yield
    finally:
        os.close(lock)


@contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    """A socket that is complete when its file appears. Only under the lock; the file goes at the end."""
    path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
    early = path.with_name(f".{path.name}")
    for each in (path, early):
        each.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        try:
            listener.bind(os.fspath(early))
        except OSError as error:  # it has no file name of its own
            raise OSError(error.errno, f"{path}: {error.strerror or error}") from None
        early.chmod(0o600)
        listener.listen(16)
        early.rename(path)
        yield listener
    finally:
        listener.close()
        for each in (path, early):
            with suppress(OSError):
                each.unlink(missing_ok=True)
