# SPDX-License-Identifier: BSD-3-Clause
"""Metrics say what is so, in a form that Prometheus reads, and nobody else notices that they are asked for."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from inotify_simple import INotify, flags

from lab.interface_clients import PORT
from lab.networks import Veth
from lab.processes import DEADLINE, Daemon, Puppet, eventually, needs_root
from lab.scraper import OPENMETRICS, Samples, samples, scrape, value
from mtlshm import Host, LcoreType, Topology
from mtlshm.manager_client import Manager

ROOT = Path(__file__).parents[2]
TEXT = "text/plain"
LABELS = {
    "state",
    "kind",
    "node",
    "type",
    "result",
    "interface",
    "verdict",
    "program",
    "reason",
    "le",
    "version",
    "layout",
}


@pytest.fixture
def place(manager_socket: Path) -> Path:
    return manager_socket.with_name("metrics.sock")


@pytest.fixture
def served(daemon: Callable[..., Daemon], place: Path) -> Daemon:
    return daemon("--metrics", f"unix:{place}")


@pytest.fixture
def when(place: Path) -> Callable[[Callable[[Samples], bool]], Samples]:
    """Scrapes until something is told: what was told a moment ago may be told again."""

    def wait(told: Callable[[Samples], object]) -> Samples:
        def once() -> Samples | None:
            found = samples(scrape(place))
            return found if told(found) else None

        return eventually(once)

    return wait


def test_lcores_are_counted_by_state_kind_and_node(served, when, segment, puppet):
    holder = puppet()
    assert holder.claim(0) == 0
    node = str(next(cpu.node for cpu in Topology.read().cpus if cpu.cpu == 0))
    found = when(lambda s: value(s, "mtlshm_lcores", state="held", kind="shm", node=node))
    lcores = {labels: count for (name, labels), count in found.items() if name == "mtlshm_lcores"}
    assert sum(lcores.values()) == len(Topology.read().online)
    assert value(found, "mtlshm_instances", kind="shm", state="alive") == 1
    assert value(found, "mtlshm_instances", kind="daemon", state="alive") == 1
    with Host(segment) as host:
        host.reserve("studio", 1)
    when(lambda s: value(s, "mtlshm_lcores", state="reserved", kind="reservation", node=node))


def test_claims_that_pass_no_daemon_are_counted(served, when, puppet):
    direct, other = puppet(), puppet()
    assert direct.claim(0) == direct.release(0) == direct.claim(1) == other.claim(0) == 0
    found = when(lambda s: value(s, "mtlshm_direct_claims_total") == 3)
    assert value(found, "mtlshm_direct_releases_total") == 1
    assert direct.unregister() == 0
    when(lambda s: value(s, "mtlshm_direct_releases_total") == 2)
    other.kill()
    found = when(lambda s: value(s, "mtlshm_recovered_lcores_total") == 1)
    assert value(found, "mtlshm_direct_claims_total") == 3


def test_a_death_is_counted_with_what_it_freed(served, when, puppet):
    victim = puppet()
    assert victim.claim(0) == 0
    victim.kill()
    found = when(lambda s: value(s, "mtlshm_death_to_free_seconds_count"))
    assert value(found, "mtlshm_death_to_free_seconds_count") == 1
    assert value(found, "mtlshm_death_to_free_seconds_bucket", le="+Inf") == 1
    assert value(found, "mtlshm_death_to_free_seconds_sum") > 0
    assert value(found, "mtlshm_collections_total") == 1
    assert value(found, "mtlshm_recovered_lcores_total") == 1
    assert value(found, "mtlshm_registrations_total") == 2


def test_requests_are_counted_by_type_and_result(served, when, manager_socket):
    with Manager(manager_socket, timeout=DEADLINE) as client:
        with pytest.raises(PermissionError):
            client.get_lcore(0)  # before REGISTER
        client.register()
        client.heartbeat()
        client.get_lcore(0)
        with pytest.raises(OSError, match="busy"):
            client.get_lcore(0)
        client.put_lcore(0)
        client.get_lcore(0)
        for kind in 7777, 8888:
            client.socket.sendall(b"IMTL" + kind.to_bytes(4, "big") + bytes(110))
            client.socket.recv(118)
        found = when(lambda s: value(s, "mtlshm_requests_total", type="unknown", result="ENOTSUP"))
    told = {
        (labels["type"], labels["result"]): count
        for (name, each), count in found.items()
        if name == "mtlshm_requests_total" and (labels := dict(each))
    }
    assert told == {
        ("register", "ok"): 1,
        ("heartbeat", "ok"): 1,
        ("get_lcore", "EPERM"): 1,
        ("get_lcore", "ok"): 2,
        ("get_lcore", "EBUSY"): 1,
        ("put_lcore", "ok"): 1,
        ("unknown", "ENOTSUP"): 2,
    }


def test_no_label_names_a_process(served, place, puppet):
    puppet()
    for name, labels in samples(scrape(place)):
        assert name.startswith("mtlshm_")
        assert {label for label, _ in labels} <= LABELS
        assert not any(str(os.getpid()) in text for _, text in labels)


@pytest.mark.parametrize("accept", [OPENMETRICS, TEXT])
def test_both_formats_say_the_same_and_their_parsers_take_them(served, place, accept):
    found = samples(scrape(place, accept))
    assert value(found, "mtlshm_build_info", version=(ROOT / "VERSION").read_text().strip(), layout="3") == 1
    assert found.keys() == samples(scrape(place)).keys()


@pytest.mark.skipif(not shutil.which("promtool"), reason="no promtool (Debian: prometheus); not tested: its opinion")
def test_promtool_has_no_complaint(served, place):
    checked = subprocess.run(
        ["promtool", "check", "metrics"], input=scrape(place, TEXT), capture_output=True, text=True
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


def switches(process: Puppet) -> int:
    """How often it went to sleep, and so was woken."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("voluntary_ctxt_switches"))


