# SPDX-License-Identifier: BSD-3-Clause
"""mtlshmd on a kernel that chains XDP programs and a NIC whose rules steer: what unmodified libmtl asks for, done."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lab.networks import NEAR4, QUEUES
from lab.processes import DEADLINE, Daemon, eventually
from lab.vm_nic import Nic, run
from mtlshm.manager_client import Manager
from mtlshm.net.attached import look
from mtlshm.wire import Dialect

PORT = 30000


@pytest.fixture
def server(nic: Nic, daemon: Callable[..., Daemon]) -> Callable[[], Daemon]:
    return lambda: daemon(environment={"MTLSHMD_XDP": "auto"})


def rules(nic: Nic) -> list[int]:
    said = run("ethtool", "-n", nic.link.name).splitlines()
    return sorted(int(line.split()[1]) for line in said if line.startswith("Filter:"))


def test_a_client_gets_the_packets_it_asked_for_on_its_queue_and_leaves_nothing(
    nic: Nic, server: Callable[[], Daemon], manager_socket: Path
) -> None:
    server()
    assert nic.steer(40000, 0, location=7).strip() == ""  # an administrator's
    with Manager(manager_socket, dialect=Dialect.A, timeout=DEADLINE) as manager:
        manager.register((nic.link.index,))
        status = run("xdp-loader", "status", nic.link.name)
        assert "mtl_dp_filter" in status
        assert "xsk_def_prog" in status
        location = nic.receive_as_libmtl(manager, PORT)
        assert rules(nic) == sorted({7, location})
    eventually(lambda: rules(nic) == [7])
    eventually(lambda: asyncio.run(look(nic.link.index)).programs == ())


CLIENT = """
import sys
from ipaddress import IPv4Address
from mtlshm import wire
from mtlshm.manager_client import Manager
ifindex, port, address = int(sys.argv[2]), int(sys.argv[3]), IPv4Address(sys.argv[4])
manager = Manager(sys.argv[1])
manager.register((ifindex,))
queue = manager.get_queue(ifindex)
print(manager.add_flow(wire.Interface(ifindex, queue, 0, 2, IPv4Address(0), address, 0, port)), flush=True)
sys.stdin.read()
"""


def test_rules_outlive_the_daemon_and_end_with_their_owner(
    nic: Nic, server: Callable[[], Daemon], manager_socket: Path
) -> None:
    running = server()
    clients = []
    try:
        for port in (PORT, PORT + 1):
            command = [sys.executable, "-c", CLIENT, manager_socket, nic.link.index, port, NEAR4]
            clients.append(
                subprocess.Popen(list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
            assert clients[-1].stdout
            assert clients[-1].stdout.readline().strip() == str(len(clients))
        running.end(signal.SIGKILL)
        clients[0].kill()
        clients[0].wait()
        assert rules(nic) == [1, 2]
        server()
        eventually(lambda: rules(nic) == [2])
        with Manager(manager_socket, timeout=DEADLINE) as manager:
            manager.register((nic.link.index,))
            assert manager.get_queue(nic.link.index) == 1
            with pytest.raises(OSError, match="busy"):
                manager.add_flow(nic.flow(2, PORT + 2))
            with pytest.raises(OSError, match="Invalid"):
                manager.del_flow(nic.link.index, 2)
            with pytest.raises(OSError, match="Invalid"):
                manager.add_flow(nic.flow(QUEUES, PORT + 2))
        clients[1].kill()
        eventually(lambda: rules(nic) == [])
    finally:
        for client in clients:
            with client:
                client.kill()
