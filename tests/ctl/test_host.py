# SPDX-License-Identifier: BSD-3-Clause
"""`mtlshm-ctl doctor` says what the host lacks, and its advice helps.

What cannot be changed on this machine (isolated CPUs, another boot's logind) is looked at in a directory with the files
that the kernel and systemd would have.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from lab.processes import BIN, DEADLINE, UNPRIVILEGED, Daemon, Puppet, as_user, eventually, needs_root
from lab.sysfs import Machine
from mtlshm import CpuSet, Host
from mtlshm.ctl.host import CHECKS, Place, cpus, look, service

Ctl = Callable[..., "subprocess.CompletedProcess[str]"]
Found = dict[str, dict[str, Any]]

STATES = {"ok", "warning", "failure", "not known"}


def host_of(done: subprocess.CompletedProcess[str]) -> Found:
    found = json.loads(done.stdout)["host"]
    assert len(found) == len(CHECKS)
    assert all(each["state"] in STATES and each["text"] for each in found)
    assert not any(each["advice"] for each in found if each["state"] == "ok")
    return {each["check"]: each for each in found}


def test_it_is_of_use_without_a_segment(ctl: Ctl, segment: str) -> None:
    done = ctl("doctor")
    assert (done.returncode, done.stderr.count("\n")) == (3, 1)
    assert len(done.stdout.splitlines()) == 1 + len(CHECKS)
    done = ctl("doctor", "--json")
    assert done.returncode == 3
    assert json.loads(done.stdout)["sound"] is None
    host_of(done)
    assert not os.path.exists(segment)


def test_warnings_are_no_reason_for_another_exit_status(ctl: Ctl, segment: str) -> None:
    Host(segment).close()
    if os.geteuid() > 999:
        os.chmod(segment, 0o660)
    done = ctl("doctor", "--json")
    assert "warning" in {each["state"] for each in host_of(done).values()}
    assert done.returncode == (0 if json.loads(done.stdout)["sound"] else 1)


@needs_root("another user")
def test_looking_needs_no_privilege(environment: dict[str, str], segment: str) -> None:
    modules = "sqlite3, mtlshm.net.bpf, mtlshm.net.xdp, mtlshm.ctl.app"
    code = f"import {modules}\nmtlshm.ctl.app.load()\n{as_user(UNPRIVILEGED, UNPRIVILEGED, [])}mtlshm.ctl.app.main()"
    command = [sys.executable, "-c", code, "doctor", "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=DEADLINE)
    found = host_of(done)
    assert found["freplace"]["state"] == "not known"
    assert "failure" not in {each["state"] for each in found.values()}


# --- what hangs ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_check_that_hangs_is_given_up_and_the_others_are_done(place: Place) -> None:
    file = place.root / "sys/devices/system/cpu/isolated"
    file.parent.mkdir(parents=True)
    os.mkfifo(file)
    found = look(place, (cpus.governor, cpus.isolated_cpus, cpus.hugepages))
    assert [each.state for each in found] == ["ok", "not known", "warning"]
    assert [each.check for each in found] == ["governor", "isolated-cpus", "hugepages"]


@pytest.mark.slow
def test_a_program_that_hangs_is_ended(ctl: Ctl, environment: dict[str, str], tmp_path: Path) -> None:
    program = tmp_path / "bin/xdp-loader"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\necho $$ >{tmp_path}/pid\nexec sleep 1000\n")
    program.chmod(0o755)
    environment["PATH"] = f"{program.parent}:{environment['PATH']}"
    found = host_of(ctl("doctor", "--json"))
    assert found["xdp-loader"]["state"] == "warning"
    assert found["ethtool"]["state"] != "not known"
    assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))


# --- on this machine -----------------------------------------------------------------------------------


def test_an_xdp_loader_that_is_too_old(ctl: Ctl, environment: dict[str, str], tmp_path: Path) -> None:
    program = tmp_path / "bin/xdp-loader"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho xdp-loader version 1.2.9 using libbpf version 0.5.0\n")
    program.chmod(0o755)
    environment["PATH"] = f"{program.parent}:{environment['PATH']}"
    found = host_of(ctl("doctor", "--json"))["xdp-loader"]
    assert found["state"] == "warning"
    assert "1.2.9" in found["text"]


@pytest.fixture
def within(environment: dict[str, str]) -> Callable[[str], str]:
    """Runs a shell script, for which `look` is the command, in a mount namespace of its own."""

    def run(script: str) -> str:
        command = [
            "unshare",
            "--mount",
            "bash",
            "-euc",
            f'PATH="{BIN}:$PATH"\nlook() {{ {BIN}/mtlshm-ctl doctor --json || true; }}\n{script}',
        ]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=DEADLINE)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def said(output: str) -> Found:
    return {each["check"]: each for each in json.loads(output)["host"]}


@needs_root("programs that are missing")
def test_programs_that_are_missing(within: Callable[[str], str]) -> None:
    found = said(within("mount -t tmpfs none /usr/sbin; export PATH=/usr/sbin; look"))
    for name, package in ("xdp-loader", "xdp-tools"), ("ethtool", "ethtool"):
        assert (found[name]["state"], found[name]["advice"]) == ("warning", f"apt-get install {package}")


@needs_root("BPF file systems")
@pytest.mark.parametrize("kind", ["tmpfs", "bpf"])
def test_the_advice_on_the_bpf_file_system_helps(within: Callable[[str], str], kind: str) -> None:
    mount = f"mount -t {kind} -o mode=1777 none /sys/fs/bpf"
    found = said(within(f"{mount}; look"))["bpffs"]
    assert found["state"] == "warning"
    assert found["advice"]
    assert said(within(f"{mount}; {found['advice']}; look"))["bpffs"]["state"] == "ok"


@needs_root("pins of somebody else")
def test_pins_that_are_not_roots(within: Callable[[str], str]) -> None:
    mount = "mount -t bpf -o mode=0700 none /sys/fs/bpf; mkdir /sys/fs/bpf/mtlshm"
    assert said(within(f"{mount}; look"))["bpffs"]["state"] == "ok"
    found = said(within(f"{mount}; chown 12345 /sys/fs/bpf/mtlshm; look"))["bpffs"]
    assert found["state"] == "warning"
    assert "12345" in found["text"]


@needs_root("groups")
def test_groups(within: Callable[[str], str], segment: str, tmp_path: Path, manager_socket: Path) -> None:
    groups = tmp_path / "group"
    groups.write_text("root:x:0:\n")
    mount = f"mount --bind {groups} /etc/group; export MTL_MANAGER_SOCK_PATH={manager_socket}"
    found = said(within(f"{mount}; look"))
    assert (found["group"]["state"], found["segment-group"]["state"]) == ("warning", "not known")
    groups.write_text("root:x:0:\nmtl:x:4321:\n")
    Host(segment).close()
    manager_socket.touch()
    found = said(within(f"{mount}; look"))
    for check in "segment-group", "socket-group":
        assert found[check]["state"] == "warning"
        assert "4321" in found[check]["text"]
    chgrp = found["socket-group"]["advice"].partition(";")[0]
    repaired = said(within(f"{mount}; {found['segment-group']['advice']} >&2; {chgrp}; look"))
    assert [repaired[check]["state"] for check in ("group", "segment-group", "socket-group")] == ["ok"] * 3


def test_upstreams_manager_is_told_from_ours(ctl: Ctl, daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    ours = daemon(command=[str(BIN / "MtlManager")])
    sleep = shutil.which("sleep")
    assert sleep
    program = tmp_path / "MtlManager"
    shutil.copy(sleep, program)
    assert host_of(ctl("doctor", "--json"))["MtlManager"]["state"] == "ok"
    with subprocess.Popen([program, "1000"]) as theirs:
        eventually(lambda: Path(f"/proc/{theirs.pid}/comm").read_text() == "MtlManager\n")
        found = host_of(ctl("doctor", "--json"))["MtlManager"]
        assert found["state"] == "warning"
        assert found["advice"].endswith(f"kill {theirs.pid}")
        theirs.kill()
    assert ours.running()


def test_idle_loans_that_leave_nothing_to_others(
    ctl: Ctl,
    daemon: Callable[..., Daemon],
    puppet: Callable[..., Puppet],
    legacy_place: dict[str, str],
    environment: dict[str, str],
) -> None:
    environment |= legacy_place
    first, *others = sorted(CpuSet.parse(Path("/sys/devices/system/cpu/online").read_text()))
    if not others or not {first, *others} <= os.sched_getaffinity(0):
        pytest.skip("not all of several CPUs may be claimed here; not tested: advice on lent lcores")
    daemon(environment=legacy_place | {"MTLSHMD_LEGACY": f"{first}-{first}"})
    assert host_of(ctl("doctor", "--json"))["lent-lcores"]["state"] == "ok"
    holder = puppet()
    assert [holder.claim(number) for number in others] == [0] * len(others)
    found = host_of(ctl("doctor", "--json"))["lent-lcores"]
    assert found["state"] == "warning"
    assert ctl(*shlex.split(found["advice"])[1:]).returncode == 0
    assert host_of(ctl("doctor", "--json"))["lent-lcores"]["state"] == "ok"


# --- on machines that this one is not ------------------------------------------------------------------


@pytest.fixture
def place(tmp_path: Path, segment: str) -> Place:
    (tmp_path / "root").mkdir()
    state, pins = tmp_path / "state", Path("/sys/fs/bpf/mtlshm")
    return Place(segment, None, "mtl", state, pins, tmp_path / "root")


def write(place: Place, path: str, text: str) -> None:
    file = place.root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{text}\n")


CPU = "sys/devices/system/cpu"


@pytest.fixture
def isolated(place: Place) -> Place:
    """Eight CPUs, of which 2-7 are isolated."""
    Machine(cores=8, isolated=frozenset(range(2, 8))).write(place.root / "sys")
    return place


def test_no_isolated_cpus(place: Place) -> None:
    assert cpus.isolated_cpus(place).state == "not known"
    Machine(cores=8).write(place.root / "sys")
    assert cpus.isolated_cpus(place).state == "warning"
    assert cpus.nohz_full(place).state == "ok"
    assert cpus.irq_affinity(place).state == "ok"


@pytest.mark.parametrize(
    ("groups", "file"),
    [
        ("0::/user.slice/user-0.slice", "sys/fs/cgroup/user.slice/cpuset.cpus.effective"),
        ("0::/", "sys/fs/cgroup/cpuset.cpus.effective"),
        ("3:cpuset,cpu:/a/b\n0::/a/b", "sys/fs/cgroup/cpuset/a/cpuset.effective_cpus"),
    ],
)
def test_isolated_cpus_against_the_cpuset(isolated: Place, groups: str, file: str) -> None:
    assert cpus.isolated_cpus(isolated).state == "not known"
    write(isolated, "proc/self/cgroup", groups)
    write(isolated, file, "0-7")
    assert cpus.isolated_cpus(isolated).state == "ok"
    write(isolated, file, "0-5")
    found = cpus.isolated_cpus(isolated)
    assert found.state == "warning"
    assert "6-7" in found.text


@pytest.mark.parametrize(
    ("without", "state", "ticking"),
    [("2-7", "ok", ""), ("2-5", "warning", "6-7"), ("(null)", "warning", "2-7"), (None, "warning", "CONFIG_NO_HZ")],
)
def test_nohz_full(isolated: Place, without: str | None, state: str, ticking: str) -> None:
    if without:
        write(isolated, f"{CPU}/nohz_full", without)
    found = cpus.nohz_full(isolated)
    assert found.state == state
    assert ticking in found.text


def test_interrupts_that_go_to_isolated_cpus(isolated: Place) -> None:
    for number, kind, name in (24, "effective", "ens1f0-TxRx-0"), (25, "smp", "nvme0q1"), (26, "effective", "eth1"):
        file = "effective_affinity_list" if kind == "effective" else "smp_affinity_list"
        write(isolated, f"proc/irq/{number}/{file}", "0-1")
        (isolated.root / f"proc/irq/{number}/{name}").mkdir()
    assert cpus.irq_affinity(isolated).state == "ok"
    write(isolated, "proc/irq/24/effective_affinity_list", "3")
    write(isolated, "proc/irq/25/smp_affinity_list", "0-7")
    found = cpus.irq_affinity(isolated)
    assert found.state == "warning"
    assert "24 ens1f0-TxRx-0, 25 nvme0q1" in found.text
    assert "eth1" not in found.text
    assert "irqaffinity=0-1 " in str(found.advice)


def test_of_interrupts_and_held_lcores(place: Place, puppet: Callable[..., Puppet]) -> None:
    Machine(cores=8).write(place.root / "sys")
    write(place, "proc/irq/9/effective_affinity_list", "0")
    holder = puppet()
    assert cpus.irq_affinity(place).state == "ok"
    holder.claim(0)
    assert "held lcores 0: 9" in cpus.irq_affinity(place).text


def test_governors(place: Place) -> None:
    assert cpus.governor(place).state == "ok"
    for number in range(4):
        write(place, f"{CPU}/cpu{number}/cpufreq/scaling_governor", "performance" if number < 2 else "powersave")
    found = cpus.governor(place)
    assert (found.state, found.text) == ("warning", "CPUs 2-3 have the governor powersave")
    for number in range(4):
        write(place, f"{CPU}/cpu{number}/cpufreq/scaling_governor", "performance")
    assert cpus.governor(place).state == "ok"


@pytest.mark.parametrize(("available", "advised"), [(64 << 20, True), (2 << 20, False)])
def test_huge_pages(place: Place, available: int, advised: bool) -> None:
    for size in 2048, 1048576:
        for name in "nr_hugepages", "free_hugepages":
            write(place, f"sys/kernel/mm/hugepages/hugepages-{size}kB/{name}", "0")
    write(place, "proc/meminfo", f"MemTotal: 99 kB\nMemAvailable:   {available} kB")
    found = cpus.hugepages(place)
    assert (found.state, bool(found.advice)) == ("warning", advised)
    write(place, "sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages", "8")
    assert (cpus.hugepages(place).state, cpus.hugepages(place).text) == ("ok", "8 of 1024 MiB, 0 free")


@pytest.fixture
def booted(place: Place) -> Place:
    """By systemd."""
    (place.root / "run/systemd/system").mkdir(parents=True)
    return place


def test_the_unit(booted: Place) -> None:
    system = booted.root / "etc/systemd/system"
    assert "not installed" in service.unit(booted).text
    write(booted, "usr/local/lib/systemd/system/mtlshmd.service", "[Service]\nExecStart=/usr/local/bin/mtlshmd")
    assert "/usr/local/bin/mtlshmd, which is not there" in service.unit(booted).text
    write(booted, "usr/local/bin/mtlshmd", "#!")
    assert service.unit(booted).advice == "systemctl enable mtlshmd"
    (system / "multi-user.target.wants").mkdir(parents=True)
    (system / "multi-user.target.wants/mtlshmd.service").symlink_to("/usr/local/lib/systemd/system/mtlshmd.service")
    assert service.unit(booted).advice == "systemctl start mtlshmd"
    (booted.root / "run/systemd/units").mkdir()
    (booted.root / "run/systemd/units/invocation:mtlshmd.service").symlink_to("0123")
    assert service.unit(booted).state == "ok"


def test_whether_logind_would_delete_the_segment(booted: Place) -> None:
    found = service.remove_ipc(booted)
    assert (found.state, found.advice) == ("warning", "as root: mtlshm-ctl create")
    write(booted, "usr/lib/systemd/system/mtlshm-segment.service", "[Service]")
    assert service.remove_ipc(booted).advice == "systemctl enable --now mtlshm-segment"
    wants = booted.root / "etc/systemd/system/multi-user.target.wants"
    wants.mkdir(parents=True)
    (wants / "mtlshm-segment.service").symlink_to("/usr/lib/systemd/system/mtlshm-segment.service")
    assert service.remove_ipc(booted).state == "ok"
    (wants / "mtlshm-segment.service").unlink()
    write(booted, "etc/systemd/logind.conf.d/mtl.conf", "[Login]\nRemoveIPC=no")
    assert service.remove_ipc(booted).state == "ok"
    write(booted, "run/systemd/logind.conf.d/z.conf", "[Login]\nRemoveIPC=yes")
    assert service.remove_ipc(booted).state == "warning"
    if os.geteuid() == 0:
        Host(booted.segment).close()
        assert service.remove_ipc(booted).state == "ok"
