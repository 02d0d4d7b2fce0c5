# SPDX-License-Identifier: BSD-3-Clause
"""Clients find the daemon at its path, whatever others do to the socket there."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lab.processes import BIN, DEADLINE, Daemon, eventually, held
from mtlshm.manager_client import Manager

StartDaemon = Callable[..., Daemon]
Steal = Callable[[Daemon], "subprocess.Popen[str]"]

# What upstream's MtlManager does when it starts; it keeps connections, and removes nothing when it is killed.
THIEF = """
import os, socket, sys
os.unlink(sys.argv[1])
door = socket.socket(socket.AF_UNIX)
door.bind(sys.argv[1])
door.listen(5)
print("up", flush=True)
visitors = []
while True:
    visitors.append(door.accept())
"""


def serves(path: Path) -> bool:
    try:
        with Manager(path, timeout=0.5) as manager:
            return manager.heartbeat(7) == 7
    except OSError:
        return False


@pytest.fixture
def place(manager_socket: Path) -> Path:
    """A socket in a directory that may be removed."""
    return manager_socket.parent / "imtl/manager.sock"


@pytest.fixture
def steal(place: Path) -> Iterator[Steal]:
    """Starts somebody who takes the path, before the daemon has a chance to be there first."""
    started: list[subprocess.Popen[str]] = []

    def start(running: Daemon) -> subprocess.Popen[str]:
        running.send(signal.SIGSTOP)
        started.append(new := subprocess.Popen([sys.executable, "-c", THIEF, place], stdout=subprocess.PIPE, text=True))
        assert new.stdout
        assert new.stdout.readline() == "up\n"
        running.send(signal.SIGCONT)
        return new

    yield start
    for process in started:
        with process:
            process.kill()


@pytest.mark.parametrize("remove", [os.unlink, lambda path: shutil.rmtree(path.parent)], ids=["file", "directory"])
def test_a_socket_that_was_removed_is_made_again(
    daemon: StartDaemon, segment: str, place: Path, remove: Callable[[Path], None]
) -> None:
    running = daemon("--socket", place, "--socket-mode", "0606")
    with Manager(place, timeout=DEADLINE) as early:
        early.register()
        early.get_lcore(1)
        for _ in range(2):
            remove(place)
            eventually(lambda: serves(place))
            assert place.stat().st_mode & 0o777 == 0o606
        early.put_lcore(1)
        assert held(segment) == set()
    assert str(place) in running.log()
    assert running.end(signal.SIGTERM) == 0
    assert not place.exists()


def test_socket_replaced_by_an_unserved_one_is_made_again(daemon: StartDaemon, place: Path) -> None:
    daemon("--socket", place)
    with socket.socket(socket.AF_UNIX) as dead:
        place.unlink()
        dead.bind(str(place.with_name("dead")))
    place.with_name("dead").rename(place)
    eventually(lambda: serves(place))


def test_foreign_file_at_the_path_is_left_and_logged(daemon: StartDaemon, place: Path) -> None:
    running = daemon("--socket", place)
    file = place.with_name("file")
    file.write_text("somebody's")
    file.replace(place)
    running.await_log("put something else there")
    assert str(place) in running.log()
    assert place.read_text() == "somebody's"
    place.unlink()
    eventually(lambda: serves(place))


def test_log_names_the_server_that_took_the_path_and_it_is_taken_back(
    daemon: StartDaemon, steal: Steal, place: Path, segment: str
) -> None:
    running = daemon("--socket", place)
    for n in range(1, 3):
        thief = steal(running)
        running.await_log(f"(pid {thief.pid})")
        assert running.log().count("has been taken by") == n
        environment = os.environ | {"MTLSHM_PATH": segment, "MTLSHMD_STATE": str(place.parent / "none")}
        status = subprocess.run(
            [BIN / "mtlshm-ctl", "status", "--json"], env=environment, capture_output=True, check=True
        )
        (warning,) = json.loads(status.stdout)["warnings"]
        assert f"(pid {thief.pid})" in warning
        doctor = subprocess.run([BIN / "mtlshm-ctl", "doctor"], env=environment, capture_output=True, text=True)
        assert doctor.returncode == 1
        assert f"(pid {thief.pid})" in doctor.stdout
        assert not serves(place)
        thief.kill()
        thief.wait()
        eventually(lambda: serves(place))
        status = subprocess.run(
            [BIN / "mtlshm-ctl", "status", "--json"], env=environment, capture_output=True, check=True
        )
        assert json.loads(status.stdout)["warnings"] == []


def test_path_is_taken_back_from_a_server_that_accepts_nobody(daemon: StartDaemon, steal: Steal, place: Path) -> None:
    running = daemon("--socket", place)
    thief = steal(running)
    thief.send_signal(signal.SIGSTOP)
    running.await_log("has been taken by")
    visitors = [socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) for _ in range(10)]
    for visitor in visitors:
        visitor.connect_ex(str(place))
    thief.kill()
    thief.wait()
    for visitor in visitors:
        visitor.close()
    eventually(lambda: serves(place))


def test_a_daemon_that_stops_leaves_others_sockets(daemon: StartDaemon, steal: Steal, place: Path) -> None:
    running = daemon("--socket", place)
    steal(running)
    running.await_log("has been taken by")
    assert running.end(signal.SIGTERM) == 0
    assert place.is_socket()
