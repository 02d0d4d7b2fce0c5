# SPDX-License-Identifier: BSD-3-Clause
"""topology shows the host's CPUs, with or without a segment."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from xml.etree import ElementTree

from lab.processes import BIN, needs_root
from lab.sysfs import Machine
from mtlshm import CpuSet, Host, LcoreType, Topology
from mtlshm.ctl.picture import Picture

CPUS = Path("/sys/devices/system/cpu")


def test_it_agrees_with_sysfs(ctl, segment):
    data = json.loads(ctl("topology", "--json").stdout)
    assert set(data["online"]) == CpuSet.parse((CPUS / "online").read_text())
    for cpu in data["cpus"]:
        siblings = CPUS / f"cpu{cpu['cpu']}/topology/thread_siblings_list"
        assert cpu["core"] == min(CpuSet.parse(siblings.read_text()))
    assert not os.path.exists(segment)


def test_people_get_a_row_a_core(ctl):
    data = json.loads(ctl("topology", "--json").stdout)
    header, *rows = ctl("topology").stdout.splitlines()
    assert header.split()[0] == "CPUs"
    cores = {cpu["core"] for cpu in data["cpus"]}
    assert {int(row.split()[1]) for row in rows if row.strip() and "absent" not in row} == cores


@needs_root("a host without /sys")
def test_where_sys_is_missing_it_says_so_and_shows_what_there_is(segment, environment, tmp_path):
    within = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /sys && exec "$@"', "sh", BIN / "mtlshm-ctl"]
    for words in ["topology", "--json"], ["topology", "--svg", tmp_path / "host.svg"]:
        done = subprocess.run([*within, *words], env=environment, capture_output=True, text=True, check=True)
        assert done.stderr.startswith("mtlshm-ctl: /sys/devices/system/cpu/online cannot be read here: ")
        assert done.stderr.count("\n") == 1
        if "--json" in words:
            assert json.loads(done.stdout)["online"] == sorted(os.sched_getaffinity(0))
    assert set(cells(tmp_path / "host.svg")) == os.sched_getaffinity(0)
    ran = subprocess.run([*within, "run", "--lcores", "1", "true"], env=environment, capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")


# --- as a picture --------------------------------------------------------------------------------------

SVG = "{http://www.w3.org/2000/svg}"


def cells(file: Path) -> dict[int, ElementTree.Element]:
    """Of a picture, by CPU."""
    found = ElementTree.parse(file).iter(f"{SVG}g")
    return {int(group.get("data-cpu", "-1")): group for group in found if group.get("class") == "thread"}


def frame(element: ElementTree.Element) -> tuple[int, int, int, int]:
    """Left, top, right and bottom."""
    x, y, width, height = (int(element.get(name, "")) for name in ("x", "y", "width", "height"))
    return x, y, x + width, y + height


def test_a_picture_shows_each_cpu_and_its_owner(ctl, segment, own_cpus, tmp_path):
    file = tmp_path / "host.svg"
    with Host(segment) as host, host.register("encoder <1> & カメラ") as me:
        me.claim(own_cpus[0], LcoreType.LEASE)
        assert ctl("topology", "--svg", file).stdout == ""
    drawn = cells(file)
    assert set(drawn) == CpuSet.parse((CPUS / "online").read_text())
    said = {cpu: group.findtext(f"{SVG}title") for cpu, group in drawn.items()}
    assert said[own_cpus[0]].startswith(f"lcore {own_cpus[0]}: app (lease), encoder <1> & カメラ")
    assert all(text.startswith(f"lcore {cpu}: free") for cpu, text in said.items() if cpu != own_cpus[0])
    texts = [text.text for text in ElementTree.parse(file).iter(f"{SVG}text")]
    assert any(text.startswith(f"{own_cpus[0]}: encoder <1> & カメラ (pid {os.getpid()}") for text in texts)
    assert f"{os.uname().nodename}: {len(drawn)} lcores: 1 held" in texts[0]


def test_a_picture_needs_no_segment(ctl, segment, tmp_path):
    done = ctl("topology", "--svg", tmp_path / "host.svg")
    assert (done.returncode, done.stderr) == (0, "")
    assert cells(tmp_path / "host.svg")
    assert not os.path.exists(segment)


def test_boxes_lie_in_boxes_and_not_on_each_other(tmp_path):
    machine = Machine(sockets=2, cores=24, threads=2, nodes=2, caches=4, split=True, isolated=frozenset({3}))
    Picture(Topology.read(machine.write(tmp_path / "sys")), None, "made up").write(str(tmp_path / "host.svg"))
    root = ElementTree.parse(tmp_path / "host.svg").getroot()
    drawn = cells(tmp_path / "host.svg")
    assert set(drawn) == {cpu.number for cpu in machine.cpus}
    frames = {cpu: frame(group.find(f"{SVG}rect")) for cpu, group in drawn.items()}
    boxes = [frame(rect) for rect in root.findall(f"{SVG}rect")]
    for one in frames.values():
        assert all(one[2] <= x or one[0] >= right or one[3] <= y or one[1] >= bottom
                   for x, y, right, bottom in frames.values() if (x, y, right, bottom) != one)  # fmt: skip
    for what, count in ("package", 2), ("node", 4), ("cache", 8), ("core", 48):
        groups = {machine.alike(cpu, what) for cpu in machine.cpus}
        assert len(groups) == count
        for group in groups:
            members = [frames[cpu] for cpu in group]
            left, top, right, bottom = (pick(f[n] for f in members) for n, pick in enumerate((min, min, max, max)))
            around = [b for b in boxes if b[0] < left and b[1] < top and b[2] > right and b[3] > bottom]
            assert around, "no box is around them"
            smallest = min(around, key=lambda b: (b[2] - b[0]) * (b[3] - b[1]))
            inside = {cpu for cpu, f in frames.items() if smallest[0] < f[0] and f[2] < smallest[2]
                      and smallest[1] < f[1] and f[3] < smallest[3]}  # fmt: skip
            assert inside == group
    assert drawn[3].find(f"{SVG}rect").get("stroke-dasharray")


def test_a_picture_is_written_whole_or_not_at_all(ctl, tmp_path):
    (tmp_path / "real.svg").write_text("before")
    (tmp_path / "link.svg").symlink_to("real.svg")
    assert ctl("topology", "--svg", tmp_path / "link.svg").returncode == 0
    assert cells(tmp_path / "real.svg")
    assert (tmp_path / "link.svg").is_symlink()
    for wrong in tmp_path / "nowhere/host.svg", tmp_path:
        done = ctl("topology", "--svg", wrong)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
        assert done.stderr.startswith(f"mtlshm-ctl: {wrong}: ")
    assert ctl("topology", "--svg", "/dev/full").returncode == 1
    assert Path("/dev/full").is_char_device()
    assert {path.name for path in tmp_path.iterdir()} == {"real.svg", "link.svg"}
    printed = ctl("topology", "--svg", "/dev/stdout").stdout
    assert ElementTree.fromstring(printed).tag == f"{SVG}svg"
