# SPDX-License-Identifier: BSD-3-Clause
"""mtlshm-ctl legacy, with a daemon that bridges the table, with one that is gone, and where none ever was."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from lab.processes import BIN, eventually, held, look, namespaces, needs_root
from mtlshm import Kind


@pytest.fixture(autouse=True)
def place(environment, legacy_place):
    """What makes mtlshm-ctl use the test's legacy table."""
    environment.update(legacy_place)


@pytest.fixture
def bridge(daemon, legacy_place):
    """Starts a daemon that lends `lent`."""
    return lambda lent: daemon("--legacy", lent, environment=legacy_place)


@pytest.fixture(params=["with a daemon", "without"])
def then(request):
    """What to do with a daemon, once it has done its part: nothing, or kill it."""
    return (lambda _: None) if request.param == "with a daemon" else (lambda server: server.end(signal.SIGKILL))


def states(ctl):
    data = json.loads(ctl("legacy", "info", "--json").stdout)
    return {lcore["lcore"]: lcore["state"] for lcore in data["lcores"] if lcore["state"] != "ours"}


def lent(segment):
    return {lcore.number for lcore in look(segment).lcores if lcore.owner.kind == Kind.POOL}


def of_legacy(segment):
    return {lcore.number for lcore in look(segment).lcores if lcore.owner.kind == Kind.LEGACY}


def claim_all(process):
    got = set()
    while (lcore := process.claim(0)) >= 0:
        got.add(lcore)
    return got


# --- info ------------------------------------------------------------------------------------------------


def test_info_shows_both_sides(ctl, bridge, legacy, puppet, segment):
    process, client = legacy(), puppet()
    process.claim(0)
    process.claim(0)
    client.claim(1)
    bridge("5-7")
    process.claim(2)
    eventually(lambda: of_legacy(segment) == {0, 5})
    assert states(ctl) == {0: "legacy", 1: "clash", 5: "legacy", 6: "lent", 7: "lent"}
    lines = ctl("legacy", "info").stdout.splitlines()
    assert "bridged" in lines[0]
    row = next(line for line in lines if line.split()[:2] == ["1", "clash"])
    assert f"legacy_process (pid {process.pid})" in row
    assert f"puppet (pid {client.pid}" in row


def test_info_where_no_daemon_ever_was(ctl, legacy):
    process = legacy()
    process.claim(0)
    assert states(ctl) == {0: "not taken over"}
    assert "not bridged" in ctl("legacy", "info").stdout


@pytest.mark.parametrize("command", [["info"], ["clean"], ["reclaim", "1"]])
def test_with_no_legacy_table_there_it_says_so_and_makes_none(ctl, legacy_place, puppet, command):
    puppet()
    result = ctl("legacy", *command)
    assert result.returncode == 1
    assert legacy_place["MTLSHM_LEGACY_LOCK"] in result.stderr
    assert not Path(legacy_place["MTLSHM_LEGACY_LOCK"]).exists()


def test_a_lock_that_is_never_given_back_is_said(ctl, bridge, legacy):
    bridge("5-7")
    legacy().take_lock()
    result = ctl("legacy", "info")
    assert result.returncode == 1
    assert "held" in result.stderr


# --- lend and reclaim ------------------------------------------------------------------------------------


def test_lent_lcores_are_for_legacy_processes_only(ctl, bridge, legacy, puppet, segment, then):
    process, client = legacy(), puppet()
    then(bridge("5-5"))
    assert ctl("legacy", "lend", "8-9").stdout == "lent 8-9\n"
    assert client.claim(8) == -16
    assert claim_all(process) == {5, 8, 9}


def test_reclaimed_lcores_are_for_others_only(ctl, bridge, legacy, puppet, segment, then):
    process, client = legacy(), puppet()
    then(bridge("5-7"))
    assert ctl("legacy", "reclaim", "2").stdout == "reclaimed 5-6\n"
    assert claim_all(process) == {7}
    assert client.claim(5) == 0


def test_daemon_does_not_lend_reclaimed_lcores_until_told_to(ctl, bridge, legacy, segment):
    process = legacy()
    server = bridge("5-7")
    ctl("legacy", "reclaim", "5,6")
    for restart in False, True:
        if restart:
            server.end(signal.SIGKILL)
            server = bridge("5-7")
        assert process.claim(0) == 7
        eventually(lambda: of_legacy(segment) == {7})
        assert process.release(7) == 0
        eventually(lambda: lent(segment) == {7})
        assert states(ctl) == {5: "reclaimed", 6: "reclaimed", 7: "lent"}
    assert ctl("legacy", "lend", "1").stdout in ("lent 5\n", "lent 6\n")
    assert ctl("legacy", "lend", "1").stdout in ("lent 5\n", "lent 6\n")
    assert states(ctl) == {5: "lent", 6: "lent", 7: "lent"}


def test_reclaim_lowers_a_loan_given_as_a_number(ctl, bridge, legacy, segment):
    online = os.sched_getaffinity(0)
    if len(online) < 2 or max(online) >= 128:
        pytest.skip("needs two CPUs; not tested otherwise: reclaiming from a loan by number")
    process = legacy()
    bridge(1)
    assert ctl("legacy", "reclaim", "1").returncode == 0
    process.take_lock()
    process.give_lock()
    assert ctl("legacy", "lend", "60-60").returncode == 0
    assert process.claim(0) == 60
    eventually(lambda: of_legacy(segment) == {60})
    assert lent(segment) == set()


