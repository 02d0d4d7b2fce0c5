# SPDX-License-Identifier: BSD-3-Clause
"""run and hold: lcores are claimed for as long as a command, or we, last."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import psutil
import pytest

from lab.processes import BIN, DEADLINE, held, look, namespaces
from mtlshm import CpuSet, Host, Topology

CTL = str(BIN / "mtlshm-ctl")


def first_line(process) -> str:
    assert process.stdout
    return process.stdout.readline().strip()


def test_the_command_runs_on_its_lcores_and_knows_them(ctl, segment, own_cpus):
    code = "import os; print(os.environ['MTLSHM_LCORES']); print(sorted(os.sched_getaffinity(0)))"
    done = ctl("run", "--lcores", 1, "--", "python3", "-c", code)
    lcores, affinity = done.stdout.splitlines()
    assert affinity == str(sorted(CpuSet.parse(lcores)))
    assert done.returncode == 0
    assert held(segment) == set()


def test_options_of_the_command_are_the_commands(ctl):
    assert ctl("run", "--lcores", 1, "echo", "--lcores", "9", "--help").stdout == "--lcores 9 --help\n"


@pytest.mark.parametrize("count", [1024, 5000])
def test_impossible_count_is_refused_and_nothing_is_started(ctl, segment, count):
    done = ctl("run", "--lcores", count, "--", "echo", "started")
    assert done.returncode == 125
    assert done.stdout == ""
    assert f"{count} lcores" in done.stderr
    assert held(segment) == set()


def test_too_few_free_is_refused_and_nothing_is_started(ctl, segment, own_cpus):
    with Host(segment) as host, host.register("all of them") as me:
        me.claim_many(len(own_cpus))
        done = ctl("run", "--lcores", 1, "--", "echo", "started")
    assert (done.returncode, done.stdout) == (125, "")
    assert f"0 free of the {len(own_cpus)} " in done.stderr


def test_a_node_that_does_not_exist_is_refused(ctl):
    done = ctl("run", "--lcores", 1, "--numa", 63, "--", "true")
    assert done.returncode == 125
    assert "NUMA node" in done.stderr


def test_the_claim_lasts_as_long_as_the_command(start_ctl, segment):
    process = start_ctl("run", "--lcores", 1, "sh", "-c", "echo up; exec sleep 1000")
    first_line(process)
    assert len(held(segment)) == 1
    (child,) = psutil.Process(process.pid).children()
    child.kill()
    assert process.wait() == 128 + signal.SIGKILL
    assert held(segment) == set()


def test_the_table_names_the_command(start_ctl, segment):
    process = start_ctl("run", "--lcores", 1, "sh", "-c", "echo up; exec sleep 1000")
    first_line(process)
    (lcore,) = look(segment).lcores
    assert lcore.owner.label == "sh -c echo up; exec sleep 1000"
    assert lcore.owner.pid == process.pid


def test_hold_keeps_given_lcores_until_it_is_stopped(start_ctl, segment, own_cpus):
    process = start_ctl("hold", own_cpus[-1])
    assert first_line(process) == str(own_cpus[-1])
    assert held(segment) == {own_cpus[-1]}
    process.terminate()
    assert process.wait() == 0
    assert held(segment) == set()


def test_hold_finds_lcores_by_policy(start_ctl, segment):
    process = start_ctl("hold", "--lcores", 1)
    assert CpuSet.parse(first_line(process)) == held(segment)


def test_hold_takes_all_or_none(ctl, segment, own_cpus):
    with Host(segment) as host, host.register("in the way") as me:
        me.claim(own_cpus[-1])
        done = ctl("hold", CpuSet(own_cpus))
        assert done.returncode == 4
        assert held(segment) == {own_cpus[-1]}


@pytest.mark.parametrize("words", [(), ("1", "--lcores", "1"), ("3-1",), ("one",), ("",)])
def test_hold_refuses_invalid_arguments(ctl, words):
    done = ctl("hold", *words)
    assert done.returncode == 2
    assert "Error" in done.stderr


def test_an_lcore_that_is_no_cpu_here_is_refused(ctl):
    absent = max(map(int, (d.name[3:] for d in Path("/sys/devices/system/cpu").glob("cpu[0-9]*")))) + 1
    done = ctl("hold", absent)
    assert done.returncode == 1
    assert "absent or offline" in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ("hold", "4294967296"),
        ("hold", "0-999999999"),
        ("hold", "0", "--numa", "0"),
        ("run", "--lcores", "1", "--numa", "99999999999", "true"),
    ],
)
def test_numbers_that_cannot_be_meant_are_wrong_usage(ctl, words):
    done = ctl(*words)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("verb", ["run", "hold"])
@pytest.mark.parametrize("count", [0, -1])
def test_a_number_that_makes_no_sense_is_wrong_usage(ctl, verb, count):
    done = ctl(verb, "--lcores", count, *(["true"] if verb == "run" else []))
    assert done.returncode == 2
    assert "--lcores" in done.stderr
    assert f"{count} is not in the range" in done.stderr


def test_refusal_counts_free_lcores_and_names_holders(ctl, segment, own_cpus):
    with Host(segment) as host, host.register("encoder") as other:
        lcores = other.claim_many(len(own_cpus))
        done = ctl("run", "--lcores", 1, "true")
        assert done.returncode == 125
        assert f"1 lcore asked for, 0 free of the {len(own_cpus)} that this process may use" in done.stderr
        assert f"held: {lcores} by encoder (pid {os.getpid()}," in done.stderr
        assert ctl("hold", "--lcores", 1).returncode == 4
        done = ctl("hold", min(lcores))
        assert done.returncode == 4
        assert f"lcore {min(lcores)}: held by encoder (pid {os.getpid()}," in done.stderr


def test_impossible_count_error_says_how_many_exist(ctl, own_cpus):
    for count in len(own_cpus) + 1, 100000:
        done = ctl("run", "--lcores", count, "true")
        assert done.returncode == 125
        assert f"{count} lcores asked for, {len(own_cpus)} free of the {len(own_cpus)}" in done.stderr
        assert "ask for fewer" in done.stderr


# --- leases -----------------------------------------------------------------------------------------

PYTHON = str(BIN / "python")
needs_two = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one CPU; not tested: leases of two")
CLAIM_ONE = (
    "import os\n"
    "from mtlshm import Busy, Host\n"
    "with Host() as host, host.register('worker') as me:\n"
    "    os.write(1, f'{me.claim_many(1)}\\n'.encode())\n"  # in one piece, as another writes there at the same time
    "    input()\n"
    "    try:\n        print(me.claim_many(1))\n"
    "    except Busy:\n        print('no more', flush=True)\n"
    "    input()"
)


def test_program_under_run_claims_runs_lcores(ctl, segment, own_cpus):
    code = (
        "from mtlshm import Host, MtlshmError\n"
        "with Host() as host, host.register('worker') as me:\n"
        "    print(me.claim_many(1))\n"
        "    print(host.inspect(host.inspect(me.owner).parent).label.split()[0])\n"
        "    try:\n        me.claim_many(1)\n"
        "    except MtlshmError as error:\n        print(error.strerror)"
    )
    done = ctl("run", "--lcores", 1, "--", PYTHON, "-c", code)
    assert done.returncode == 0, done.stderr
    lcore, parent, refusal = done.stdout.splitlines()
    assert int(lcore) in own_cpus
    assert parent == PYTHON
    assert refusal.startswith("1 lcore:")
    assert held(segment) == set()


def test_lcores_come_back_to_run_when_a_program_under_it_ends(ctl, segment):
    code = (
        "from mtlshm import Host\nhost = Host()\nbefore = host.snapshot().lcores\n"
        "for _ in range(3):\n    with host.register() as me:\n        me.claim_many(1)\n"
        "print([l.owner.owner for l in before] == [l.owner.owner for l in host.snapshot().lcores])"
    )
    assert ctl("run", "--lcores", 1, PYTHON, "-c", code).stdout == "True\n"


@needs_two
def test_commands_under_one_run_share_its_lcores_and_each_is_given_once(start_ctl, segment, tmp_path):
    fifos = tmp_path / "first", tmp_path / "second"
    for fifo in fifos:
        os.mkfifo(fifo)
    # Read-write: so neither side waits for the other to open.
    first, second = (os.open(fifo, os.O_RDWR | os.O_CLOEXEC) for fifo in fifos)
    script = '"$0" -c "$1" < "$2" & "$0" -c "$1" < "$3" & wait'
    process = start_ctl("run", "--lcores", 2, "sh", "-c", script, PYTHON, CLAIM_ONE, *fifos)
    try:
        assert {int(first_line(process)), int(first_line(process))} == held(segment)
        shown = look(segment)
        (outer,) = [info.owner for info in shown.instances if info.pid == process.pid]
        assert [(lcore.owner.label, lcore.owner.parent) for lcore in shown.lcores] == [("worker", outer)] * 2
        assert len({lcore.owner.owner for lcore in shown.lcores}) == 2
        os.write(first, b"\n")
        assert first_line(process) == "no more"
        os.write(first, b"\n")
        os.write(second, b"\n\n")
        assert process.wait(DEADLINE) == 0
    finally:
        os.close(first)
        os.close(second)
    assert held(segment) == set()


@needs_two
def test_a_run_within_a_run_draws_from_the_outer_one(ctl, segment, own_cpus):
    code = "import os; print(os.environ['MTLSHM_LCORES']); print(sorted(os.sched_getaffinity(0)))"
    outer = ["run", "--lcores", 2, "--", "sh", "-c", 'echo $MTLSHM_LCORES; exec "$@"', "sh"]
    done = ctl(*outer, CTL, "run", "--lcores", 1, PYTHON, "-c", code)
    have, inner, affinity = done.stdout.splitlines()
    assert CpuSet.parse(inner) < CpuSet.parse(have)
    assert affinity == str(sorted(CpuSet.parse(inner)))
    done = ctl(*outer, CTL, "run", "--lcores", 3, "true")
    assert done.returncode == 125
    assert "3 lcores asked for, 2 free of the 2 that this process may use of the lease of sh -c" in done.stderr
    assert "lease more" in done.stderr
    assert held(segment) == set()


@needs_two
def test_hold_under_run_claims_from_the_lease_only(ctl, segment, own_cpus):
    with Host(segment) as host, host.register("encoder") as me:
        me.claim(own_cpus[-1])
        script = f"read which < <(exec {CTL} hold $MTLSHM_LCORES); kill $!; echo $which; {CTL} hold --lcores 2"
        done = ctl("run", "--lcores", 1, "bash", "-c", script)
    assert int(done.stdout) in own_cpus[:-1]
    assert done.returncode == 1
    assert "2 lcores asked for, " in done.stderr
    assert " of the 1 that this process may use of the lease of bash -c" in done.stderr


def test_the_lease_is_first_in_the_environment_however_deep(ctl, environment):
    code = (
        "data = open('/proc/self/environ', 'rb').read().split(b'\\0'); print(data[0].partition(b'=')[0].decode());"
        "print(sum(word.startswith(b'MTLSHM_LEASE=') for word in data))"
    )
    assert ctl("run", "--lcores", 1, PYTHON, "-c", code).stdout == "MTLSHM_LEASE\n1\n"
    within = ctl("run", "--lcores", 1, CTL, "run", "--lcores", 1, PYTHON, "-c", code)
    assert within.stdout == "MTLSHM_LEASE\n1\n", within.stderr


@pytest.mark.parametrize(("lease", "said"), [("1ab", "is no lease"), ("100000@1", "is a lease that has ended")])
@pytest.mark.parametrize(
    "words", [("run", "--lcores", "1", "true"), ("hold", "--lcores", "1"), ("place", "--lcores", "1")]
)
def test_invalid_lease_is_named_and_nothing_is_claimed(environment, segment, lease, said, words):
    Host(segment).close()
    environment["MTLSHM_LEASE"] = lease
    done = subprocess.run([CTL, *words], env=environment, capture_output=True, text=True, timeout=DEADLINE)
    assert done.returncode == (125 if words[0] == "run" else 1)
    assert f"MTLSHM_LEASE={lease} {said}" in done.stderr
    assert held(segment) == set()


def test_the_core_list_replaces_its_placeholder(ctl):
    script = 'test "$1 $2" = "-l $MTLSHM_LCORES $MTLSHM_LCORES,$MTLSHM_LCORES"'
    assert ctl("run", "--lcores", 1, "sh", "-c", script, "sh", "-l {lcores}", "{lcores},{lcores}").returncode == 0


@needs_two
def test_workers_are_those_that_libmtl_can_hand_out(ctl, own_cpus):
    done = ctl("run", "--workers", 1, "sh", "-c", "echo $MTLSHM_LCORES")
    assert len(CpuSet.parse(done.stdout)) == 2
    done = ctl("run", "--workers", 1, "echo", "{lcores}")
    assert len(CpuSet.parse(done.stdout)) == 1
    assert 0 not in CpuSet.parse(done.stdout)
    done = ctl("run", "--workers", len(own_cpus), "true")
    assert done.returncode == 125
    assert "one of them is for libmtl's main lcore" in done.stderr
    if 0 in own_cpus:
        done = ctl("run", "--workers", len(own_cpus), "echo", "{lcores}")
        assert done.returncode == 125
        assert "CPU 0 is left out" in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ("run", "true"),
        ("run", "--lcores", "1", "--workers", "1", "true"),
        ("run", "--lcores", "1", "--reservation", "a", "true"),
        ("run", "--reservation", "a", "--near", "lo", "true"),
        ("run", "--reservation", "a", "--explain", "true"),
        ("run", "--lcores", "1", "--numa", "0", "--near", "lo", "true"),
        ("place",),
        ("place", "--lcores", "1", "--workers", "1"),
        ("hold", "1", "--near", "lo"),
    ],
)
def test_options_that_exclude_each_other_are_wrong_usage(ctl, words):
    assert ctl(*words).returncode == 2


@pytest.mark.parametrize(
    "words", [("run", "--lcores", "1", "--near", "lo", "true"), ("place", "--lcores", 1, "--near", "lo")]
)
def test_an_interface_on_no_node_is_said_and_counts_for_nothing(ctl, segment, words):
    Host(segment).close()
    done = ctl(*words)
    assert done.returncode == 0
    assert "--near lo: the kernel knows no NUMA node of it" in done.stderr


def test_an_interface_that_there_is_not_is_refused(ctl, segment):
    done = ctl("run", "--lcores", 1, "--near", "none0", "true")
    assert done.returncode == 125
    assert "none0" in done.stderr
    assert held(segment) == set()


@pytest.mark.parametrize("name", ["lo", "an-alternative-name-of-loopback"])
def test_lcores_come_from_the_node_of_the_interface(start_ctl, segment, tmp_path, name):
    """The node of a network card is made up: a file in a directory that is mounted over sysfs's of the loopback."""
    (tmp_path / "lo/device").mkdir(parents=True)
    node = Topology.read().cpus[0].node
    script = (
        f"mount --bind {tmp_path}/lo /sys/devices/virtual/net/lo && "
        'ip link property add dev lo altname an-alternative-name-of-loopback && exec "$@"'
    )
    Host(segment).close()
    for number, said in (node, f"NUMA node {node}, that of {name}"), (node + 1, "has no CPUs"), (-1, "knows no NUMA"):
        (tmp_path / "lo/device/numa_node").write_text(f"{number}\n")
        within = (*namespaces("net", "mount"), "sh", "-c", f"{script} 2>&1", "sh")
        process = start_ctl("place", "--dry-run", "--lcores", 1, "--near", name, within=within)
        assert said in process.communicate()[0]
        assert process.returncode == 0


