# SPDX-License-Identifier: BSD-3-Clause
"""The manager socket serves many clients, and few descriptors or system calls suffice for it."""

from __future__ import annotations

import errno
import os
import resource
import signal
import socket
import subprocess
import sys
import time

import pytest

from lab.processes import DEADLINE, eventually, held, look
from lab.refusals import refusal
from mtlshm import wire
from mtlshm.manager_client import Manager
from mtlshm.wire import Heartbeat, Lcore, Response, Type


def test_a_thousand_connections_are_served(daemon, manager_socket, segment):
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 4096:
        pytest.skip("needs 4,096 descriptors; not tested otherwise: 1,000 connections")
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, hard))
    managers: list[Manager] = []
    try:
        daemon()  # inherits the limit
        managers = [Manager(manager_socket, timeout=DEADLINE) for _ in range(1000)]
        for number, manager in enumerate(managers):
            assert manager.heartbeat(number) == number
    finally:
        for manager in managers:
            manager.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_at_the_descriptor_limit_clients_wait_and_the_daemon_does_not_spin(daemon, manager_socket):
    running = daemon(prefix=("prlimit", "--nofile=40"))
    managers = [Manager(manager_socket, timeout=DEADLINE) for _ in range(40)]
    for manager in managers:
        manager.socket.sendall(wire.encode(Type.HEARTBEAT, Heartbeat(1)))
    assert managers[0].receive() == (204, Response(1))
    eventually(lambda: "no room for another client" in running.log())
    before = running.cpu_seconds()
    time.sleep(1.5)
    assert running.cpu_seconds() - before < 0.5
    assert running.log().count("no room") == 1
    for manager in managers:  # each that ends makes room for one that waits
        assert manager.receive() if manager is not managers[0] else True
        manager.close()


def test_at_the_descriptor_limit_clients_that_are_met_can_register(daemon, manager_socket):
    running = daemon(prefix=("prlimit", "--nofile=40"))
    managers = [Manager(manager_socket, timeout=DEADLINE) for _ in range(40)]
    eventually(lambda: "no room for another client" in running.log())
    managers[0].register()
    managers[0].get_lcore(1)
    for manager in managers:
        manager.close()


def test_stopped_at_the_descriptor_limit_it_ends_well(daemon, manager_socket):
    running = daemon(prefix=("prlimit", "--nofile=40"))
    managers = [Manager(manager_socket, timeout=DEADLINE) for _ in range(40)]
    eventually(lambda: "no room for another client" in running.log())
    assert running.end(signal.SIGTERM) == 0
    for manager in managers:
        manager.close()


def test_a_client_that_asks_for_much_waits_for_its_turn_like_others(daemon, manager_socket):
    running = daemon()
    greedy, modest = (Manager(manager_socket, timeout=DEADLINE) for _ in range(2))
    greedy.register()
    modest.register()
    running.send(signal.SIGSTOP)
    heartbeats = wire.encode(Type.HEARTBEAT, Heartbeat(1)) * 15
    greedy.socket.sendall(heartbeats + wire.encode(Type.GET_LCORE, Lcore(1)))
    modest.socket.sendall(wire.encode(Type.GET_LCORE, Lcore(1)))
    running.send(signal.SIGCONT)
    assert modest.receive() == (201, Response(0))
    assert [greedy.receive() for _ in range(16)][-1] == (201, Response(-errno.EBUSY))
    greedy.close()
    modest.close()


@pytest.mark.parametrize("room", [0, 4, 12, 24])
def test_orphans_are_adopted_once_descriptors_are_free(daemon, manager_socket, segment, room):
    server = daemon()
    used = len(os.listdir(f"/proc/{server.pid}/fd"))
    limits = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)
    code = "import sys\nfrom mtlshm.manager_client import Manager\n"
    code += "c = Manager(sys.argv[1]); c.register()"
    clients = [
        subprocess.Popen(
            [sys.executable, "-c", f"{code}\nprint(flush=True)\ninput()", manager_socket],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for _ in range(8)
    ]

    def registered() -> set[int]:
        present = {each.pid for each in look(segment).instances}
        return {number for number, each in enumerate(clients) if each.pid in present}

    try:
        assert [each.stdout.readline() for each in clients] == [b"\n"] * 8
        server.kill()
        for dead in clients[4:6]:
            dead.kill()
            dead.wait(DEADLINE)
        server = daemon(prefix=("prlimit", f"--nofile={used + 2 + room}:{limits[1]}"))
        eventually(lambda: registered() == {0, 1, 2, 3, 6, 7})
        for dead in clients[:2]:
            dead.kill()
        eventually(lambda: registered() == {2, 3, 6, 7})
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, limits)
        for dead in clients[2:4]:
            dead.kill()
        eventually(lambda: registered() == {6, 7})
        with Manager(manager_socket, timeout=DEADLINE) as manager:
            manager.register()
    finally:
        for each in clients:
            each.kill()
            each.wait(DEADLINE)
            each.stdin.close()
            each.stdout.close()
    eventually(lambda: registered() == set())


def test_every_request_is_answered_without_free_descriptors(daemon, manager_socket):
    server = daemon()
    manager = Manager(manager_socket, timeout=DEADLINE)
    manager.heartbeat(1)
    before = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (3, before[1]))
    assert refusal(manager.register) == errno.EMFILE
    manager.heartbeat(2)
    resource.prlimit(server.pid, resource.RLIMIT_NOFILE, before)
    manager.register()
    resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (3, before[1]))
    manager.get_lcore(1)
    manager.put_lcore(1)
    assert refusal(manager.get_queue, 3) in (errno.EMFILE, errno.ENODEV)
    manager.heartbeat(3)
    resource.prlimit(server.pid, resource.RLIMIT_NOFILE, before)
    manager.close()


PIDFD_OPEN = "434"


PEERPIDFD = f"{55 if os.uname().machine == 'x86_64' else 209}:1={socket.SOL_SOCKET}:2=77"


def test_clients_are_refused_if_their_death_cannot_be_seen(daemon, manager_socket):
    prefix = (sys.executable, "-m", "lab.seccomp", f"{PIDFD_OPEN} {PEERPIDFD}")
    running = daemon(prefix=prefix)
    for _ in range(3):
        with Manager(manager_socket, timeout=DEADLINE) as manager:
            assert manager.heartbeat(3) == 3
            assert refusal(manager.register) == errno.EPERM
            assert manager.heartbeat(4) == 4
    assert running.log().count("no client can be served") == 1
    assert "pidfd_open" in running.log()
    assert running.log().count("is refused") == 1


@pytest.mark.parametrize("forbidden", [PIDFD_OPEN, PEERPIDFD])
def test_one_way_to_see_a_death_suffices(daemon, manager_socket, segment, forbidden):
    daemon(prefix=(sys.executable, "-m", "lab.seccomp", forbidden))
    with Manager(manager_socket, timeout=DEADLINE) as manager:
        manager.register()
        manager.get_lcore(1)
        assert held(segment) == {1}
    eventually(lambda: held(segment) == set())
