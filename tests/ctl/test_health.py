# SPDX-License-Identifier: BSD-3-Clause
"""health says in one line, and by its exit status, whether clients are served; and it never waits for long."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pyroute2 import IPRoute

from lab.damages import poke
from lab.networks import Veth
from lab.processes import BIN, DEADLINE, UNPRIVILEGED, Daemon, Puppet, as_user, eventually, namespaces, needs_root
from mtlshm import Host, wire
from mtlshm.manager_client import Manager

Ctl = Callable[..., "subprocess.CompletedProcess[str]"]
StartDaemon = Callable[..., Daemon]


@pytest.fixture
def environment(environment: dict[str, str], manager_socket: Path) -> dict[str, str]:
    return environment | {"MTL_MANAGER_SOCK_PATH": str(manager_socket)}


Health = Callable[..., dict[str, tuple[str, str]]]


def judged(done: subprocess.CompletedProcess[str]) -> dict[str, tuple[str, str]]:
    assert done.stderr == ""
    said = json.loads(done.stdout)
    assert done.returncode == (0 if said["healthy"] else 1)
    assert said["healthy"] == all(check["state"] != "failure" for check in said["checks"])
    return {check["check"]: (check["state"], check["text"]) for check in said["checks"]}


@pytest.fixture
def health(ctl: Ctl) -> Health:
    return lambda *options: judged(ctl("health", "--json", *options))


def states(found: dict[str, tuple[str, str]]) -> dict[str, str]:
    return {check: state for check, (state, _) in found.items()}


WELL = {"segment": "ok", "daemon": "ok", "socket": "ok", "interfaces": "ok"}


def test_a_daemon_that_serves_is_healthy(ctl: Ctl, health: Health, daemon: StartDaemon, segment: str) -> None:
    running = daemon()
    done = ctl("health")
    assert (done.returncode, done.stderr, done.stdout.count("\n")) == (0, "", 1)
    assert done.stdout.startswith(f"healthy: {segment} is sound; mtlshmd (pid {running.pid}) lives; ")
    assert states(health()) == WELL


def test_neither_segment_nor_daemon(ctl: Ctl, health: Health, segment: str) -> None:
    done = ctl("health")
    assert (done.returncode, done.stderr, done.stdout.count("\n")) == (1, "", 1)
    assert done.stdout.startswith(f"unhealthy: segment {segment}: ")
    assert states(health()) == {"segment": "failure", "socket": "failure", "interfaces": "ok"}
    assert not os.path.exists(segment)


def test_a_segment_without_a_daemon(ctl: Ctl, health: Health, segment: str) -> None:
    Host(segment).close()
    assert states(health()) == WELL | {"daemon": "failure", "socket": "failure"}
    assert "systemctl start mtlshmd" in ctl("health").stdout


def test_a_killed_daemon(health: Health, daemon: StartDaemon) -> None:
    daemon().kill()
    assert states(health()) == WELL | {"daemon": "failure", "socket": "failure"}


def test_a_stopped_daemon_is_not_waited_for(health: Health, daemon: StartDaemon) -> None:
    running = daemon()
    running.send(signal.SIGSTOP)
    eventually(lambda: states(health())["daemon"] == "failure")
    found = health()
    assert states(found) == WELL | {"daemon": "failure", "socket": "failure"}
    assert f"pid {running.pid}" in found["daemon"][1]
    running.resume()
    assert states(health()) == WELL


def test_daemon_with_a_full_backlog_is_not_waited_for(
    health: Health, daemon: StartDaemon, manager_socket: Path
) -> None:
    running = daemon()
    running.send(signal.SIGSTOP)
    waiting = []
    try:
        while True:
            waiting.append(new := socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK))
            new.connect(str(manager_socket))
    except BlockingIOError:
        pass
    found = health()
    assert "full" in found["socket"][1]
    for each in waiting:
        each.close()
    running.resume()
    eventually(lambda: states(health()) == WELL)


TRICKLE = """
import os, socket, sys, time
if os.path.exists(sys.argv[1]):
    os.unlink(sys.argv[1])
door = socket.socket(socket.AF_UNIX)
door.bind(sys.argv[1])
door.listen(5)
print("up", flush=True)
answer = bytes.fromhex(sys.argv[2])
while True:
    visitor = door.accept()[0]
    try:
        visitor.recv(4096)
        if len(sys.argv) == 3:
            visitor.sendall(answer)
        for byte in answer * (len(sys.argv) > 3):
            visitor.sendall(bytes([byte]))
            time.sleep(1)
    except OSError:
        pass
