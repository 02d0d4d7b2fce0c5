# SPDX-License-Identifier: BSD-3-Clause
"""status: a summary, and a row for each owner that says where it is."""

from __future__ import annotations

import json
import os
import re
import subprocess
from contextlib import ExitStack
from pathlib import Path

import jsonschema
import pytest

import mtlshm.ctl
from lab.processes import BIN, namespaces, needs_root, run_python
from lab.sysfs import Machine
from mtlshm import CpuSet, Host, LcoreType

SCHEMA = json.loads((Path(mtlshm.ctl.__file__).parent / "status.schema.json").read_text())


@pytest.fixture
def many(segment, tmp_path):
    """A host of 128 CPUs, all of them held by ten owners with whole cores."""
    sysfs = Machine(sockets=2, cores=32, threads=2, split=True).write(tmp_path / "sys")
    with Host(segment, sysfs=sysfs) as host, ExitStack() as stack:
        owners = [stack.enter_context(host.register(f"encoder number {n}", cpus=range(128))) for n in range(10)]
        for number in range(128):
            owners[number % 64 * 10 // 64].claim(number)
        yield


def rows(text: str, column: str) -> list[str]:
    """What is in that column of the table of owners."""
    lines = iter(text.splitlines())
    title = next(line for line in lines if line.split()[:1] == ["lcores"])
    start = title.index(column)
    return [line[start:].split("  ")[0].strip() for line in lines]


def test_the_summary_adds_up(ctl, segment, own_cpus):
    with Host(segment) as host, host.register("encoder") as me:
        me.claim(own_cpus[0])
        first, second, *_ = ctl("status").stdout.splitlines()
        data = json.loads(ctl("status", "--json").stdout)
    jsonschema.validate(data, SCHEMA)
    total, held, lent, free = map(int, re.findall(r"\d+(?= lcores|\b held| lent| free)", first))
    assert (total, held, lent, free) == (len(data["online"]), 1, 0, len(data["online"]) - 1)
    assert CpuSet(data["free"]) == CpuSet(data["online"]) - {own_cpus[0]}
    assert f"free ({CpuSet(data['free'])})" in first or not free
    assert second == f"{segment}; no daemon"


def test_what_is_lent_to_the_legacy_table_is_counted_apart(ctl, segment, own_cpus, daemon, legacy_place):
    daemon(environment=legacy_place | {"MTLSHMD_LEGACY": f"{own_cpus[0]}-{own_cpus[0]}"})
    text = ctl("status").stdout
    assert " 0 held, 1 lent," in text
    assert f"\n {own_cpus[0]} " in text
    assert json.loads(ctl("status", "--json").stdout)["lent"] == [own_cpus[0]]


@pytest.mark.parametrize("columns", [80, 40])
@pytest.mark.usefixtures("many")
def test_128_lcores_fit_a_terminal(environment, columns):
    code = (
        "import fcntl, os, pty, struct, sys, termios\n"
        "pid, terminal = pty.fork()\n"
        "if not pid:\n"
        f"    fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack('HHHH', 24, {columns}, 0, 0))\n"
        "    os.execv(sys.argv[1], [sys.argv[1], 'status'])\n"
        "try:\n    while piece := os.read(terminal, 65536):\n        os.write(1, piece)\nexcept OSError:\n    pass\n"
        "os.waitpid(pid, 0)"
    )
    command = [BIN / "python", "-c", code, BIN / "mtlshm-ctl"]
    done = subprocess.run(command, env=environment | {"TERM": "dumb"}, capture_output=True, text=True)
    shown = done.stdout.replace("\r\n", "\n").splitlines()
    assert shown[0].startswith("128 lcores: 128 held, 0 lent, 0 free"), done
    assert max(map(len, shown)) <= columns
    assert len(shown) < 24
    lcores = "".join(line.split()[0] for line in shown[4:])
    assert "0-6,64-70" in lcores
    assert lcores.endswith("127")


def test_owners_are_sorted_as_asked_for(ctl, segment, own_cpus):
    with Host(segment) as host, host.register("b") as old, host.register("A"), host.register("c") as most:
        most.claim(own_cpus[0])
        orders = {
            order: rows(ctl("status", "--sort", order).stdout, "owner") for order in ("lcores", "count", "owner", "age")
        }
        assert orders["lcores"][0] == orders["count"][0] == "c"
        assert orders["owner"] == ["A", "b", "c"]
        assert orders["age"] == ["b", "A", "c"]
        data = json.loads(ctl("status", "--json", "--sort", "age").stdout)
        assert [info["label"] for info in data["instances"]] == orders["age"]
        assert old
    assert ctl("status", "--sort", "colour").returncode == 2


def test_one_owner_may_be_asked_for(ctl, segment, own_cpus, puppet):
    other = puppet()
    with Host(segment) as host, host.register("encoder 7") as me:
        me.claim(own_cpus[0])
        for text in "coder 7", os.getpid():
            assert rows(ctl("status", "--owner", text).stdout, "owner") == ["encoder 7"]
        data = json.loads(ctl("status", "--json", "--owner", other.pid).stdout)
        assert ([info["pid"] for info in data["instances"]], data["lcores"]) == ([other.pid], [])
        assert data["held"] == [own_cpus[0]]
        done = ctl("status", "--owner", "nobody like that")
        assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "nobody of that name or pid is registered")


