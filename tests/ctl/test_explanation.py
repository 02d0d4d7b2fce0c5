# SPDX-License-Identifier: BSD-3-Clause
"""Why these lcores: on machines that are made up, in the words of place --dry-run and run --explain."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lab.sysfs import Machine
from mtlshm import Host, LcoreType, Smt
from mtlshm.ctl.explanation import Explanation
from mtlshm.ctl.policy import Demand

Open = Callable[[Machine], Host]
NOT_ENOUGH = "taken because there were not enough others"


@pytest.fixture
def machine(segment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    """Opens the test's segment as one of a made-up machine, all CPUs of which this process may use."""
    hosts = []

    def start(description: Machine) -> Host:
        online = {cpu.number for cpu in description.online}
        monkeypatch.setattr("os.sched_getaffinity", lambda _: online)
        hosts.append(Host(segment, sysfs=description.write(tmp_path / "sys")))
        return hosts[0]

    yield start
    for host in hosts:
        host.close()


def demand(count: int, *, node: int | None = None, device: str | None = None, main: bool = False) -> Demand:
    return Demand(count, Smt.ANY, node, device, main, listed=False)


def lines(host: Host, wanted: Demand, parent: int = 0) -> list[str]:
    chosen = host.choose(wanted.count, parent=parent, cpus=wanted.mask, **wanted.terms())
    return list(Explanation(wanted, chosen, host.topology(), host.snapshot(), parent=parent).lines())


def test_each_lcore_has_a_line_with_node_cache_and_sibling(machine: Open) -> None:
    host = machine(Machine(cores=4, threads=2, caches=2))
    with host.register("encoder", cpus=range(8)) as other:
        other.claim(2)
        assert lines(host, demand(3)) == [
            "lcore 4: NUMA node 0; cache of CPUs 4-7: 4 free, 3 taken; SMT sibling 5 taken as well",
            "lcore 5: NUMA node 0; cache of CPUs 4-7: 4 free, 3 taken; SMT sibling 4 taken as well",
            "lcore 6: NUMA node 0; cache of CPUs 4-7: 4 free, 3 taken; SMT sibling 7 free",
        ]


def test_explanation_names_the_siblings_owner(machine: Open) -> None:
    host = machine(Machine(cores=2, threads=2))
    with host.register("encoder", cpus=range(4)) as other:
        other.claim(2)
        first, second, third = lines(host, demand(3, main=True))
    assert first.endswith(f"CPU 0, {NOT_ENOUGH}; libmtl's main lcore, which it hands to nobody")
    assert second == "lcore 1: NUMA node 0; cache of CPUs 0-3: 3 free, 3 taken; SMT sibling 0 taken as well"
    assert f"SMT sibling 2 held by encoder (pid {os.getpid()}," in third
    assert third.endswith(NOT_ENOUGH)


def test_isolated_ones_and_those_of_the_wrong_node_are_told_apart(machine: Open) -> None:
    host = machine(Machine(sockets=2, cores=2, isolated=frozenset({1, 3})))
    with host.register("encoder", cpus=range(4)) as other:
        other.claim(3)
        one, two = lines(host, demand(2, node=1, device="eth0"))
        assert one.startswith(f"lcore 1: NUMA node 0, not that of eth0 (1), {NOT_ENOUGH}; cache of CPUs 0-1: 2 free")
        assert "; isolated; no SMT sibling" in one
        assert two.startswith("lcore 2: NUMA node 1, that of eth0; cache of CPUs 2-3: 1 free, 1 taken; not isolated,")
        assert lines(host, demand(1, node=0))[0].startswith("lcore 1: NUMA node 0, as asked for;")


def test_leased_lcores_are_free_for_tenants(machine: Open) -> None:
    host = machine(Machine(cores=4, threads=2))
    with (
        host.register("run", cpus=range(8)) as parent,
        host.register("worker", cpus=range(8), parent=parent.owner) as tenant,
    ):
        for lcore in 2, 3, 4:
            parent.claim(lcore, LcoreType.LEASE)
        assert lines(host, demand(2), parent.owner) == [
            "lcore 2: NUMA node 0; cache of CPUs 0-7: 3 free, 2 taken; SMT sibling 3 taken as well",
            "lcore 3: NUMA node 0; cache of CPUs 0-7: 3 free, 2 taken; SMT sibling 2 taken as well",
        ]
        tenant.claim(2)
        assert "SMT sibling 2 held by worker" in lines(host, demand(2), parent.owner)[0]