@pytest.mark.parametrize("words", [("run", "true"), ("reserve", "studio"), ("hold", "--lcores", 1)])
def test_every_claim_by_policy_looks_for_the_interface(start_ctl, segment, tmp_path, words):
    (tmp_path / "lo/device").mkdir(parents=True)
    (tmp_path / "lo/device/numa_node").write_text("4095\n")
    script = f'mount --bind {tmp_path}/lo /sys/devices/virtual/net/lo && exec "$@" 2>&1'
    within = (*namespaces("net", "mount"), "sh", "-c", script, "sh")
    verb, *rest = words
    options = ["--near", "lo"] if verb == "hold" else ["--lcores", 1, "--near", "lo"]
    process = start_ctl(verb, *options, *rest, within=within)
    assert "has no CPUs; lcores are taken from any node" in first_line(process)


@needs_two
def test_place_says_which_and_why_and_claims_nothing(ctl, segment, own_cpus):
    with Host(segment) as host, host.register("encoder") as other:
        other.claim(own_cpus[-1])
        done = ctl("place", "--lcores", len(own_cpus) - 1)
        which, *why = done.stdout.splitlines()
        assert CpuSet.parse(which) == CpuSet(own_cpus[:-1])
        assert [line.split(":")[0] for line in why] == [f"lcore {cpu}" for cpu in own_cpus[:-1]]
        assert held(segment) == {own_cpus[-1]}
        done = ctl("place", "--lcores", len(own_cpus))
        assert done.returncode == 4
        assert "held:" in done.stderr


def test_run_explains_its_choice_before_the_command_starts(ctl):
    done = ctl("run", "--lcores", 1, "--explain", "sh", "-c", "echo $MTLSHM_LCORES; echo started >&2")
    first, second = done.stderr.splitlines()
    assert first.startswith(f"lcore {done.stdout.strip()}: NUMA node ")
    assert second == "started"
