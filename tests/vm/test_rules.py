# SPDX-License-Identifier: BSD-3-Clause
"""Rules of ethtool steer packets to queues, and from there they come to the socket of that queue."""

from __future__ import annotations

import asyncio
import os
import socket

import pytest

from lab.networks import QUEUES, inside
from lab.vm_nic import Nic, arrived, run
from mtlshm.net.attached import Mode, Way
from mtlshm.net.xdp import Loader

FLOW = {socket.AF_INET: "udp4", socket.AF_INET6: "udp6"}


@pytest.mark.parametrize("family", FLOW, ids=FLOW.values())
@pytest.mark.parametrize("mode", [Mode.NATIVE, Mode.SKB])
def test_a_rule_takes_its_packets_to_its_queue(nic: Nic, loader: Loader, mode: Mode, family: int) -> None:
    if mode is Mode.SKB:
        nic.link.set_mtu(9000)  # more than veth can do in native mode
    with asyncio.run(loader.load(nic.link.index, Way.FUSED)) as gate, nic.sockets(gate) as queues:
        assert gate.mode is mode
        gate.set_port(30000, True)
        for number, queue in enumerate(queues):
            nic.steer(30000, number, FLOW[family])
            sent = nic.send(30000, 50, family)
            assert arrived(queue, 50) == sent
            assert [other.receive() for other in queues] == [[]] * QUEUES


def test_a_rule_that_is_refused_is_not_there(nic: Nic) -> None:
    assert "Cannot insert RX class rule: Invalid argument" in nic.steer(30000, QUEUES)
    assert "Total 0 rules" in run("ethtool", "-n", nic.link.name)


def test_an_interface_that_is_moved_to_another_network_namespace_keeps_its_rules(nic: Nic) -> None:
    """So mtlshmd has to say which."""
    nic.steer(30000, 1)
    run("ip", "link", "set", nic.link.name, "netns", f"/proc/{os.getpid()}/fd/{nic.link.far}")
    with inside(nic.link.far):
        assert "Total 1 rules" in run("ethtool", "-n", nic.link.name)
        run("ethtool", "-N", nic.link.name, "delete", 1)
        assert "Total 0 rules" in run("ethtool", "-n", nic.link.name)
