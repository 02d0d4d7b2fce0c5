# SPDX-License-Identifier: BSD-3-Clause
"""Real processes for tests: puppets and daemons, namespaces to put them in, and how to wait for what they do."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import pytest

from mtlshm import Host, Snapshot

# For all that a test waits for, which an event ends. It is only so that a test that fails does not hang: what takes
# seconds may take minutes on a machine with thirty times as much to do. No test depends on how fast something is.
DEADLINE = 600.0

BIN = Path(sys.executable).parent


def eventually(condition: Callable[[], Any]) -> Any:
    """Wait until the condition holds; returns what it returned."""
    deadline = time.monotonic() + DEADLINE
    while not (result := condition()):
        assert time.monotonic() < deadline, "this never became true"
        time.sleep(0.005)
    return result


def compile_program(program: Path, *sources: Path, flags: Iterable[object] = ()) -> None:
    """Compile a program in C that tests start."""
    strict = ["-std=c11", "-D_GNU_SOURCE", "-O2", "-g", "-pthread", "-Wall", "-Wextra", "-Werror"]
    subprocess.run(["cc", *strict, *map(str, flags), "-o", program, *sources], check=True)


class Puppet:
    """A process that runs puppet/. Its commands are methods: `puppet.claim(5)` returns what mtlshm_claim() did."""

    def __init__(self, pid: int, commands: int, answers: int, process: subprocess.Popen[bytes] | None = None) -> None:
        self.pid = pid
        self._commands, self._answers, self._process = commands, answers, process
        self._pidfd = os.pidfd_open(pid)
        self._buffer = b""
        self._children: list[Puppet] = []

    def __getattr__(self, command: str) -> Callable[..., int]:
        def run(*words: object) -> int:
            self.tell(command, *words)
            return self.answer()

        return run

    def tell(self, *words: object) -> None:
        """Send a command and do not wait for its answer."""
        os.write(self._commands, " ".join(map(str, words)).encode() + b"\n")

    def answer(self) -> int:
        """The next answer."""
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([self._answers], [], [], DEADLINE)
            assert ready, f"puppet {self.pid} does not answer"
            data = os.read(self._answers, 4096)
            assert data, f"puppet {self.pid} is gone"
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return int(line)

    def fork(self, directory: Path) -> Puppet:
        """Its child, a puppet as well. `directory` is made to hold the pipes between us."""
        directory.mkdir()
        pipes = [directory / "commands", directory / "answers"]
        for pipe in pipes:
            os.mkfifo(pipe)
        # Read-write: so neither side waits for the other to open.
        commands, answers = (os.open(pipe, os.O_RDWR | os.O_CLOEXEC) for pipe in pipes)
        self.tell("fork", *pipes)
        child = Puppet(self.answer(), commands, answers)
        self._children.append(child)
        assert child.answer() == 0
        return child

    def send(self, number: int) -> None:
        signal.pidfd_send_signal(self._pidfd, number)

    def stop(self) -> None:
        """SIGSTOP, and wait until it has stopped."""
        self.send(signal.SIGSTOP)
        eventually(lambda: psutil.Process(self.pid).status() == psutil.STATUS_STOPPED)

    def running(self) -> bool:
        return not select.select([self._pidfd], [], [], 0)[0]

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Kill it, if need be, and wait until it is dead and reaped."""
        with suppress(ProcessLookupError):
            self.send(number)
        ready, _, _ = select.select([self._pidfd], [], [], DEADLINE)
        assert ready, f"puppet {self.pid} does not end"
        if self._process:
            self._process.wait(DEADLINE)

    def wait(self) -> int:
        """Wait until it has ended by itself; returns its exit status, or minus the signal."""
        assert self._process
        return self._process.wait(DEADLINE)

    def clean_up(self) -> None:
        for child in self._children:
            child.clean_up()
        self.kill()
        if self._process:
            assert self._process.stdin
            assert self._process.stdout
            self._process.stdin.close()
            self._process.stdout.close()
        else:
            os.close(self._commands)
            os.close(self._answers)
        os.close(self._pidfd)


def start_puppet(program: Path, segment: str, sysfs: Path | None = None, prefix: tuple[str, ...] = ()) -> Puppet:
    """`prefix` is a command that runs another, such as namespaces() gives."""
    command = [*prefix, str(program), segment, *([str(sysfs)] if sysfs else [])]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
    assert process.stdin
    assert process.stdout
    pid = _innermost(process, program.name) if prefix else process.pid
    return Puppet(pid, process.stdin.fileno(), process.stdout.fileno(), process)


def _innermost(process: subprocess.Popen[bytes], name: str) -> int:
    """The pid of the program that a chain of others, such as unshare, has started."""

    def find() -> int | None:
        assert process.poll() is None, f"{process.args!r} failed"
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        with suppress(psutil.NoSuchProcess):  # what the chain ran before
            return next((p.pid for p in family if p.name() == name), None)
        return None

    found: int = eventually(find)
    return found


def daemon_settings(segment: str, socket: Path, state: Path) -> dict[str, str]:
    """The environment of a daemon of the test's own, which nothing configured on this machine reaches."""
    return {
        "MTLSHM_PATH": segment,
        "MTLSHMD_CONFIG": "/dev/null",
        "MTL_MANAGER_SOCK_PATH": str(socket),
        "MTLSHMD_LEGACY": "off",
        "MTLSHMD_XDP": "off",
        "MTLSHMD_STATE": str(state),
    }


