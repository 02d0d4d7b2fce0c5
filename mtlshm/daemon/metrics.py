# SPDX-License-Identifier: BSD-3-Clause
"""What the daemon tells Prometheus. exporter.py hands it out.

Everything is looked at when it is asked for, and nothing is started or woken for that: of interfaces only what is
served already, of the table a snapshot. Who holds an lcore appears by kind, never by PID or name: there shall be no
more series than a host has nodes, kinds and interfaces. Claims that processes make in the table themselves pass no
daemon; each counts its own in its record.
"""

from __future__ import annotations

import errno
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder, generate_latest
from prometheus_client.registry import Collector

from mtlshm import Host, InstanceInfo, Kind, Lcore, LcoreType, Snapshot, Topology
from mtlshm._core import lib
from mtlshm.daemon.counts import BOUNDS, COUNTS
from mtlshm.daemon.lazy import Lazy
from mtlshm.wire import Type

if TYPE_CHECKING:
    from mtlshm.daemon.figures import Figures
    from mtlshm.daemon.interfaces import Interfaces

_TOPOLOGY_FOR = 60.0  # seconds; to read it takes a file for each CPU
_NONE = "none"
# That are always told, if only as 0: an alert cannot tell a series that is not there from one that never was.
_STATES = (
    ("free", _NONE),
    ("held", "shm"),
    ("held", "socket"),
    ("held", "legacy"),
    ("lent", "pool"),
    ("reserved", "reservation"),
    ("dead", "shm"),
)


class Metrics:
    """Text for whoever asks."""

    def __init__(self, host: Host, interfaces: Lazy[Interfaces] | None, version: str) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_Collector(host, interfaces, version))

    def answer(self, accepted: str) -> tuple[bytes, str]:
        """In the first format of an Accept header that there is, and the name of that format."""
        encode, name = choose_encoder(accepted)
        return encode(self._registry), name

    def text(self) -> bytes:
        """In the older format, the only one that node_exporter reads from files."""
        return generate_latest(self._registry)


