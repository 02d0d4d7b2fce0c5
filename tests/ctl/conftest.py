# SPDX-License-Identifier: BSD-3-Clause
from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lab.networks import Veth
from lab.processes import BIN, DEADLINE
from mtlshm.manager_client import Manager

CTL = str(BIN / "mtlshm-ctl")


@pytest.fixture
def environment(segment: str, tmp_path: Path) -> dict[str, str]:
    """What makes mtlshm-ctl use the test's segment, and look where the test's daemon has its state."""
    # A configuration of the machine's own shall not matter.
    own = {"MTLSHM_PATH": segment, "MTLSHMD_STATE": str(tmp_path / "state"), "MTLSHMD_CONFIG": "/dev/null"}
    return os.environ | own


@pytest.fixture
def ctl(environment: dict[str, str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs mtlshm-ctl to its end."""

    def run(*words: object, answer: str = "") -> subprocess.CompletedProcess[str]:
        command = [CTL, *map(str, words)]
        return subprocess.run(command, input=answer, capture_output=True, text=True, env=environment, timeout=DEADLINE)

    return run


@pytest.fixture
def start_ctl(environment: dict[str, str]) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts mtlshm-ctl in a session of its own; it and what it started are killed at the end. `within` is a command
    that runs another."""
    started: list[subprocess.Popen[str]] = []

    def start(*words: object, within: tuple[str, ...] = ()) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [*within, CTL, *map(str, words)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        with process:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture
def own_cpus() -> list[int]:
    """The CPUs that this process, and so mtlshm-ctl, may claim."""
    return sorted(os.sched_getaffinity(0))


@pytest.fixture
def connect(manager_socket: Path, link: Veth) -> Iterator[Callable[[], Manager]]:
    """Connects to a running daemon, naming the interface."""
    opened: list[Manager] = []

    def run() -> Manager:
        opened.append(new := Manager(manager_socket, timeout=DEADLINE))
        new.register((link.index,))
        return new

    yield run
    for each in opened:
        each.close()
