# SPDX-License-Identifier: BSD-3-Clause
"""The topology is what sysfs says, and what sysfs cannot say is refused or made up harmlessly."""

from __future__ import annotations

import errno
import shutil
import subprocess
from itertools import product
from pathlib import Path

import pytest

from lab.machines import ALL, MACHINES, check_topology
from lab.sysfs import Machine
from mtlshm import CpuSet, MtlshmError, Topology

REAL = Path("/sys/devices/system")


# What the host looks like


@pytest.mark.parametrize("machine", MACHINES.values(), ids=MACHINES)
def test_topology_equals_the_kernels(machine: Machine, tmp_path: Path) -> None:
    check_topology(machine, Topology.read(machine.write(tmp_path)))


def test_missing_sysfs_files_have_harmless_defaults(tmp_path: Path) -> None:
    """Also what is seen of a CPU that goes offline while it is looked at."""
    machine = Machine(sockets=2, cores=4, threads=2)
    machine.write(tmp_path)
    for cpu in 12, 13:
        shutil.rmtree(tmp_path / f"devices/system/cpu/cpu{cpu}")
    known = {cpu.cpu: cpu for cpu in Topology.read(tmp_path).cpus}
    assert (known[12].core, known[12].llc, known[12].node, known[12].package) == (12, 8, 1, 0)
    assert (known[13].core, known[13].llc, known[13].node, known[13].package) == (13, 8, 1, 0)
    shutil.rmtree(tmp_path / "devices/system/node")
    for cpu in range(16):
        shutil.rmtree(tmp_path / f"devices/system/cpu/cpu{cpu}", ignore_errors=True)
    (tmp_path / "devices/system/cpu/isolated").unlink()
    topology = Topology.read(tmp_path)
    assert [(c.cpu, c.core, c.llc, c.node, c.package) for c in topology.cpus] == [(n, n, 0, 0, 0) for n in range(16)]
    assert topology.nodes == {0}
    assert not topology.isolated


def test_an_unknown_package_is_package_0(tmp_path: Path) -> None:
    Machine(cores=2).write(tmp_path)
    for cpu, number in enumerate(("-1", "70000")):
        (tmp_path / f"devices/system/cpu/cpu{cpu}/topology/physical_package_id").write_text(f"{number}\n")
    assert [cpu.package for cpu in Topology.read(tmp_path).cpus] == [0, 0]


def test_caches_of_instructions_do_not_count(tmp_path: Path) -> None:
    Machine(cores=4).write(tmp_path)
    for cpu in range(4):
        index = tmp_path / f"devices/system/cpu/cpu{cpu}/cache/index2"
        index.mkdir()
        for name, text in ("level", "3"), ("type", "Instruction"), ("shared_cpu_list", f"{cpu}"):
            (index / name).write_text(f"{text}\n")
    assert {cpu.llc for cpu in Topology.read(tmp_path).cpus} == {0}


def cpu_file(directory: Path, name: str, text: str) -> Path:
    file = directory / "devices/system/cpu" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return directory


def test_cpus_from_1024_on_are_left_out(tmp_path: Path) -> None:
    cpu_file(tmp_path, "possible", "0-1,1022-8191\n")
    cpu_file(tmp_path, "online", "1,1023-1030,2048,4095-8191\n")
    topology = Topology.read(tmp_path)
    assert topology.possible == {0, 1, 1022, 1023}
    assert topology.online == {1, 1023}


def test_impossible_cpus_are_not_online(tmp_path: Path) -> None:
    cpu_file(tmp_path, "possible", "0-1\n")
    cpu_file(tmp_path, "online", "1-3\n")
    assert Topology.read(tmp_path).online == {1}


def test_a_list_may_be_longer_than_a_page(tmp_path: Path) -> None:
    cpu_file(tmp_path, "possible", "0-8191\n")
    cpu_file(tmp_path, "online", ",".join(str(cpu) for cpu in range(0, 8192, 2)) + "\n")
    assert Topology.read(tmp_path).online == CpuSet(range(0, 1024, 2))


@pytest.mark.parametrize("text", ["0-3", "0,1,2,3\n", "0-1,2-3\n", "0,1-3\n"])
def test_a_list_is_read_however_it_is_written(text: str, tmp_path: Path) -> None:
    cpu_file(tmp_path, "possible", text)
    cpu_file(tmp_path, "online", "0-3\n")
    assert Topology.read(tmp_path).possible == {0, 1, 2, 3}


GARBAGE = ["x", "0-", "-3", "0,,1", ",0", "0,", "0-3,", "3-0", "0-3 ", " 0-3", "0-3\n\n", "0-3\n4", "\n0", "0-3\0"]


GARBAGE += ["\0", "0-3,2", "1,1", "0--3", "0-3-5", "0x1", "+1", "0;1", "0:2/4"]


GARBAGE += ["4294967296", "0-4294967297", "99999999999999999999"]


@pytest.mark.parametrize("text", GARBAGE, ids=repr)
@pytest.mark.parametrize("name", ["possible", "online", "isolated", "cpu0/topology/core_cpus_list"])
def test_malformed_sysfs_list_is_refused(name: str, text: str, tmp_path: Path) -> None:
    cpu_file(Machine(cores=1).write(tmp_path), name, text)
    with pytest.raises(MtlshmError) as caught:
        Topology.read(tmp_path)
    assert caught.value.errno == errno.EBADMSG


@pytest.mark.parametrize("name", ["possible", "online"])
def test_a_directory_that_describes_no_cpus_is_refused(name: str, tmp_path: Path) -> None:
    (Machine().write(tmp_path) / "devices/system/cpu" / name).unlink()
    with pytest.raises(MtlshmError) as caught:
        Topology.read(tmp_path)
    assert caught.value.errno == errno.ENOENT


@pytest.mark.skipif(not (REAL / "cpu/online").exists(), reason="needs sysfs")
def test_hosts_topology_equals_sysfs() -> None:
    def read(name: str) -> CpuSet:
        file = REAL / name
        return CpuSet.parse(file.read_text()) if file.exists() else CpuSet()

    topology = Topology.read()
    assert topology.possible == read("cpu/possible") & ALL
    assert topology.online == read("cpu/online") & ALL
    assert topology.isolated == read("cpu/isolated") & ALL
    assert topology.nodes == (read("node/has_cpu") or {0})
    for cpu in topology.cpus:
        directory = f"cpu/cpu{cpu.cpu}"
        assert cpu.core == min(read(f"{directory}/topology/thread_siblings_list") or {cpu.cpu})
        caches = [file.parent for file in (REAL / directory).glob("cache/index*/level")]
        if caches:
            last = max(caches, key=lambda index: int((index / "level").read_text()))
            assert cpu.llc == min(CpuSet.parse((last / "shared_cpu_list").read_text()))


@pytest.mark.skipif(not shutil.which("lscpu"), reason="needs lscpu")
def test_hosts_topology_equals_lscpu() -> None:
    command = ["lscpu", "--parse=CPU,CORE,SOCKET,NODE"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    rows = {int(row[0]): row[1:] for line in lines if line[0] != "#" for row in [line.split(",")]}
    cpus = Topology.read().cpus
    assert {cpu.cpu for cpu in cpus} == rows.keys() & ALL
    for one, other in product(cpus, cpus):
        ours = one.core == other.core, one.package == other.package, one.node == other.node
        assert ours == tuple(a == b for a, b in zip(rows[one.cpu], rows[other.cpu], strict=True))
