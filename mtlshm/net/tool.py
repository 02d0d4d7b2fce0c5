# SPDX-License-Identifier: BSD-3-Clause
"""Runs xdp-loader, ethtool and ip. No other external program is run.

Commands that only read may run at any time. Commands that change something run one at a time on the whole host, because
each change depends on what was read just before. A lock is held from the first look to the last. It is a flock(2) on a
file, and each command that changes something inherits the descriptor. If we are killed while a command runs, the lock
lasts until that command ends. So the next process finds the command's work done, not half done.

    tools = Tools(Path("/run/mtlshm"))
    rules = await tools.read("ethtool", "-n", "eth0")
    async with tools.changing() as change:
        result = await change("ethtool", "-N", "eth0", "delete", "15")

Each program gives its exit status another meaning, so no status raises here. asyncio's own subprocesses are not used,
because up to Python 3.11 they wait in a thread.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import logging
import os
import shlex
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from mtlshm.net.trusted import open_directory

log = logging.getLogger("mtlshmd")

Program = Literal["xdp-loader", "ethtool", "ip"]

_PACKAGES: dict[Program, str] = {"xdp-loader": "xdp-tools", "ethtool": "ethtool", "ip": "iproute2"}
FAILURES = ("missing", "timeout", "status")  # of commands; which of them counts depends on the program
_SBIN = ("/usr/local/sbin", "/usr/sbin", "/sbin")  # where they are; often not on the PATH of a user
_KILLED_WITHIN = 1.0  # seconds; a program that sleeps in the kernel may take longer


@dataclass(frozen=True)
class Result:
    """The result of a program: its exit status and output."""

    status: int  # negative: the signal that ended it
    output: str
    complaint: str  # what it said on standard error


class Change(Protocol):
    """Runs a command that changes something. What it prints goes to the descriptor `output`, if there is one."""

    def __call__(self, program: Program, *arguments: str, output: int | None = None) -> Awaitable[Result]:
        """Waits for the command and returns its result."""


class Tools:
    """The programs, with the lock in the directory `state`, which is made if need be.

    With `show`, a dry run: commands that change something are given to it as text, and not run.
    """

    def __init__(self, state: Path, *, show: Callable[[str], object] | None = None, timeout: float = 10.0) -> None:
        self._lock = state / "change.lock"
        self._show = show
        self._timeout = timeout
        self.failures: Counter[tuple[str, str]] = Counter(
            {(program, why): 0 for program in _PACKAGES for why in FAILURES}
        )

    async def read(self, program: Program, *arguments: str) -> Result:
        """Run a command that changes nothing, in a dry run too."""
        return await self._run([program, *arguments], logging.DEBUG)

    @asynccontextmanager
    async def changing(self) -> AsyncIterator[Change]:
        """Keep everyone else from changing anything, and change it. Not to be nested: one would wait for the other."""
        if self._show:
            yield self._pretend
            return
        lock = await self._take_lock()
        try:

            async def change(program: Program, *arguments: str, output: int | None = None) -> Result:
                return await self._run([program, *arguments], logging.INFO, lock, output=output)

            yield change
        finally:
            # Closed, never unlocked: that would unlock it under a command that is still running.
            os.close(lock)

    async def _pretend(self, program: Program, *arguments: str, output: int | None = None) -> Result:
        assert self._show
        self._show(shlex.join([program, *arguments]))
        return Result(0, "", "")

    async def _take_lock(self) -> int:
        self._lock.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        directory = open_directory(self._lock.parent)
        try:
            # Not to be opened by others: whoever can open it, if only for reading, can lock it for ever.
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            lock = os.open(self._lock.name, flags, 0o600, dir_fd=directory)
        finally:
            os.close(directory)
        try:
            # Tried again and again, as waiting in flock() would stop everything else that we do. Only until whoever
            # changes something now is done, which is seldom and short.
            deadline = time.monotonic() + 2 * self._timeout
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return lock
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        text = "another mtlshmd or mtlshm-ctl, or a command that one left, keeps changing interfaces"
                        raise TimeoutError(errno.ETIMEDOUT, f"{text}; see who with: fuser -v {self._lock}") from None
                await asyncio.sleep(0.02)
        except BaseException:
            os.close(lock)
            raise

    async def _run(self, command: list[str], level: int, *descriptors: int, output: int | None = None) -> Result:
        """Run it to its end, or kill it and all its children when it takes too long or we are cancelled."""
        try:
            path = _find(command[0])
        except FileNotFoundError:
            self.failures[command[0], "missing"] += 1
            raise
        text = shlex.join(command)
        start = time.monotonic()
        # Files rather than pipes: nothing fills up, and a child that it left behind keeps nobody waiting.
        with _memory() as memory, _memory() as complaint:
            printed = memory if output is None else output
            process = subprocess.Popen(
                command,
                executable=path,
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=complaint,
                env=os.environ | {"LC_ALL": "C"},
                start_new_session=True,
                pass_fds=descriptors,
            )
            try:
                async with asyncio.timeout(self._timeout):
                    await _end_of(process.pid)
            except TimeoutError:
                self.failures[command[0], "timeout"] += 1
                log.error("%s: killed, not done after %g s", text, self._timeout)
                reason = f"{text}: not done within {self._timeout:g} s, and killed; the kernel or the driver may hang"
                raise TimeoutError(errno.ETIMEDOUT, reason) from None
            finally:
                if process.poll() is None:
                    await _kill(process)
            result = Result(process.returncode, _content(printed), _content(complaint))
        if result.status:
            self.failures[command[0], "status"] += 1
        said = f": {result.complaint.strip()!r}" if result.complaint.strip() else ""
        log.log(level, "%s: status %d, %.0f ms%s", text, result.status, (time.monotonic() - start) * 1000, said)
        return result


def _find(program: str) -> str:
    path = shutil.which(program, path=os.pathsep.join([os.environ.get("PATH", os.defpath), *_SBIN]))
    if path is None:
        package = next(package for name, package in _PACKAGES.items() if name == program)
        raise FileNotFoundError(errno.ENOENT, f"there is no {program} on PATH; on Debian: apt-get install {package}")
    return path


@contextmanager
def _memory() -> Iterator[int]:
    fd = os.memfd_create("output")
    try:
        yield fd
    finally:
        os.close(fd)


def _content(fd: int) -> str:
    return os.pread(fd, os.fstat(fd).st_size, 0).decode(errors="replace")


async def _end_of(pid: int) -> None:
    """Wait until our child is dead; it is not reaped."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    pidfd = os.pidfd_open(pid)
    loop.add_reader(pidfd, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(pidfd)
        os.close(pidfd)


async def _kill(process: subprocess.Popen[bytes]) -> None:
    """End its process group. What hangs in the kernel is left to die in its own time: it still holds the lock."""
    os.killpg(process.pid, signal.SIGKILL)
    try:
        async with asyncio.timeout(_KILLED_WITHIN):
            await _end_of(process.pid)
        process.wait()
    except TimeoutError:
        log.error("pid %d does not die; nobody can change interfaces until it does", process.pid)