class _Collector(Collector):
    def __init__(self, host: Host, interfaces: Lazy[Interfaces] | None, version: str) -> None:
        self._host, self._interfaces, self._version = host, interfaces, version
        self._topology: Topology | None = None
        self._read = 0.0
        self._most = {"claims": 0, "releases": 0}

    def describe(self) -> Iterable[Metric]:
        """Nothing is measured just to be registered."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """All of it, now. OSError if the table cannot be read."""
        snapshot = self._host.snapshot()
        yield InfoMetricFamily(
            "mtlshm_build",
            "The version of mtlshmd, and of the layout of the segment.",
            {"version": self._version, "layout": str(lib.MTLSHM_LAYOUT_VERSION)},
        )
        yield self._lcores(snapshot)
        yield _instances(snapshot)
        for name, text, value in (
            ("registrations", "Instances registered since the segment was made.", snapshot.registered),
            ("collections", "Dead instances collected since the segment was made.", snapshot.collected),
            ("recovered_lcores", "Lcores freed from dead instances since the segment was made.", snapshot.recovered),
            (
                "semaphore_takeovers",
                "Times that the semaphore was taken from a dead holder since the segment was made.",
                snapshot.takeovers,
            ),
        ):
            yield CounterMetricFamily(f"mtlshm_{name}", text, value)
        for name, text in (
            ("claims", "Lcores that instances claimed in the table themselves since the segment was made."),
            ("releases", "Of these, lcores that they gave back."),
        ):
            yield CounterMetricFamily(f"mtlshm_direct_{name}", text, self._never_less(name, getattr(snapshot, name)))
        yield _freed()
        yield _requests()
        yield from self._of_interfaces()

    def _lcores(self, snapshot: Snapshot) -> Metric:
        topology = self._current()
        nodes = {cpu.cpu: str(cpu.node) for cpu in topology.cpus if cpu.cpu < snapshot.size}
        held = {lcore.number: lcore for lcore in snapshot.lcores}
        counts = Counter({(*state, str(node)): 0 for node in topology.nodes for state in _STATES})
        for number in nodes.keys() | held.keys():
            counts[*_state(held.get(number)), nodes.get(number, "offline")] += 1
        family = GaugeMetricFamily(
            "mtlshm_lcores", "Lcores by state, kind of owner and NUMA node.", labels=("state", "kind", "node")
        )
        for labels, count in sorted(counts.items()):
            family.add_metric(labels, count)
        return family

    def _never_less(self, name: str, value: int) -> int:
        """Return the value, or the one before if that was higher.

        Counts move from a record to the header when an instance ends, and threads that claim at once may set them back.
        Prometheus takes a counter that decreases for one that has begun again.
        """
        self._most[name] = max(self._most[name], value)
        return self._most[name]

    def _current(self) -> Topology:
        now = time.monotonic()
        if self._topology is None or now - self._read > _TOPOLOGY_FOR:
            self._topology, self._read = self._host.topology(), now
        return self._topology

    def _of_interfaces(self) -> Iterator[Metric]:
        served: list[Interfaces] = []
        if self._interfaces:
            self._interfaces.peek(served.append)
        figures = [each for duty in served for each in duty.figures()]
        failures = [item for duty in served for item in duty.tool_failures.items()]
        packets = CounterMetricFamily(
            "mtlshm_xdp_packets",
            "Packets since the XDP programs were loaded: hit, to a port that a client asked for; pass, all others.",
            labels=("interface", "verdict"),
        )
        for each in figures:
            for verdict, value in each.packets.items():
                packets.add_metric((each.interface, verdict), value)
        yield packets
        unclaimed = CounterMetricFamily(
            "mtlshm_xdp_unclaimed_packets",
            "Hits for which there was no socket, which went to the kernel; fused programs count them.",
            labels=("interface",),
        )
        for each in figures:
            if each.unclaimed is not None:
                unclaimed.add_metric((each.interface,), each.unclaimed)
        yield unclaimed
        for name, text in (
            ("loaded", "Whether the XDP programs of an interface in use are loaded."),
            ("queues", "Queues of an interface that have an owner."),
            ("flow_rules", "Flow rules of clients on an interface."),
            ("ports", "UDP ports of an interface whose packets go to AF_XDP."),
        ):
            yield _gauge(f"mtlshm_interface_{name}", text, name, figures)
        failed = CounterMetricFamily(
            "mtlshm_tool_failures",
            "Runs of external programs that failed: status, with an exit status other than 0; timeout; missing.",
            labels=("program", "reason"),
        )
        for labels, count in failures:
            failed.add_metric(labels, count)
        yield failed


def _gauge(name: str, text: str, field: str, figures: Iterable[Figures]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=("interface",))
    for each in figures:
        family.add_metric((each.interface,), getattr(each, field))
    return family


def _state(lcore: Lcore | None) -> tuple[str, str]:
    """And the kind of its owner. What a process holds for tenants it uses itself, as long as none has claimed it."""
    if lcore is None:
        return "free", _NONE
    owner = lcore.owner
    if owner.kind == Kind.POOL:
        return "lent", _kind(owner)
    if owner.alive is False:
        return "dead", _kind(owner)
    reserved = owner.kind == Kind.RESERVATION and lcore.type == LcoreType.LEASE
    return "reserved" if reserved else "held", _kind(owner)


def _kind(info: InstanceInfo) -> str:
    """A damaged table may have any number."""
    return info.kind.name.lower() if isinstance(info.kind, Kind) else "unknown"


def _instances(snapshot: Snapshot) -> Metric:
    family = GaugeMetricFamily(
        "mtlshm_instances", "Instances in the table by kind and state.", labels=("kind", "state")
    )
    states = {True: "alive", False: "dead", None: "unknown"}
    counts = Counter((_kind(info), states[info.alive]) for info in snapshot.instances)
    for kind in Kind:
        counts[kind.name.lower(), "alive"] += 0
    for labels, count in sorted(counts.items()):
        family.add_metric(labels, count)
    return family


def _freed() -> Metric:
    durations, buckets, below = COUNTS.freed, [], 0
    for bound, count in zip((*map(str, BOUNDS), "+Inf"), durations.counts, strict=True):
        below += count
        buckets.append((bound, float(below)))
    return HistogramMetricFamily(
        "mtlshm_death_to_free_seconds",
        "From when mtlshmd heard of an instance's death until what it held was free.",
        buckets=buckets,
        sum_value=durations.total,
    )


def _requests() -> Metric:
    family = CounterMetricFamily(
        "mtlshm_requests", "Requests answered at the manager socket.", labels=("type", "result")
    )
    names = {int(kind): kind.name.lower() for kind in Type}
    for (kind, answer), count in sorted(COUNTS.answered().items()):
        result = errno.errorcode.get(-answer, "other") if answer else "ok"
        family.add_metric((names.get(kind, "unknown"), result), count)
    return family