def test_lcores_lent_beyond_the_setting_are_reclaimed_without_a_mark(ctl, bridge, legacy, segment):
    legacy()
    bridge("5-5")
    ctl("legacy", "lend", "8-9")
    assert ctl("legacy", "reclaim", "2").stdout == "reclaimed 8-9\n"
    assert states(ctl) == {5: "lent"}


@pytest.mark.parametrize("amount", ["4-5", "20", "7-8"])
def test_unavailable_lcores_are_refused_and_nothing_changes(ctl, bridge, legacy, puppet, segment, amount):
    process, client = legacy(), puppet()
    client.claim(8)
    bridge("5-7")
    process.claim(7)
    eventually(lambda: of_legacy(segment) == {7})
    before = states(ctl)
    assert ctl("legacy", "reclaim", amount).returncode == 4
    assert ctl("legacy", "lend", amount.replace("20", "2000")).returncode == 4
    assert states(ctl) == before


def test_a_number_is_of_cpus_that_the_machine_has(ctl, bridge, legacy, segment):
    """The legacy table has room for more."""
    legacy()
    bridge(0)
    cpus = len(os.sched_getaffinity(0))
    if cpus != os.cpu_count():
        pytest.skip("not all CPUs are ours")
    assert ctl("legacy", "lend", cpus + 1).returncode == 4
    assert ctl("legacy", "lend", cpus).returncode == 0
    assert lent(segment) == os.sched_getaffinity(0)
    assert ctl("legacy", "lend", "1023-1023").returncode == 4


@pytest.mark.parametrize("amount", ["some", "", "5-"])
def test_malformed_amount_is_refused(ctl, bridge, amount):
    bridge("5-7")
    assert ctl("legacy", "lend", amount).returncode == 2


def test_nothing_can_be_lent_where_nothing_is_reserved(ctl, legacy, puppet, segment):
    legacy(), puppet()
    assert ctl("legacy", "lend", "5-5").returncode == 4
    assert held(segment) == set()


def test_release_does_not_free_lent_lcores(ctl, bridge, segment):
    bridge("5-7")
    result = ctl("release", "--force", "--yes", "5")
    assert result.returncode == 1
    assert "legacy reclaim 5-5" in result.stderr
    assert lent(segment) == {5, 6, 7}


@needs_root("lcores that were lent in another IPC namespace")
def test_lcores_lent_to_a_lost_table_can_be_reclaimed(ctl, daemon, legacy_place, legacy, segment):
    """That of a removed container."""
    keeper = legacy(prefix=("unshare", "--ipc"))
    within = ("nsenter", f"--target={keeper.pid}", "--ipc")
    daemon("--legacy", "5-7", environment=legacy_place, prefix=within).kill()
    assert lent(segment) == {5, 6, 7}
    assert ctl("legacy", "reclaim", "5-7").returncode != 0
    assert lent(segment) == {5, 6, 7}
    keeper.kill()
    # Not while the namespace of another test has got its inode.
    said = eventually(lambda: ctl("legacy", "reclaim", "3").stdout)
    assert said == "reclaimed 5-7, lent to a legacy table that is gone\n"
    assert held(segment) == set()


# --- clean -----------------------------------------------------------------------------------------------


@needs_root("the dead of a container cleaned up by its host name, which only root may look up")
def test_clean_deletes_entries_of_the_dead_only(ctl, legacy):
    """Of whatever host name and PID namespace."""

    def container(name):  # the processes in which have the same PID as they see themselves
        return (*namespaces("pid", "uts"), "sh", "-c", f'hostname {name} && exec "$@"', "sh")

    living, dead = [legacy(), legacy(prefix=container("a"))], [legacy(), legacy(prefix=container("b"))]
    assert [each.claim(0) for each in (*living, *dead)] == [0, 1, 2, 3]
    for each in dead:
        each.kill()
    output = ctl("legacy", "clean").stdout
    assert [lcore for lcore in range(128) if living[0].active(lcore)] == [0, 1]
    assert f"lcore 2: deleted legacy_process (pid {dead[0].pid})" in output
    assert "lcore 3" in output


def test_clean_frees_a_dead_entry_on_one_side_only(ctl, bridge, legacy, puppet, segment):
    """With no daemon there; the next one agrees with it."""
    warden, clashing, borrower, client = legacy(), legacy(), legacy(), puppet()
    assert clashing.claim(0) == 0
    client.claim(0)
    server = bridge("5-6")
    assert borrower.claim(1) == 5
    eventually(lambda: of_legacy(segment) == {5})
    server.end(signal.SIGKILL)
    clashing.kill()
    borrower.kill()
    ctl("legacy", "clean")
    assert {lcore for lcore in range(128) if not warden.active(lcore)} == {5, 6}
    assert held(segment) == {0, 5, 6}
    bridge("5-6")
    assert {lcore for lcore in range(128) if not warden.active(lcore)} == {5, 6} == lent(segment)
    assert client.release(0) == 0


def test_clean_with_somebody_hidden_takes_nobody_for_dead(ctl, legacy, environment, segment):
    """Run in a PID namespace of its own."""
    process = legacy()
    process.claim(0)
    command = [*namespaces("pid"), str(BIN / "mtlshm-ctl"), "legacy", "clean"]
    result = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    assert "left alone" in result.stdout
    assert process.active(0)
