# SPDX-License-Identifier: BSD-3-Clause
"""The log: written to standard error without waiting for its reader.

A reader that stops (a log driver that hangs, a terminal on which somebody pressed Ctrl-S) would stop us in write(2),
and with us all clients. So lines that cannot be written now wait in memory, up to a limit. Further lines are dropped
and counted. The count is written once there is room again.

O_NONBLOCK BELONGS TO THE OPEN FILE DESCRIPTION, which we share: with the shell that started us, or with others that log
to the same pipe. Setting it there would make their writes fail. So we open a pipe or terminal anew by way of /proc, and
get a description of our own. A socket, such as journald's, does not need this: send() takes a flag. Files and disks
never block like this. A pipe or terminal of another user cannot be opened again. There we call poll() first, and write
no more than a pipe takes at once. Two cases remain that can stop us: somebody else fills the same pipe between the two
calls, or a terminal has room for less than a line.
"""

from __future__ import annotations

import asyncio
import logging
import os
import select
import socket
import stat
import time
from collections.abc import Callable

_MOST = 65536  # bytes that wait
_LAST_WORDS = 1.0  # seconds in which a slow reader can read what waits when we end


class LogHandler(logging.Handler):
    """Writes to a descriptor, which stays open."""

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._fd, self._write = _writer(fd)
        self._waiting = bytearray()
        self._dropped = 0
        self._loop: asyncio.AbstractEventLoop | None = None  # that tells us when there is room

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record, or keep it until there is room; beyond 64 KiB it is dropped and counted."""
        try:
            line = f"{self.format(record)}\n".encode(errors="backslashreplace")
        except Exception:
            self.handleError(record)
            return
        if self._dropped or (self._waiting and len(self._waiting) + len(line) > _MOST):
            self._dropped += 1
        else:
            self._waiting += line
        self.flush()

    def flush(self) -> None:
        """Write what can be written now."""
        with self.lock:  # type: ignore[union-attr] # it has one
            try:
                self._drain()
                if self._dropped:
                    text = f"(nobody read the log: {self._dropped} lines were dropped here)"
                    self._dropped = 0
                    record = logging.LogRecord("mtlshmd", logging.WARNING, __file__, 0, text, None, None)
                    self._waiting += f"{self.format(record)}\n".encode()
                    self._drain()
            except BlockingIOError:
                self._watch()
                return
            except OSError:  # no reader is left, or no room on the disk; there is nobody to tell
                self._waiting.clear()
            self._unwatch()

    def close(self) -> None:
        """Write what waits, if its reader is only slow."""
        end = time.monotonic() + _LAST_WORDS
        self.flush()
        while self._waiting and (left := end - time.monotonic()) > 0:
            if _writable(self._fd, left):
                self.flush()
        super().close()

    def _drain(self) -> None:
        while self._waiting:
            del self._waiting[: self._write(self._waiting)]

    def _watch(self) -> None:
        if self._loop is None:
            try:
                loop = asyncio.get_running_loop()
            except RuntimeError:  # not in the event loop: the next line tries again
                return
            loop.add_writer(self._fd, self.flush)
            self._loop = loop

    def _unwatch(self) -> None:
        if self._loop and not self._loop.is_closed():
            self._loop.remove_writer(self._fd)
        self._loop = None


def _writer(fd: int) -> tuple[int, Callable[[bytes | bytearray], int]]:
    """The descriptor to poll, and a function that writes or raises BlockingIOError, and never waits."""
    mode = os.fstat(fd).st_mode
    if stat.S_ISSOCK(mode):
        connection = socket.socket(fileno=os.dup(fd))
        return fd, lambda data: connection.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
    if not (stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)):
        return fd, lambda data: os.write(fd, data)
    try:
        own = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        return own, lambda data: os.write(own, data)
    except OSError:
        return fd, lambda data: _write_if_writable(fd, data)


def _write_if_writable(fd: int, data: bytes | bytearray) -> int:
    if not _writable(fd, 0):
        raise BlockingIOError
    return os.write(fd, data[: select.PIPE_BUF])


def _writable(fd: int, seconds: float) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return bool(poll.poll(seconds * 1000))
