# SPDX-License-Identifier: BSD-3-Clause
"""interfaces, queues, flows and ports show what clients have, truly, to whom may know. On a veth pair of the test's."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from collections.abc import Callable
from ipaddress import IPv4Address
from pathlib import Path

import jsonschema
import pytest

import mtlshm.ctl
from lab.networks import NEAR4, QUEUES, sandbox
from lab.processes import DEADLINE, UNPRIVILEGED, as_user, eventually, needs_root, run_python
from mtlshm import Host, Process, wire
from mtlshm.net.ledger import Ledger

SCHEMA = json.loads((Path(mtlshm.ctl.__file__).parent / "status.schema.json").read_text())
VERBS = ("interfaces", "queues", "flows", "ports")
PORT = 20000

pytestmark = needs_root("what clients have of interfaces")


@pytest.fixture
def rows(ctl) -> Callable[[str], list[dict]]:
    """What a verb prints as JSON."""

    def run(verb: str) -> list[dict]:
        done = ctl(verb, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)[verb]

    return run


def test_each_list_shows_entries_of_clients(server, connect, rows, ctl, link, stand_in):
    stand_in.set(link.name, combined=QUEUES)
    server()
    first, second = connect(), connect()
    assert first.get_queue(link.index) == 1
    assert second.get_queue(link.index) == 2
    second.add_filter(link.index, PORT)
    second.add_filter(link.index, PORT)
    flow = wire.Interface(link.index, 1, 0, 2, IPv4Address(0), IPv4Address("239.1.1.1"), 0, PORT)
    location = first.add_flow(flow)

    where = {"interface": link.name, "ifindex": link.index}
    one, two = ({key: row[key] for key in ("owner", "label", "pid", "comm", "user", "host")} for row in rows("queues"))
    assert one["pid"] == two["pid"] == os.getpid()
    assert one["owner"] != two["owner"]
    who = [owner | {"leaving": False} for owner in (one, two)]
    assert rows("queues") == [where | {"queue": 1} | who[0], where | {"queue": 2} | who[1]]
    assert rows("ports") == [where | {"port": PORT, "count": 2} | who[1]]
    (rule,) = rows("flows")
    assert (
        rule
        == where
        | {"location": location, "queue": 1, "rule": f"udp4 *:* -> 239.1.1.1:{PORT}"}
        | {
            "type": "udp4",
            "source": None,
            "destination": "239.1.1.1",
            "source_port": 0,
            "destination_port": PORT,
            "complete": True,
        }
        | who[0]
    )
    (interface,) = rows("interfaces")
    assert interface["users"] == who
    assert {key: interface[key] for key in ("kept", "way", "mode", "queues_used", "queues", "flows", "ports")} == {
        "kept": False,
        "way": interface["way"],
        "mode": "native",
        "queues_used": 2,
        "queues": QUEUES,
        "flows": 1,
        "ports": 1,
    }
    for verb in VERBS:
        assert f"{os.getpid()}" in ctl(verb).stdout
        assert link.name in ctl(verb).stdout
    first.close()
    second.close()
    eventually(lambda: rows("interfaces") == [])
    for verb in VERBS:
        assert rows(verb) == []
        assert ctl(verb).stdout in (f"nobody has any {verb}\n", "no interface is in use\n")


def test_counters_are_the_kernels(server, connect, rows, link):
    server()
    connect().add_filter(link.index, PORT)
    (interface,) = rows("interfaces")
    assert (interface["driver"], interface["queues"]) == ("veth", QUEUES)
    before = interface["counters"]
    with link.udp(PORT) as wanted, link.udp(PORT + 1) as other, link.far_udp(socket.AF_INET) as far:
        for _ in range(30):
            far.sendto(b"x", (NEAR4, PORT))
        for _ in range(50):
            far.sendto(b"x", (NEAR4, PORT + 1))
        for each in wanted, other:
            each.settimeout(DEADLINE)
        assert [len(wanted.recv(9)) for _ in range(30)] == [1] * 30  # as there is no socket of AF_XDP
        assert [len(other.recv(9)) for _ in range(50)] == [1] * 50
    after = rows("interfaces")[0]["counters"]
    assert after["hits"] - before["hits"] == 30
    assert after["passes"] - before["passes"] >= 50
    if after["unclaimed"] is not None:  # the chain does not count them
        assert after["unclaimed"] - before["unclaimed"] == 30


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_lists_are_shown_without_a_daemon(server, connect, rows, link, number):
    running = server()
    connect().get_queue(link.index)
    running.end(number)
    assert [row["queue"] for row in rows("queues")] == [1]
    assert rows("interfaces")[0]["mode"] == "native"
    subprocess.run(["ip", "link", "del", link.name], check=True)
    assert (rows("interfaces")[0]["interface"], rows("queues")[0]["ifindex"]) == (None, link.index)


def test_with_no_ledger_they_say_so_in_one_line(ctl):
    for verb in VERBS:
        done = ctl(verb)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (3, "", 1)
        assert "no daemon has served interfaces" in done.stderr


def test_a_ledger_of_another_network_namespace_is_not_mistaken_for_one_of_this(server, connect, environment, link, ctl):
    server()
    connect()
    with sandbox():
        done = ctl("queues")
    assert done.returncode == 1
    assert "nsenter" in done.stderr


def as_somebody(words: str, state: Path, segment: str, groups: list[int]) -> tuple[str, str]:
    """What mtlshm-ctl prints, and its exit status, for a user who owns nothing."""
    code = (
        # All that is to be imported, as it cannot be read later.
        "import io, os, sys, psutil, rich.console, rich.table, rich.text, pyroute2\n"
        "import mtlshm.ctl.app, mtlshm.net.ethtool, mtlshm.net.ledger, mtlshm.net.xdp\n"
        "rich.console.Console(file=io.StringIO()).print(rich.table.Table('x'))\n"
        "mtlshm.ctl.app.load()\n"
        f"{as_user(UNPRIVILEGED, UNPRIVILEGED, groups)}"
        f"sys.argv = ['mtlshm-ctl', '--segment', sys.argv[1], *{words.split()}, '--state', sys.argv[2]]\n"
        "os.dup2(1, 2)\n"
        "try:\n    mtlshm.ctl.app.main()\nexcept SystemExit as end:\n    print(end.code)"
    )
    *lines, status = run_python(code, segment, state).splitlines()
    return "\n".join(lines), status


def test_members_see_all_but_the_kernels_root_only_facts(server, connect, link, segment):
    state = Path("/run/state")  # of the sandbox, where others may look
    server("--socket-group", "daemon", "--state", state)
    manager = connect()
    manager.get_queue(link.index)
    manager.add_filter(link.index, PORT)
    os.chmod(segment, 0o664)
    (member,) = (
        int(line.split(":")[2]) for line in Path("/etc/group").read_text().splitlines() if line[:7] == "daemon:"
    )
    for verb in VERBS:
        said, status = as_somebody(verb, state, segment, [])
        assert status == "5"
        assert said.count("\n") == 0
        assert "root and members of its group may read it" in said
        said, status = as_somebody(f"{verb} --json", state, segment, [member])
        assert status == "0", said
        assert len(json.loads(said)[verb]) == (verb != "flows")
    data = json.loads(as_somebody("interfaces --json", state, segment, [member])[0])
    assert (data["interfaces"][0]["counters"], data["interfaces"][0]["queues"]) == (None, QUEUES)
    assert data["missing"] == [f"{link.name}: no XDP programs and counters: the kernel tells root only"]
    assert data["missing"][0] in as_somebody("interfaces", state, segment, [member])[0]
    # lcores are shown to those who may not know of interfaces
    data = json.loads(as_somebody("status --json", state, segment, [])[0])
    jsonschema.validate(data, SCHEMA)
    assert data["interfaces"] == []
    assert "root and members of its group may read it" in data["missing"][0]
    said, status = as_somebody("xdp status --json", state, segment, [])
    assert status == "0"
    assert f"{link.name}: no XDP programs: the kernel tells root only" in json.loads(said)["missing"]
    assert as_somebody(f"xdp load {link.name}", state, segment, [member])[1] == "5"


def test_status_shows_interfaces_too(server, connect, ctl, link):
    server()
    connect().get_queue(link.index)
    data = json.loads(ctl("status", "--json").stdout)
    jsonschema.validate(data, SCHEMA)
    (interface,) = data["interfaces"]
    assert (interface["interface"], interface["queues_used"]) == (link.name, 1)
    assert interface["users"][0]["owner"] in {instance["owner"] for instance in data["instances"]}
    assert any(line.split()[:1] == [link.name] for line in ctl("status").stdout.splitlines())


def test_names_cannot_write_on_the_terminal(ctl, tmp_path, link):
    with Ledger(tmp_path / "state") as ledger:
        evil = "evil\x1b]0;pwn\x07\nqueue 9 [red]"
        owner = ledger.enter(0x10, Process(1, 1, 1, 1, 0, evil, evil, evil))
        ledger.claim_queue(owner, link.index, QUEUES)
        ledger.use(owner, link.index)
    for verb in "queues", "interfaces":
        said = ctl(verb).stdout
        assert "\x1b" not in said
        assert "\nqueue 9" not in said
        assert "[red]" in said


def test_nothing_is_imported_for_unserved_interfaces(segment, tmp_path):
    code = (
        "import sys, mtlshm.ctl.app\n"
        "sys.argv = ['mtlshm-ctl', '--segment', sys.argv[1], 'status', '--json', '--state', sys.argv[2]]\n"
        "try:\n    mtlshm.ctl.app.main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "print([name for name in ('pyroute2', 'sqlite3', 'asyncio', 'mtlshm.net.ledger') if name in sys.modules])"
    )
    Host(segment).close()
    assert run_python(code, segment, tmp_path / "state").splitlines()[-1] == "[]"
    with Ledger(tmp_path / "state"):  # and with one, it is
        assert "mtlshm.net.ledger" in run_python(code, segment, tmp_path / "state").splitlines()[-1]


def test_a_damaged_ledger_is_named_and_lcores_are_shown(ctl, segment, tmp_path):
    Host(segment).close()
    (tmp_path / "state").mkdir()
    (tmp_path / "state/ledger").write_bytes(b"no ledger at all, but just as long as it takes" * 100)
    done = ctl("queues")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "damaged" in done.stderr
    data = json.loads(ctl("status", "--json").stdout)
    assert "damaged" in data["missing"][0]


def test_no_program_is_run_to_show_them(server, connect, environment, ctl, link, tmp_path):
    """They are shown again and again."""
    server()
    connect()
    (tmp_path / "bin").mkdir()
    for name in ("ethtool", "xdp-loader"):
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\ntouch {tmp_path}/was-run\n")
        (tmp_path / "bin" / name).chmod(0o755)
    environment["PATH"] = f"{tmp_path}/bin:{environment['PATH']}"
    for verb in ("interfaces", "status"):
        (interface,) = json.loads(ctl(verb, "--json").stdout)["interfaces"]
        assert (interface["queues"], interface["driver"], interface["mode"]) == (QUEUES, "veth", "native")
    assert not (tmp_path / "was-run").exists()
