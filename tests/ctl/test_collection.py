# SPDX-License-Identifier: BSD-3-Clause
"""release --force takes from the living what an operator says; gc takes from the dead only."""

from __future__ import annotations

import json
import os

import pytest

from lab.processes import held, look
from mtlshm import Host, LcoreType, MtlshmError


def test_release_names_the_owner_and_asks(ctl, segment, own_cpus):
    with Host(segment) as host, host.register("encoder") as me:
        me.claim(own_cpus[0])
        done = ctl("release", "--force", own_cpus[0], answer="n\n")
        assert done.returncode == 1
        assert f"encoder (pid {os.getpid()}" in done.stdout
        assert held(segment) == {own_cpus[0]}

        assert ctl("release", "--force", own_cpus[0], answer="y\n").returncode == 0
        assert held(segment) == set()
        with pytest.raises(MtlshmError) as refused:
            me.release(own_cpus[0])
        assert "not held by this instance" in str(refused.value)


def test_release_does_not_ask_if_told_so(ctl, segment, own_cpus):
    with Host(segment) as host, host.register("encoder") as me:
        me.claim(own_cpus[0])
        assert ctl("release", "--force", "--yes", own_cpus[0]).returncode == 0
        assert held(segment) == set()


def test_release_without_force_takes_nothing(ctl, segment, own_cpus):
    with Host(segment) as host, host.register("encoder") as me:
        me.claim(own_cpus[0])
        assert ctl("release", "--yes", own_cpus[0]).returncode == 2
        assert held(segment) == {own_cpus[0]}


def test_release_of_a_free_lcore_says_that_it_is_free(ctl, segment):
    Host(segment).close()
    done = ctl("release", "--force", "--yes", 0)
    assert (done.returncode, done.stdout) == (0, "lcore 0 is free\n")


def test_gc_collects_the_dead_and_leaves_the_living(ctl, segment, puppet):
    living, dead = puppet(), puppet()
    living.claim(0)
    dead.claim(1)
    dead.kill()
    done = ctl("gc")
    assert done.returncode == 0
    assert f"pid {dead.pid}" in done.stdout
    assert f"pid {living.pid}" not in done.stdout
    assert [i.pid for i in look(segment).instances] == [living.pid]
    assert held(segment) == {0}
    assert ctl("gc").stdout == "nothing to collect\n"


@pytest.mark.parametrize("words", [("gc",), ("release", "--force", "--yes", "0")])
def test_with_no_segment_none_is_made(ctl, segment, words):
    done = ctl(*words)
    assert done.returncode == 3
    assert done.stderr.count("\n") == 1
    assert not os.path.exists(segment)


def test_release_of_an_unknown_lcore_is_wrong_usage(ctl, segment):
    Host(segment).close()
    assert ctl("release", "--force", "--yes", 5000).returncode == 2


def family(puppet, *lcores):
    """A chain of three: an instance that holds lcores for its tenant, which holds them for one of its own."""
    chain = [puppet()]
    for lcore in lcores:
        assert chain[0].claim(lcore, LcoreType.LEASE) == 0
    for _ in range(2):
        new = puppet(ready=False)
        assert new.open(1) == 0
        assert new.register_under(chain[-1].owner()) == 0
        chain.append(new)
    for lcore in lcores:
        assert chain[1].claim(lcore, LcoreType.LEASE) == 0
    return chain


def test_release_of_a_tenants_lcore_says_that_it_goes_back(ctl, segment, puppet):
    root, middle, leaf = family(puppet, 0)
    assert leaf.claim(0) == 0
    done = ctl("release", "--force", "--yes", 0)
    assert done.returncode == 0
    for line in done.stdout.splitlines():
        assert f"it goes back to puppet (pid {middle.pid}," in line
    (lcore,) = look(segment).lcores
    assert (lcore.owner.owner, lcore.type) == (middle.owner(), LcoreType.LEASE)
    assert f"it goes back to puppet (pid {root.pid}," in ctl("release", "--force", 0, answer="n\n").stdout


def test_gc_passes_a_dead_parents_lcores_up_and_keeps_its_record(ctl, segment, puppet):
    root, middle, leaf = family(puppet, 0, 1)
    assert leaf.claim(0) == 0
    middle.kill()
    for _ in range(2):
        assert ctl("gc").stdout == "nothing to collect\n"
        data = json.loads(ctl("status", "--json").stdout)
        states = {info["pid"]: info["state"] for info in data["instances"]}
        assert states == {root.pid: "alive", middle.pid: "kept", leaf.pid: "alive"}
        lcores = [(lcore["pid"], lcore["type"], lcore["lease"]) for lcore in data["lcores"]]
        assert lcores == [(leaf.pid, "sch", False), (root.pid, "app", True)]
    assert [
        line for line in ctl("status").stdout.splitlines() if str(middle.pid) in line and line.split()[-1:] == ["kept"]
    ]
    leaf.kill()
    collected = ctl("gc").stdout
    assert f"pid {leaf.pid}" in collected
    assert f"pid {middle.pid}" in collected
    assert [(lcore.owner.pid, lcore.type) for lcore in look(segment).lcores] == [(root.pid, LcoreType.LEASE)] * 2


def test_a_reservation_is_not_collected(ctl, segment):
    with Host(segment) as host:
        host.reserve("studio", 1)
    assert ctl("gc").stdout == "nothing to collect\n"
    assert len(held(segment)) == 1
