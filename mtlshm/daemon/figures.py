# SPDX-License-Identifier: BSD-3-Clause
"""Figures of interfaces for the metrics. They come from the ledger and from maps that are open anyway."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass

from mtlshm.net.gate import Counters, Gate
from mtlshm.net.ledger import Ledger


@dataclass(frozen=True, slots=True)
class Figures:
    """The figures of one interface in use."""

    interface: str
    loaded: bool
    queues: int
    flow_rules: int
    ports: int
    packets: dict[str, int]  # by verdict
    unclaimed: int | None  # those of the hits for which there was no socket; None: not counted


def figures(ledger: Ledger, gates: Mapping[int, Gate], failed: Collection[int]) -> list[Figures]:
    """The present figures. An interface without a gate, or with a failed one, counts as not loaded."""
    queues = Counter(queue.ifindex for queue in ledger.queues())
    flows = Counter(flow.ifindex for flow in ledger.flows())
    counted = {ifindex: gate.counters() for ifindex, gate in gates.items()}
    return [
        Figures(
            interface=_name(ifindex),
            loaded=ifindex in gates and ifindex not in failed,
            queues=queues[ifindex],
            flow_rules=flows[ifindex],
            ports=len(ledger.ports(ifindex)),
            packets=_verdicts(counted[ifindex]) if ifindex in counted else {},
            unclaimed=counted[ifindex].unclaimed if ifindex in counted else None,
        )
        for ifindex in sorted(use.ifindex for use in ledger.uses())
    ]


def _name(ifindex: int) -> str:
    with suppress(OSError):  # it is gone
        return socket.if_indextoname(ifindex)
    return str(ifindex)


def _verdicts(counted: Counters) -> dict[str, int]:
    """Not less those that are unclaimed: of two numbers read one after the other the difference can decrease, and
    Prometheus takes a counter that does for one that has begun again."""
    return {"hit": counted.hits, "pass": counted.passes}
