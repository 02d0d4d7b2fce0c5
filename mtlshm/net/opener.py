# SPDX-License-Identifier: BSD-3-Clause
"""The opener: a process that makes AF_XDP sockets for us, so that nobody here waits while a UMEM is cleared and pinned.

It runs xsk.py, and has a child of its own for each socket. So a driver that hangs stops one child, and a socket costs
a fork of a small process instead of the start of an interpreter. The opener is started when there is something to open,
and ended when there has been nothing for a while. Its children do not need it: each ends with its channel.

A CHILD THAT HANGS is killed through the pidfd that it sent first. If none came, the opener itself hangs, and is killed.
"""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack, suppress
from dataclasses import astuple
from pathlib import Path

from mtlshm.net.xsk import MOST_SAID, Layout, XskSocket

_PROGRAM = str(Path(__file__).with_name("xsk.py"))


class Opener:
    """Opens sockets until close(). A socket may take `within` seconds; the process ends after `idle` seconds without
    a request."""

    def __init__(self, within: float = 30.0, idle: float = 30.0) -> None:
        self._within = within
        self._idle_for = idle
        self._loop = asyncio.get_running_loop()
        self._process: subprocess.Popen[bytes] | None = None
        self._pidfd = -1
        self._questions: socket.socket | None = None
        self._idle: asyncio.TimerHandle | None = None

    async def open(self, ifindex: int, queue: int, layout: Layout) -> XskSocket:
        """Like xsk.open_socket(). ETIMEDOUT if it takes too long; EIO if the process is killed meanwhile."""
        if self._idle:
            self._idle.cancel()
        self._idle = self._loop.call_later(max(self._idle_for, self._within), self._stop)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        with ExitStack() as undo:
            undo.callback(ours.close)
            with theirs:
                theirs.setblocking(True)
                self._ask(" ".join(map(str, (ifindex, queue, *astuple(layout)))).encode(), theirs)
            child = -1
            try:
                async with asyncio.timeout(self._within):
                    data, descriptors = await self._hear(ours)
                    if data == b"pidfd" and descriptors:
                        (child,) = descriptors
                        undo.callback(os.close, child)
                        data, descriptors = await self._hear(ours)
            except BaseException as error:
                if child < 0:
                    self._stop()
                else:
                    with suppress(ProcessLookupError):
                        signal.pidfd_send_signal(child, signal.SIGKILL)
                if isinstance(error, TimeoutError):
                    text = f"no socket on queue {queue} of interface {ifindex} within {self._within:g} s"
                    raise TimeoutError(errno.ETIMEDOUT, f"{text}; its driver may hang") from None
                raise
            if data == b"\0" and len(descriptors) == 2:
                undo.pop_all()
                os.close(child)
                return XskSocket(descriptors[0], descriptors[1], ours.detach())
            for descriptor in descriptors:
                os.close(descriptor)
            if data in (b"pidfd", b"\0"):
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            number, _, text = data.decode(errors="replace").partition(" ")
            raise OSError(int(number or errno.EIO), text or "the process that opens sockets was killed")

    def close(self) -> None:
        """End it, if it runs."""
        if self._idle:
            self._idle.cancel()
        self._stop()

    def _ask(self, question: bytes, channel: socket.socket) -> None:
        """Asks the running process, or starts one."""
        if self._questions:
            with suppress(ConnectionError):  # it has been killed, which we have not yet been told
                socket.send_fds(self._questions, [question], [channel.fileno()])
                return
            self._stop()
        with suppress(ConnectionError):  # killed at once: the end of the channel tells
            socket.send_fds(self._start(), [question], [channel.fileno()])

    def _start(self) -> socket.socket:
        with ExitStack() as undo:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            undo.callback(ours.close)
            ours.setblocking(False)
            with theirs:
                # That file alone, without site-packages: it starts in a tenth of the time.
                process = subprocess.Popen(
                    [sys.executable, "-I", "-S", "-E", _PROGRAM, str(theirs.fileno())],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,
                )
            try:
                self._pidfd = os.pidfd_open(process.pid)
            except OSError:  # no descriptor left
                process.kill()
                process.wait()
                raise
            undo.pop_all()
        self._process, self._questions = process, ours
        self._loop.add_reader(self._pidfd, self._stop)
        return ours

    def _stop(self) -> None:
        """It has ended, or shall: it does nothing that could keep it from that."""
        if not self._process or not self._questions:
            return
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._questions.close()
        self._process.kill()
        self._process.wait()
        self._process = self._questions = None

    async def _hear(self, channel: socket.socket) -> tuple[bytes, list[int]]:
        """The next message; b'' at the end."""
        said = asyncio.Event()
        self._loop.add_reader(channel, said.set)
        try:
            await said.wait()
        finally:
            self._loop.remove_reader(channel)
        with suppress(ConnectionError):
            data, descriptors, _, _ = socket.recv_fds(channel, MOST_SAID, 2, socket.MSG_CMSG_CLOEXEC)
            return data, descriptors
        return b"", []