class Daemon:
    """A running mtlshmd. Its log is in a file."""

    def __init__(self, command: list[str], log: Path, settings: dict[str, str], prefix: tuple[str, ...] = ()) -> None:
        self._log = log
        with log.open("wb") as stderr:
            self._process = subprocess.Popen(
                [*prefix, *command], stdin=subprocess.DEVNULL, stderr=stderr, env=os.environ | settings
            )
        self._pid = _innermost(self._process, "mtlshmd") if prefix else self._process.pid

    @property
    def pid(self) -> int:
        return self._pid

    def running(self) -> bool:
        return self._process.poll() is None

    def log(self) -> str:
        return self._log.read_text()

    def await_log(self, text: str) -> None:
        eventually(lambda: text in self.log() or self._process.poll() is not None)
        assert text in self.log(), self.log()

    def send(self, number: int) -> None:
        os.kill(self._pid, number)

    def resume(self) -> None:
        """After SIGSTOP; nsenter stops itself when what it runs is stopped."""
        for pid in {self._process.pid, self._pid}:
            os.kill(pid, signal.SIGCONT)

    def cpu_seconds(self) -> float:
        """What it has used so far."""
        times = psutil.Process(self._pid).cpu_times()
        return float(times.user + times.system)

    def end(self, number: int) -> int:
        """Send it the signal and return its exit status."""
        self.send(number)
        return self.wait()

    def wait(self) -> int:
        return self._process.wait(DEADLINE)

    def kill(self) -> None:
        if self._process.poll() is None:
            with suppress(ProcessLookupError):  # it died with its PID namespace, and nsenter has not heard of it yet
                self.send(signal.SIGKILL)
            self.wait()


@contextmanager
def ended() -> Iterator[list[Daemon]]:
    """Kills the daemons that are put into the list, and fails if one of them has logged a traceback."""
    started: list[Daemon] = []
    yield started
    for each in started:
        each.kill()
    for each in started:
        assert "Traceback" not in each.log(), each.log()


# --- what the table says ----------------------------------------------------------------------------


def look(segment: str) -> Snapshot:
    """What somebody sees who has no part in it."""
    with Host(segment, read_only=True) as host:
        return host.snapshot()


def held(segment: str) -> set[int]:
    """The lcores that somebody holds, dead or alive."""
    return {lcore.number for lcore in look(segment).lcores}


def attached_inodes(pid: int, path: str) -> set[int]:
    """The inodes of that name, removed ones too, which the process has mapped."""
    maps = Path(f"/proc/{pid}/maps").read_text()
    return {int(inode) for inode in re.findall(rf" (\d+) +{re.escape(path)}(?: \(deleted\))?$", maps, re.MULTILINE)}


# --- surroundings -----------------------------------------------------------------------------------

UNPRIVILEGED = 65534  # a user and group that owns nothing


def needs_root(untested: str) -> pytest.MarkDecorator:
    """Skip unless run by root, saying what is not tested then."""
    return pytest.mark.skipif(os.geteuid() != 0, reason=f"needs root; not tested otherwise: {untested}")


@cache
def namespaces_work() -> bool:
    command = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--ipc", "--mount-proc", "true"]
    try:
        return subprocess.run(command, stderr=subprocess.DEVNULL).returncode == 0
    except FileNotFoundError:
        return False


def namespaces(*names: str) -> tuple[str, ...]:
    """The prefix of a command that runs in namespaces of its own: a user namespace and those named, as "pid"."""
    if not namespaces_work():
        pytest.skip("unshare(1) makes no namespaces here; not tested: anything across namespaces")
    options = [f"--{name}" for name in names]
    if "pid" in names:
        options += ["--fork", "--kill-child", "--mount-proc"]
    return ("unshare", "--user", "--map-root-user", *options)


def same_namespaces(pid: int) -> tuple[str, ...]:
    """The prefix of a command that runs in the user and PID namespaces of a process that namespaces() started."""
    return ("nsenter", f"--target={pid}", "--user", "--pid", "--mount", "--preserve-credentials")


def pid_inside(puppet: Puppet) -> int:
    """As the process itself sees it."""
    status = Path(f"/proc/{puppet.pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("NSpid:")).split()[-1])


def run_python(code: str, *arguments: object, user: tuple[int, int, list[int]] | None = None) -> str:
    """Run Python code in a process of its own, as another user (uid, gid, groups) if asked; returns what it printed."""
    if user:
        code = as_user(*user) + code
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=DEADLINE).stdout


def as_user(uid: int, gid: int, groups: list[int]) -> str:
    """Python code that becomes another user, who need not be able to read the interpreter's files."""
    imports = "import asyncio, grp, logging, pwd, os, posix_ipc, tomllib, mtlshm, mtlshm.daemon.app\n"
    return f"{imports}os.setgroups({groups}); os.setgid({gid}); os.setuid({uid})\n"


@contextmanager
def waiting_room(fifo: Path) -> Iterator[Callable[[], None]]:
    """A FIFO where processes wait: until it is opened, which the function does, or until it is closed, at the end."""
    os.mkfifo(fifo)
    fds: list[int] = []
    try:
        # Blocks until somebody is there to read.
        yield lambda: fds.append(os.open(fifo, os.O_WRONLY | os.O_CLOEXEC))
    finally:
        # Nobody shall wait for ever: who is there is let in, who comes later finds nothing.
        fds.append(os.open(fifo, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC))
        fifo.unlink()
        for fd in fds:
            os.close(fd)
