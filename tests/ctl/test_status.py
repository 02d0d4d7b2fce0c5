# SPDX-License-Identifier: BSD-3-Clause
"""status shows who holds what, truly, and changes nothing."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import jsonschema
import pytest

import mtlshm.ctl
from lab.processes import BIN, UNPRIVILEGED, as_user, look, namespaces, needs_root, run_python
from mtlshm import Host, LcoreType

SCHEMA = json.loads((Path(mtlshm.ctl.__file__).parent / "status.schema.json").read_text())


def test_with_no_segment_it_says_so_in_one_line(ctl, segment):
    done = ctl("status")
    assert done.returncode == 3
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert segment in done.stderr


def test_json_matches_the_schema_and_the_table(ctl, segment, own_cpus, daemon, puppet):
    daemon()
    victim = puppet()
    with Host(segment) as host, host.register("fünf [b]Kerne[/b]") as me:
        me.claim(own_cpus[0], LcoreType.TAP)
        done = ctl("status", "--json")
        data = json.loads(done.stdout)
        jsonschema.validate(data, SCHEMA)

        mine = next(i for i in data["instances"] if i["pid"] == os.getpid())
        assert mine["label"] == "fünf [b]Kerne[/b]"
        assert mine["comm"] == Path("/proc/self/comm").read_text().strip()
        assert (mine["uid"], mine["host"], mine["kind"]) == (os.getuid(), os.uname().nodename, "shm")
        assert mine["state"] == "alive"
        assert mine["lcores"] == [own_cpus[0]]
        assert mine["pid_namespace"] == os.stat("/proc/self/ns/pid").st_ino
        assert {i["pid"] for i in data["instances"]} >= {os.getpid(), victim.pid}
        (lcore,) = data["lcores"]
        assert (lcore["lcore"], lcore["type"], lcore["owner"]) == (own_cpus[0], "tap", mine["owner"])
        assert 0 <= lcore["cpu_percent"] <= 100
        assert data["daemon"] in {i["owner"] for i in data["instances"] if i["kind"] == "daemon"}
        assert set(own_cpus) <= set(data["online"])


def test_the_schema_can_be_violated():
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"segment": 3}, SCHEMA)


def test_the_table_for_people_names_owner_type_and_user(ctl, segment, own_cpus):
    with Host(segment) as host, host.register("fünf [b]Kerne[/b]") as me:
        me.claim(own_cpus[0], LcoreType.SCH)
        lines = ctl("status").stdout.splitlines()
    row = next(line for line in lines if line.split()[:2] == [str(own_cpus[0]), "sch"])
    assert "fünf [b]Kerne[/b]" in row
    assert str(os.getpid()) in row


def test_the_dead_are_shown_as_dead_and_left_alone(ctl, segment, puppet):
    victim = puppet()
    victim.claim(0)
    victim.kill()
    data = json.loads(ctl("status", "--json").stdout)
    assert [(i["pid"], i["state"], i["lcores"]) for i in data["instances"]] == [(victim.pid, "dead", [0])]
    assert look(segment).collected == 0


def test_a_record_kept_for_its_tenants_is_told_from_the_dead(ctl, segment, puppet):
    root = puppet()
    root.claim(3, LcoreType.LEASE)
    middle, leaf = puppet(ready=False), puppet(ready=False)
    for member, parent in (middle, root), (leaf, middle):
        member.open(1)
        member.register_under(parent.owner())
    middle.claim(3, LcoreType.LEASE)
    leaf.claim(3)
    kept = middle.owner()
    middle.kill()
    root.sweep()
    instances = {int(each["owner"], 16): each for each in json.loads(ctl("status", "--json").stdout)["instances"]}
    assert {owner: each["state"] for owner, each in instances.items()} == {
        root.owner(): "alive",
        kept: "kept",
        leaf.owner(): "alive",
    }
    assert (instances[kept]["lent"], instances[leaf.owner()]["parent"]) == ([3], hex(kept))
    (row,) = [line for line in ctl("status").stdout.splitlines() if "kept" in line]
    assert str(middle.pid) in row


def test_watch_shows_it_again_and_again_until_interrupted(start_ctl, segment, own_cpus):
    with Host(segment) as host, host.register("watched") as me:
        process = start_ctl("status", "--watch", "0.1", "--json")
        assert process.stdout
        assert json.loads(process.stdout.readline())["lcores"] == []
        me.claim(own_cpus[0])
        while not (lcores := json.loads(process.stdout.readline())["lcores"]):
            pass
        assert lcores[0]["label"] == "watched"
        process.send_signal(signal.SIGINT)
        assert process.wait() == 0


@needs_root("status by a user outside the group")
def test_others_may_look_if_the_administrator_says_so(segment):
    code = (
        f"import os, sys, psutil, mtlshm.ctl.app\nmtlshm.ctl.app.load()\n{as_user(UNPRIVILEGED, UNPRIVILEGED, [])}"
        "sys.argv = ['mtlshm-ctl', '--segment', sys.argv[1], 'status', '--json']\n"
        "try:\n    mtlshm.ctl.app.main()\nexcept SystemExit as end:\n    print(end.code)"
    )
    with Host(segment) as host, host.register("seen"):
        assert run_python(code, segment) == "5\n"
        os.chmod(segment, 0o664)
        *lines, status = run_python(code, segment).splitlines()
        assert status == "0"
        assert json.loads("\n".join(lines))["instances"][0]["label"] == "seen"


def test_names_cannot_write_on_the_terminal(ctl, segment, own_cpus):
    with Host(segment) as host, host.register("evil\x1b]0;pwn\x07\n9 is held by nobody :smile: [red]") as me:
        me.claim(own_cpus[0])
        for done in ctl("status"), ctl("release", "--force", own_cpus[0], answer="n\n"):
            assert "\x1b" not in done.stdout
            assert ":smile: [red]" in done.stdout, done.stderr
            assert "\n9 is held" not in done.stdout


def test_watch_without_a_terminal_prints_each_round(start_ctl, segment):
    with Host(segment) as host, host.register("watched"):
        process = start_ctl("status", "--watch", "0.1")
        assert process.stdout
        rounds = 0
        while rounds < 3:
            rounds += "watched" in process.stdout.readline()


@pytest.mark.parametrize("interval", ["nan", "inf", "0", "-1"])
def test_an_interval_that_cannot_be_is_wrong_usage(ctl, segment, interval):
    Host(segment).close()
    assert ctl("status", "--watch", interval).returncode == 2


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one CPU; not tested: use of another")
def test_use_is_that_of_the_cpu_of_that_number_when_cpus_come_and_go(start_ctl, segment, tmp_path):
    """CPU 1 is busy, all others idle; then CPU 0 goes offline."""

    def write(cpus, seconds):
        rows = (
            f"cpu{n} {100 * seconds if n == 1 else 0} 0 0 {0 if n == 1 else 100 * seconds} 0 0 0 0 0 0" for n in cpus
        )
        (tmp_path / "new").write_text("\n".join(["cpu  1 0 0 1 0 0 0 0 0 0", *rows, "ctxt 1", "btime 1", ""]))
        (tmp_path / "stat").write_bytes((tmp_path / "new").read_bytes())

    write(range(4), 1)
    script = f'mount --bind {tmp_path / "stat"} /proc/stat && exec "$@"'
    with Host(segment) as host, host.register("busy") as me:
        me.claim(1)
        process = start_ctl("status", "--watch=0.1", "--json", within=(*namespaces("mount"), "sh", "-c", script, "sh"))
        seconds = 1
        for cpus in (0, 1, 2, 3), (1, 2, 3):
            data = {"online": []}
            while data["online"] != list(cpus) or not data["lcores"][0]["cpu_percent"]:
                seconds += 1
                write(cpus, seconds)
                data = json.loads(process.stdout.readline())
            assert data["lcores"][0]["cpu_percent"] == 100


OFFSET = 100_000  # seconds; no test takes as long


@pytest.mark.parametrize("offset", [OFFSET, -1])
def test_an_age_is_the_same_in_every_time_namespace(start_ctl, segment, puppet, offset):
    elsewhere = (*namespaces("time", "mount"), f"--monotonic={offset}", "--fork", "--kill-child")
    there = puppet(prefix=elsewhere)
    with Host(segment) as host, host.register("here") as me:
        shown = json.loads(start_ctl("status", "--json", within=elsewhere).communicate()[0])["instances"]
        assert {i["pid"] for i in shown} >= {os.getpid()}
        assert all(0 < i["age"] < OFFSET / 2 for i in shown)
        assert len(shown) == 2
        info = host.inspect(there.owner())
        assert 0 < info.age < OFFSET / 2
        assert 0 < host.inspect(me.owner).age < OFFSET / 2


def test_lcores_under_run_show_user_and_parent(ctl, segment, own_cpus):
    code = (
        "import subprocess, sys\nfrom mtlshm import Host\n"
        "with Host() as host, host.register('worker') as me:\n    me.claim_many(1)\n"
        "    subprocess.run([sys.argv[1], 'status', '--json'])\n    subprocess.run([sys.argv[1], 'status'])"
    )
    done = ctl("run", "--lcores", len(own_cpus), BIN / "python", "-c", code, BIN / "mtlshm-ctl")
    data, end = json.JSONDecoder().raw_decode(done.stdout)
    jsonschema.validate(data, SCHEMA)
    outer, worker = data["instances"]
    assert (outer["parent"], outer["key"], worker["parent"]) == (None, None, outer["owner"])
    used = [lcore for lcore in data["lcores"] if lcore["owner"] == worker["owner"]]
    assert [lcore["lcore"] for lcore in used] == worker["lcores"] == outer["lent"]
    assert used[0]["parent"] == outer["owner"]
    rest = [lcore for lcore in data["lcores"] if lcore["owner"] == outer["owner"]]
    assert all((lcore["type"], lcore["lease"]) == ("app", True) for lcore in rest)
    assert not used[0]["lease"]
    assert sorted(outer["lcores"] + outer["lent"]) == own_cpus
    (row,) = [line for line in done.stdout[end:].splitlines() if line.split()[1:3] == ["app", "worker"]]
    assert f"({outer['pid']})" in row


def test_without_tenants_the_table_has_no_column_for_parents(ctl, segment, own_cpus):
    with Host(segment) as host, host.register("encoder") as me:
        me.claim(own_cpus[0])
        assert "parent" not in ctl("status").stdout
        me.release(own_cpus[0])
        me.claim(own_cpus[0], LcoreType.LEASE)
        assert "parent" in ctl("status").stdout
        assert "app (lease)" in ctl("status").stdout
