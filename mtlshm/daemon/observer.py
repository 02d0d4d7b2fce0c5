# SPDX-License-Identifier: BSD-3-Clause
"""The observer: a process that reads other processes' files in /proc, so that no stranger can stretch our event loop.

It runs strangers.py, which says what can be asked and has its own limits. Only one thing escapes those limits: a read()
that does not return. Then we kill the observer, and the next question starts another. The observer starts with the
first question, and ends when it has been idle for a while.

A SLOW PROCESS is not looked at again for one second, then two, four and so on. So it never delays us twice in a row.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

_PROGRAM = str(Path(__file__).parent.with_name("strangers.py"))
_START_WITHIN = 60.0  # seconds; nobody else decides about that
_LONGEST = 1 << 20  # bytes of an answer
_AVOID, _AVOID_AT_MOST = 1.0, 60.0  # seconds
_AVOIDED = 4096  # processes


class Observer:
    """Answers questions, one at a time, until close(). It is killed if it takes longer than `within` seconds, and ended
    after `idle` seconds without a question."""

    def __init__(self, within: float = 10.0, idle: float = 30.0) -> None:
        self.within = within
        self._idle_for = idle
        self._loop = asyncio.get_running_loop()
        self._turn = asyncio.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._dying: list[subprocess.Popen[bytes]] = []
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._place = os.memfd_create("observer", os.MFD_CLOEXEC)  # the PID that is being looked at
        self._idle: asyncio.TimerHandle | None = None
        self._avoided: dict[int, tuple[float, float]] = {}  # PIDs: until when, and for how long

    async def ask(self, what: str, **arguments: Any) -> dict[str, Any] | None:
        """None: there was no answer in time. OSError if there can be no observer."""
        async with self._turn:
            if self._idle:
                self._idle.cancel()
            now = self._loop.time()
            without = [pid for pid, (until, _) in self._avoided.items() if until > now]
            question = json.dumps({"what": what, "without": without, **arguments}).encode() + b"\n"
            try:
                if self._process is None:
                    await self._start()
                assert self._writer
                assert self._reader
                async with asyncio.timeout(self.within):
                    self._writer.write(question)
                    answer: dict[str, Any] = json.loads(await self._reader.readuntil(b"\n"))
            except (TimeoutError, ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
                pid = int.from_bytes(os.pread(self._place, 4, 0), "little")
                log.warning("pid %d: looking at it took too long (%s); it is not seen", pid, type(error).__name__)
                self._avoid([pid])
                self._stop()
                return None
            except BaseException:  # we are stopping, or it could not be started
                self._stop()
                raise
            self._avoid(answer.get("unfinished", ()))
            self._idle = self._loop.call_later(self._idle_for, self._stop)
            return answer

    def close(self) -> None:
        """Kill it, if one runs. It answers nothing any more."""
        if self._idle:
            self._idle.cancel()
        self._stop()
        if self._place >= 0:
            os.close(self._place)
            self._place = -1

    async def _start(self) -> None:
        self._dying = [process for process in self._dying if process.poll() is None]
        ours, theirs = socket.socketpair()
        with theirs:
            os.pwrite(self._place, bytes(4), 0)
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-S", _PROGRAM, str(self._place)],
                    stdin=theirs.fileno(),
                    stdout=theirs.fileno(),
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,
                    pass_fds=(self._place,),
                )
            except BaseException:
                ours.close()
                raise
        ours.setblocking(False)
        self._reader, self._writer = await asyncio.open_connection(sock=ours, limit=_LONGEST)
        async with asyncio.timeout(_START_WITHIN):
            await self._reader.readuntil(b"\n")

    def _stop(self) -> None:
        if self._writer:
            self._writer.transport.abort()
        self._reader = self._writer = None
        if self._process:
            with suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGKILL)
            if self._process.poll() is None:  # what hangs in the kernel dies in its own time
                self._dying.append(self._process)
            self._process = None

    def _avoid(self, pids: Any) -> None:
        now = self._loop.time()
        if len(self._avoided) > _AVOIDED:
            self._avoided.clear()
        for pid, (until, last) in list(self._avoided.items()):
            if until + last < now:
                del self._avoided[pid]
        for pid in pids:
            if pid:
                last = min(2 * self._avoided.get(pid, (0.0, _AVOID / 2))[1], _AVOID_AT_MOST)
                self._avoided[pid] = now + last, last
