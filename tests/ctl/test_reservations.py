# SPDX-License-Identifier: BSD-3-Clause
"""reserve, end and run --reservation: lcores that wait for whoever has their lease."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable

import pytest

from lab.processes import BIN, DEADLINE, held, look
from mtlshm import CpuSet, Host, Kind, LcoreType

CTL = str(BIN / "mtlshm-ctl")
PYTHON = str(BIN / "python")
Ctl = Callable[..., subprocess.CompletedProcess[str]]
WORKER = "from mtlshm import Host\nwith Host() as host, host.register('worker') as me:\n    print(me.claim_many(1))"


def settings(output: str) -> dict[str, str]:
    return dict(line.split("=") for line in output.splitlines())


def test_reservation_outlasts_its_maker_and_prints_its_settings(ctl: Ctl, segment: str) -> None:
    done = ctl("reserve", "studio", "--lcores", 1)
    assert (done.returncode, done.stderr) == (0, "")
    said = settings(done.stdout)
    assert list(said) == ["MTLSHM_LCORES", "MTLSHM_LEASE"]
    (info,) = look(segment).instances
    assert (info.kind, info.key, info.lcores) == (Kind.RESERVATION, "studio", CpuSet.parse(said["MTLSHM_LCORES"]))
    assert ctl("gc").stdout == "nothing to collect\n"
    assert held(segment) == info.lcores


def test_its_lines_are_for_env_and_for_eval(ctl: Ctl, segment: str, environment: dict[str, str]) -> None:
    for script in (
        'env $("$0" reserve studio --lcores 1) "$1" -c "$2"',
        'eval "$("$0" reserve studio --lcores 1)"; export MTLSHM_LEASE; "$1" -c "$2"',
    ):
        command = ["sh", "-c", script, CTL, PYTHON, WORKER]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=DEADLINE)
        assert done.stdout.strip() == str(CpuSet(held(segment))), done.stderr
    (info,) = look(segment).instances
    assert info.key == "studio"


def test_reserving_it_again_changes_nothing(ctl: Ctl, segment: str, own_cpus: list[int]) -> None:
    first = ctl("reserve", "studio", "--lcores", 1)
    assert ctl("reserve", "studio", "--lcores", 1).stdout == first.stdout
    assert ctl("reserve", "studio", "--lcores", 1, "--smt", "avoid").stdout == first.stdout
    done = ctl("reserve", "studio", "--workers", 1)
    assert (done.returncode, done.stdout) == (4, "")
    lcores = settings(first.stdout)["MTLSHM_LCORES"]
    assert f"studio has 1 lcore reserved ({lcores}), 2 asked for" in done.stderr
    assert "mtlshm-ctl end studio" in done.stderr
    assert len(held(segment)) == 1


def test_it_is_the_same_while_a_tenant_uses_it(ctl: Ctl, segment: str) -> None:
    with Host(segment) as host:
        made = host.reserve("studio", 1)
        with host.register("worker", parent=made.owner) as me:
            me.claim_many(1)
            done = ctl("reserve", "studio", "--lcores", 1)
    assert settings(done.stdout)["MTLSHM_LCORES"] == str(made.lcores)


def test_json_says_the_same(ctl: Ctl) -> None:
    said = settings(ctl("reserve", "studio", "--lcores", 1).stdout)
    data = json.loads(ctl("reserve", "studio", "--lcores", 1, "--json").stdout)
    assert data.keys() == {"name", "lcores", "lease", "owner", "existed"}
    assert (data["name"], str(CpuSet(data["lcores"])), data["lease"]) == ("studio", *said.values())
    assert data["existed"] is True
    assert data["owner"] == f"0x{data['lease'].split('@')[0]}"


def test_run_uses_it_and_leaves_it(ctl: Ctl, segment: str) -> None:
    said = settings(ctl("reserve", "studio", "--lcores", 1).stdout)
    code = f"import os; print(os.environ['MTLSHM_LEASE'], os.sched_getaffinity(0))\n{WORKER}"
    for _ in range(2):
        done = ctl("run", "--reservation", "studio", PYTHON, "-c", code, "{lcores}")
        (cpu,) = CpuSet.parse(said["MTLSHM_LCORES"])
        assert done.stdout.splitlines() == [f"{said['MTLSHM_LEASE']} {{{cpu}}}", str(cpu)], done.stderr
        assert [info.kind for info in look(segment).instances] == [Kind.RESERVATION]
    assert ctl("run", "--reservation", "studio", "echo", "{lcores}").stdout == f"{cpu}\n"
    assert ctl("run", "--reservation", "studio", "sh", "-c", "exit 7").returncode == 7


def test_a_run_with_a_claim_of_its_own_draws_from_it(ctl: Ctl, segment: str) -> None:
    ctl("reserve", "studio", "--lcores", 1)
    done = ctl("run", "--reservation", "studio", CTL, "run", "--lcores", 1, "sh", "-c", "echo $MTLSHM_LCORES")
    assert done.stdout == f"{CpuSet(held(segment))}\n"
    done = ctl("run", "--reservation", "studio", CTL, "run", "--lcores", 2, "true")
    assert done.returncode == 125
    assert (
        "2 lcores asked for, 1 free of the 1 that this process may use of the lease of reservation studio"
        in done.stderr
    )


def test_end_frees_it_and_names_remaining_users(ctl: Ctl, segment: str) -> None:
    with Host(segment) as host:
        made = host.reserve("studio", 1)
        between = host.register("run", parent=made.owner)
        between.claim_many(1, type=LcoreType.LEASE)
        with host.register("worker", parent=between.owner) as me:
            me.claim_many(1)
            done = ctl("end", "studio")
            assert done.returncode == 0
            assert f"studio ended: lcores {made.lcores}\n" in done.stdout
            assert f"in use until they are given back: by worker (pid {os.getpid()}," in done.stdout
            assert done.stdout.count("in use") == 1
            assert held(segment) == made.lcores
        between.close()
        assert held(segment) == set()
        assert host.reservation("studio") is None


@pytest.mark.parametrize(
    ("words", "status"), [(("end", "studio"), 3), (("run", "--reservation", "studio", "true"), 125)]
)
def test_a_name_that_there_is_not_is_told_which_there_are(
    ctl: Ctl, segment: str, words: tuple[str, ...], status: int
) -> None:
    Host(segment).close()
    done = ctl(*words)
    assert done.returncode == status
    assert "no reservation studio; nothing is reserved" in done.stderr
    with Host(segment) as host:
        host.reserve("foyer", 1)
    done = ctl(*words)
    assert done.returncode == status
    assert "no reservation studio; there are foyer" in done.stderr


@pytest.mark.parametrize("words", [("end", "studio"), ("run", "--reservation", "studio", "true")])
def test_no_segment_is_made_to_look_for_one(ctl: Ctl, segment: str, words: tuple[str, ...]) -> None:
    assert ctl(*words).returncode == (3 if words[0] == "end" else 125)
    assert not os.path.exists(segment)


@pytest.mark.parametrize("words", [("",), ("x" * 64,), ("a", "--workers", "1"), ("a", "--numa", "0", "--near", "lo")])
def test_a_reservation_that_makes_no_sense_is_wrong_usage(ctl: Ctl, segment: str, words: tuple[str, ...]) -> None:
    assert ctl("reserve", "--lcores", 1, *words).returncode == 2
    assert not os.path.exists(segment)


def test_too_few_free_is_refused_in_numbers(ctl: Ctl, segment: str, own_cpus: list[int]) -> None:
    with Host(segment) as host, host.register("encoder") as me:
        me.claim_many(len(own_cpus))
        done = ctl("reserve", "studio", "--lcores", 1)
    assert done.returncode == 4
    assert f"1 lcore asked for, 0 free of the {len(own_cpus)} that this process may use; held:" in done.stderr


def test_status_shows_the_reservation_and_its_use(ctl: Ctl, segment: str) -> None:
    with Host(segment) as host:
        made = host.reserve("studio", 1)
        with host.register("worker", parent=made.owner) as me:
            (cpu,) = me.claim_many(1)
            data = json.loads(ctl("status", "--json").stdout)
            there = next(info for info in data["instances"] if info["kind"] == "reservation")
            assert (there["key"], there["label"], there["state"]) == ("studio", "studio", "alive")
            assert (there["lcores"], there["lent"], there["parent"]) == ([], [cpu], None)
            (lcore,) = data["lcores"]
            assert (lcore["label"], lcore["type"], lcore["parent"]) == ("worker", "app", there["owner"])
            rows = [line.split() for line in ctl("status").stdout.splitlines()]
            (used,) = [row for row in rows if row[:2] == [str(cpu), "app"]]
            assert "studio" in used
            (shown,) = [row for row in rows if row[2:3] == ["studio"]]
            assert shown[-2:] == ["-", str(cpu)]
        (lcore,) = json.loads(ctl("status", "--json").stdout)["lcores"]
        assert (lcore["label"], lcore["type"]) == ("studio", "lease")
