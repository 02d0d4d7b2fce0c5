# SPDX-License-Identifier: BSD-3-Clause
"""events tells what happened, whoever did it, once; and goes on with --follow."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from lab.damages import poke
from lab.processes import DEADLINE, UNPRIVILEGED, as_user, needs_root
from mtlshm import EventKind, Host
from mtlshm._core import ffi, lib


def test_with_no_segment_it_says_so_in_one_line(ctl, segment):
    done = ctl("events")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (3, "", 1)
    assert segment in done.stderr


def test_it_says_who_did_what_with_which_lcores(ctl, segment, own_cpus, puppet):
    victim = puppet()
    assert victim.claim(own_cpus[0]) == 0
    victim.kill()
    assert ctl("gc").returncode == 0
    done = ctl("run", "--lcores", 1, "true")
    assert done.returncode == 0
    with Host(segment) as host, host.register("encoder", cpus=range(64)) as me:
        me.claim(60)
        host.evict(60, me.owner)
        host.tell(EventKind.XDP, "eth0", "chain loaded, native mode")
    lines = [line[21:] for line in ctl("events").stdout.splitlines()]
    who = f"(pid {victim.pid})"
    assert any(line.endswith(f"{who} registered") for line in lines)
    assert any(line.endswith(f"{who} died; lcore {own_cpus[0]} is free") for line in lines)
    assert any(line.startswith("true (pid ") and " claimed lcore " in line for line in lines)
    assert f"lcore 60 taken away from encoder (pid {os.getpid()})" in lines
    assert "interface eth0: chain loaded, native mode" in lines


def test_json_has_an_object_a_line(ctl, segment):
    with Host(segment) as host, host.register("fünf\x1b[1m"):
        host.tell(EventKind.NIC, "eth0", "queue 3 claimed")
    registered, told, ended = map(json.loads, ctl("events", "--json").stdout.splitlines())
    assert (registered["number"], registered["event"], registered["kind"]) == (0, "registered", "shm")
    assert registered["label"] == "fünf\N{REPLACEMENT CHARACTER}[1m"
    assert (registered["pid"], registered["host"]) == (os.getpid(), os.uname().nodename)
    assert (told["event"], told["interface"], told["text"]) == ("nic", "eth0", "queue 3 claimed")
    assert (ended["event"], ended["lcores"], ended["parent"]) == ("ended", [], None)


def test_a_reservation_and_its_tenants_are_told(ctl, segment):
    assert ctl("reserve", "studio", "--lcores", 1).returncode == 0
    assert ctl("run", "--reservation", "studio", "true").returncode == 0
    assert ctl("end", "studio").returncode == 0
    text = ctl("events").stdout
    assert "reservation studio reserved lcore" in text
    assert "reservation studio ended; lcore" in text


def test_what_is_lost_is_told_as_lost(ctl, segment):
    with Host(segment) as host:
        for text in "one", "two":
            host.tell(EventKind.NIC, "eth0", text)
    poke(segment, "events", 0, "when_ns", value=7)
    first, second = ctl("events").stdout.splitlines()
    assert "an event was lost" in first
    assert second.endswith("interface eth0: two")
    assert json.loads(ctl("events", "--json").stdout.splitlines()[0]) == {"number": 0, "event": "lost"}


def test_garbage_costs_only_what_it_overwrote(ctl, segment):
    Host(segment).close()
    start, size = ffi.offsetof("struct mtlshm_segment", "events"), ffi.sizeof("struct mtlshm_event")
    with open(segment, "r+b") as file:
        file.seek(start)
        file.write(os.urandom(size * lib.MTLSHM_EVENTS))
    poke(segment, "header", "events", value=2**40)
    assert ctl("events").stdout.count("an event was lost") == lib.MTLSHM_EVENTS
    assert ctl("run", "--lcores", 1, "true").returncode == 0
    assert "true (pid " in ctl("events").stdout.splitlines()[-1]
    assert json.loads(ctl("doctor", "--json").stdout)["sound"] is True


def test_follow_tells_each_event_once_and_goes_on_with_the_next_segment(ctl, start_ctl, segment):
    with Host(segment) as host:
        host.tell(EventKind.NIC, "eth0", "one")
        process = start_ctl("events", "--follow", "--json")
        assert json.loads(process.stdout.readline())["text"] == "one"
        host.tell(EventKind.NIC, "eth0", "two")
        assert json.loads(process.stdout.readline())["text"] == "two"
        host.unlink()
    with Host(segment) as host:
        host.tell(EventKind.NIC, "eth0", "three")
        assert json.loads(process.stdout.readline())["text"] == "three"
    process.send_signal(signal.SIGINT)
    assert process.wait(DEADLINE) == 0
    assert process.stdout.read() == ""


def test_follow_changes_nothing(start_ctl, segment):
    with Host(segment) as host:
        for text in "one", "two":
            host.tell(EventKind.NIC, "eth0", text)
            if text == "one":
                process = start_ctl("events", "--follow")
            before = Path(segment).read_bytes()
            assert text in process.stdout.readline()
            assert Path(segment).read_bytes() == before


@needs_root("reading the events as another user")
def test_a_reader_needs_read_permission_only(segment, environment):
    with Host(segment) as host:
        host.tell(EventKind.NIC, "eth0", "one")
    os.chmod(segment, 0o644)
    code = (
        f"import mtlshm.ctl.app\nmtlshm.ctl.app.load()\n{as_user(UNPRIVILEGED, UNPRIVILEGED, [])}mtlshm.ctl.app.main()"
    )
    command = [sys.executable, "-c", code, "events"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "interface eth0: one" in done.stdout
