# SPDX-License-Identifier: BSD-3-Clause
"""Killed at any system call that serves a client, the daemon leaves only what the next one ends with that client."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lab.processes import Daemon, eventually, look, needs_root
from mtlshm import Kind
from mtlshm.damage import glance

# The C half of the daemon makes these. Python makes some of them as well, and so is killed in the middle of its own.
CALLS = (
    *("accept4", "getsockopt", "setsockopt", "fcntl", "fstat,newfstatat", "epoll_ctl", "epoll_wait", "recvfrom"),
    *("sendto", "openat", "read", "close"),
)
MOST = 6  # times of each

CLIENT = """
import sys
from contextlib import suppress
from mtlshm.manager_client import Manager
sys.stdin.readline()
with suppress(Exception):
    manager = Manager(sys.argv[1])
    manager.register()
    for _ in range(2):
        manager.get_lcore(0)
        manager.put_lcore(0)
    manager.get_lcore(0)
print(flush=True)
sys.stdin.read()
"""


class Client:
    """Does all that C answers, once told to, and lives until it is killed."""

    def __init__(self, path: Path) -> None:
        command = [sys.executable, "-c", CLIENT, str(path)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def ask(self) -> None:
        """Returns when all is answered, or nobody answers."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(b"\n")
        self._process.stdin.flush()
        self._process.stdout.readline()

    def kill(self) -> None:
        with self._process:
            self._process.kill()


class Trace:
    """strace of a process, from when it is attached."""

    def __init__(self, pid: int, *options: str) -> None:
        command = ["strace", "-f", "-p", str(pid), "-e", f"trace={','.join(CALLS)}", *options]
        self._process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self._process.stderr
        assert "attached" in self._process.stderr.readline()

    def end(self) -> None:
        """It ends by itself if it has killed what it traces."""
        with self._process:
            self._process.send_signal(signal.SIGINT)
            assert self._process.stderr
            self._process.stderr.read()


@pytest.mark.slow
@needs_root("the daemon killed at a system call")
@pytest.mark.skipif(not shutil.which("strace"), reason="no strace; not tested: the daemon killed at a system call")
@pytest.mark.parametrize("call", CALLS)
def test_killed_at_any_system_call_nothing_is_left(
    daemon: Callable[..., Daemon], manager_socket: Path, segment: str, call: str
) -> None:
    def is_clean() -> bool:
        table = look(segment)
        return not table.lcores and all(info.kind != Kind.SOCKET for info in table.instances)

    server = daemon()
    killed = 0
    for nth in range(1, MOST + 1):
        client = Client(manager_socket)
        trace = Trace(server.pid, "-o", "/dev/null", "-e", f"inject={call}:signal=SIGKILL:when={nth}")
        client.ask()
        trace.end()
        killed += not server.running()
        server.kill()  # it makes fewer of these calls for a client
        server = daemon()
        client.kill()
        eventually(is_clean)
        assert glance(segment) == []
    assert killed