def test_a_scrape_wakes_nobody_else(served, place, segment, puppet):
    others = [puppet() for _ in range(3)]
    for each in others:
        eventually(lambda each=each: "S" in Path(f"/proc/{each.pid}/stat").read_text().split()[2])
    before = [switches(each) for each in others]
    with INotify() as watch:
        watch.add_watch(segment, flags.MODIFY | flags.CLOSE_WRITE | flags.ATTRIB)
        for accept in OPENMETRICS, TEXT:  # measured anew each time
            scrape(place, accept)
        assert watch.read(timeout=0) == []
    assert [switches(each) for each in others] == before


@needs_root("metrics of interfaces")
def test_interfaces_are_told_once_a_client_uses_them(server, place, when, link: Veth, manager_socket):
    server("--metrics", f"unix:{place}")
    found = samples(scrape(place))
    assert not any(name.startswith("mtlshm_interface") for name, _ in found)
    with Manager(manager_socket, timeout=DEADLINE) as client:
        client.register((link.index,))
        client.add_filter(link.index, PORT)
        client.get_queue(link.index)
        found = when(lambda s: value(s, "mtlshm_interface_ports", interface=link.name))
        assert value(found, "mtlshm_interface_loaded", interface=link.name) == 1
        assert value(found, "mtlshm_interface_queues", interface=link.name) == 1
        assert value(found, "mtlshm_interface_flow_rules", interface=link.name) == 0
        hits = value(found, "mtlshm_xdp_packets_total", interface=link.name, verdict="hit")
        with link.far_udp(2) as far:
            far.sendto(b"x", ("192.0.2.1", PORT))
        found = when(lambda s: value(s, "mtlshm_xdp_packets_total", interface=link.name, verdict="hit") == hits + 1)
        assert value(found, "mtlshm_xdp_unclaimed_packets_total", interface=link.name) == hits + 1
        assert value(found, "mtlshm_requests_total", type="add_udp_dp_filter", result="ok") == 1


def test_without_them_nothing_is_imported_for_them():
    code = "import sys, mtlshm.daemon.app\nassert 'prometheus_client' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_lease_type_of_a_process_counts_as_held(served, when, segment):
    with Host(segment) as host, host.register("run") as me:
        me.claim(0, LcoreType.LEASE)
        when(lambda s: sum(v for (n, k), v in s.items() if n == "mtlshm_lcores" and ("state", "held") in k) == 1)