def test_wide_shows_each_lcore_and_the_use_of_its_cpu(ctl, segment, own_cpus):
    with Host(segment) as host, host.register("encoder") as me:
        for number in own_cpus:
            me.claim(number, LcoreType.LEASE)
        plain, wide = ctl("status").stdout, ctl("status", "--wide").stdout
    assert "CPU %" not in plain
    assert f"\n {CpuSet(own_cpus)} " in plain
    assert "app (lease)" in plain
    for number in own_cpus:
        (row,) = re.findall(rf"^ {number}  +app \(lease\) +encoder .*$", wide.split("\n\n")[1], re.MULTILINE)
        assert re.search(r"s +\d+ *$", row), "the use of its CPU is its last word"


def test_nothing_is_measured_that_is_not_shown(segment):
    """It would take the time of a sleep."""
    code = (
        "import sys, time, mtlshm.ctl.app\n"
        "def refuse(_): raise RuntimeError('slept')\n"
        "time.sleep = refuse\n"
        "sys.argv = ['mtlshm-ctl', '--segment', sys.argv[1], 'status', *sys.argv[2:]]\n"
        "try:\n    mtlshm.ctl.app.main()\nexcept SystemExit as end:\n    print(end.code or 0)\n"
        "except RuntimeError as error:\n    print(error)"
    )
    Host(segment).close()
    assert run_python(code, segment).splitlines()[-1] == "0"
    assert run_python(code, segment, "--wide").splitlines()[-1] == "slept"


def test_a_process_in_another_pid_namespace_has_its_pid_of_this_host(ctl, segment, puppet):
    there = puppet(prefix=(*namespaces("pid"), "--fork", "--kill-child"))
    (info,) = json.loads(ctl("status", "--json").stdout)["instances"]
    assert info["pid"] != info["host_pid"]
    assert os.stat(f"/proc/{info['host_pid']}/ns/pid").st_ino == info["pid_namespace"]
    assert rows(ctl("status").stdout, "pid") == [str(info["host_pid"])]
    assert rows(ctl("status", "--owner", info["host_pid"]).stdout, "pid") == [str(info["host_pid"])]
    there.kill()
    (info,) = json.loads(ctl("status", "--json").stdout)["instances"]
    assert (info["state"], info["host_pid"], info["container"]) == ("dead", None, None)


@needs_root("a host name of its own")
def test_a_process_with_another_host_name_is_shown_with_it(ctl, segment, puppet):
    puppet(prefix=(*namespaces("uts"), "sh", "-c", 'echo pod-1 >/proc/sys/kernel/hostname && exec "$@"', "sh"))
    (info,) = json.loads(ctl("status", "--json").stdout)["instances"]
    assert (info["host"], info["container"]) == ("pod-1", "pod-1")
    assert rows(ctl("status").stdout, "container") == ["pod-1"]


def test_from_a_pid_namespace_that_does_not_see_it_the_number_there_is_said(segment, start_ctl):
    with Host(segment) as host, host.register("outside"):
        inside = (*namespaces("pid", "mount"), "--fork", "--kill-child", "--mount-proc")
        text = start_ctl("status", within=inside).communicate()[0]
    assert f"{os.getpid()} in namespace {os.stat('/proc/self/ns/pid').st_ino}" in text