"""


@contextmanager
def manager(path: Path, *words: str) -> Iterator[int]:
    """Somebody who answers heartbeats, as upstream's MtlManager does; slowly, if told so."""
    answer = wire.encode(wire.Type.HEARTBEAT_ACK, wire.Response(1)).hex()
    command = [sys.executable, "-c", TRICKLE, str(path), answer, *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline()
        yield process.pid
        process.kill()


def test_another_manager_that_answers_is_no_daemon(health: Health, segment: str, manager_socket: Path) -> None:
    Host(segment).close()
    with manager(manager_socket) as pid:
        found = health()
    assert states(found) == WELL | {"daemon": "failure", "socket": "failure"}
    assert f"(pid {pid})" in found["socket"][1]


def test_other_manager_does_not_answer_for_a_living_daemon(
    health: Health, daemon: StartDaemon, manager_socket: Path
) -> None:
    running = daemon()
    running.send(signal.SIGSTOP)
    with manager(manager_socket) as pid:
        found = health()
        assert states(found) == WELL | {"daemon": "failure", "socket": "failure"}
        assert f"(pid {pid})" in found["socket"][1]
    running.resume()


def test_an_answer_that_trickles_in_is_not_waited_for(manager_socket: Path) -> None:
    """Each byte comes in time, and all of them take two minutes."""
    with manager(manager_socket, "slowly"), Manager(manager_socket, timeout=3) as client:
        with pytest.raises(TimeoutError):
            client.heartbeat(1)
        assert client.socket.gettimeout() == 3


def test_a_daemon_that_serves_no_socket_by_its_settings(
    health: Health, daemon: StartDaemon, environment: dict[str, str], tmp_path: Path
) -> None:
    settings = tmp_path / "mtlshmd.toml"
    settings.write_text('socket = ""\n')
    daemon("--config", settings, environment={"MTL_MANAGER_SOCK_PATH": ""})
    environment |= {"MTLSHMD_CONFIG": str(settings), "MTL_MANAGER_SOCK_PATH": ""}
    environment["MTL_MANAGER_SOCK_PATH"] = ""
    done = subprocess.run([BIN / "mtlshm-ctl", "health", "--json"], env=environment, capture_output=True, text=True)
    found = judged(done)
    assert states(found) == WELL
    assert str(settings) in found["socket"][1]


@pytest.mark.parametrize("what", ["a directory", "a pipe", "text", "damage"])
def test_damaged_segment_is_unhealthy(health: Health, daemon: StartDaemon, segment: str, what: str) -> None:
    match what:
        case "a directory":
            os.mkdir(segment)
        case "a pipe":
            os.mkfifo(segment)
        case "text":
            Path(segment).write_text("text")
        case "damage":
            Host(segment).close()
            poke(segment, "header", "magic", value=b"X")
    assert states(health())["segment"] == "failure"
    if what == "a directory":
        os.rmdir(segment)


def test_dead_instances_are_healthy(health: Health, daemon: StartDaemon, puppet: Callable[..., Puppet]) -> None:
    running = daemon()
    client = puppet()
    client.claim(1)
    client.lock(1000)
    running.send(signal.SIGSTOP)
    client.kill()
    assert states(health())["segment"] == "ok"
    running.resume()
    eventually(lambda: states(health()) == WELL)


def by_another(environment: dict[str, str], gid: int) -> dict[str, tuple[str, str]]:
    """What a user finds who is no more than in this group."""
    modules = "sqlite3, pyroute2, pyroute2.netlink, mtlshm.net.ledger, mtlshm.net.xdp, mtlshm.ctl.app"
    code = f"import {modules}\nmtlshm.ctl.app.load()\n{as_user(UNPRIVILEGED, gid, [])}mtlshm.ctl.app.main()"
    command = [sys.executable, "-c", code, "health", "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=DEADLINE)
    return judged(done)


@needs_root("members of a group, and others")
def test_members_of_the_group_see_the_same(
    environment: dict[str, str], daemon: StartDaemon, segment: str, manager_socket: Path
) -> None:
    environment |= {"MTLSHMD_STATE": str(manager_socket.parent / "state")}  # tmp_path is not for others
    daemon(environment={"MTLSHMD_SOCKET_GROUP": "nogroup"})
    os.chown(segment, 0, UNPRIVILEGED)
    assert states(by_another(environment, UNPRIVILEGED)) == WELL
    outsider = {"segment": "failure", "socket": "failure", "interfaces": "ok"}
    assert states(by_another(environment, UNPRIVILEGED - 1)) == outsider


@needs_root("interfaces, and members of a group")
def test_facts_only_root_sees_are_no_failure(
    environment: dict[str, str],
    daemon: StartDaemon,
    segment: str,
    manager_socket: Path,
    connect: Callable[[], Manager],
) -> None:
    settings = {"MTLSHMD_STATE": str(manager_socket.parent / "state")}
    environment |= settings
    daemon(environment=settings | {"MTLSHMD_SOCKET_GROUP": "nogroup", "MTLSHMD_XDP": "auto"})
    os.chown(segment, 0, UNPRIVILEGED)
    connect()
    assert states(by_another(environment, UNPRIVILEGED)) == WELL | {"interfaces": "not known"}


def test_a_container_that_has_the_segment_and_the_socket_sees_the_same(
    environment: dict[str, str], daemon: StartDaemon
) -> None:
    """In a PID namespace of its own the daemon's pid means nothing."""
    running = daemon()
    command = [*namespaces("pid", "ipc", "net"), str(BIN / "mtlshm-ctl"), "health", "--json"]
    if os.geteuid() == 0:
        command = [*command[:1], *[word for word in command[1:] if word not in ("--user", "--map-root-user")]]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=DEADLINE)
    assert states(judged(done)) == WELL
    running.send(signal.SIGSTOP)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=DEADLINE)
    assert states(judged(done)) == WELL | {"socket": "failure"}
    running.resume()


@needs_root("interfaces")
def test_an_interface_without_its_programs_is_not_served(
    health: Health, server: StartDaemon, connect: Callable[[], Manager], link: Veth
) -> None:
    running = server()
    connect()
    found = health()
    assert states(found) == WELL
    assert found["interfaces"][1] == "1 interface served"
    running.send(signal.SIGSTOP)  # or it would put them back
    with IPRoute() as route:
        route.link("set", index=link.index, xdp_fd=-1)
    found = health()
    assert found["interfaces"][0] == "failure"
    assert link.name in found["interfaces"][1]
    running.resume()
    eventually(lambda: states(health()) == WELL)
