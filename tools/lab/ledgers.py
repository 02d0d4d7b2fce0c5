# SPDX-License-Identifier: BSD-3-Clause
"""What tests of the ledger share."""

from __future__ import annotations

from ipaddress import IPv4Address

from mtlshm import Process
from mtlshm.net.flow import FlowSpec, FlowType
from mtlshm.net.ledger import State

IF = 7  # an interface; the ledger does not look at it
SPEC = FlowSpec(FlowType.UDP4, None, IPv4Address("239.1.1.1"), 0, 30002)


def process(pid: int = 100) -> Process:
    return Process(pid, 4026531836, 12345, 4711, 1000, "worker", "vm", "worker")


def check_whole(state: State) -> int:
    """None of the transactions of writing() is half there; returns how many there were."""
    pair = [each.count for each in state.ports if each.ifindex == 8]
    number = sum(each.count - 1 for each in state.ports if each.ifindex == 9)
    assert len(pair) in (0, 2)
    assert len(set(pair)) <= 1
    assert number == sum(each.ifindex == 7 for each in state.ports)
    return pair[0] if pair else 0
