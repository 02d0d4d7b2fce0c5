# SPDX-License-Identifier: BSD-3-Clause
"""topology shows the host's CPUs, with or without a segment."""

from __future__ import annotations

import json
import os
from pathlib import Path

from mtlshm import CpuSet

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
