# SPDX-License-Identifier: BSD-3-Clause
"""What operators see and do of the chain. All else of mtlshm-ctl is tested on the host; here, each start takes long."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from lab.processes import BIN
from lab.vm_nic import Nic, run
from mtlshm.net.attached import look
from mtlshm.net.xdp import find_object

FOREIGN = "xdpfilt_alw_all"  # of xdp-tools: lets all packets pass


def ctl(state: Path, *words: str) -> str:
    return run(BIN / "mtlshm-ctl", "xdp", *words, "--state", state)


def test_the_chain_is_loaded_shown_and_unloaded_beside_somebody_elses_program(nic: Nic, tmp_path: Path) -> None:
    run("xdp-loader", "load", "-m", "native", nic.link.name, find_object(f"{FOREIGN}.o"))
    assert ctl(tmp_path, "load", nic.link.name) == f"{nic.link.name}: chain, native mode, kept\n"
    (row,) = json.loads(ctl(tmp_path, "status", "--json"))["interfaces"]
    assert (row["way"], row["dispatcher"], row["kept"]) == ("chain", True, True)
    assert {program["name"]: program["by"] for program in row["programs"]} == {
        "mtl_dp_filter": "mtlshm",
        "xsk_def_prog": "mtlshm",
        FOREIGN: "somebody else",
    }
    assert row["counters"]["unclaimed"] is None
    assert ctl(tmp_path, "unload", nic.link.name) == f"{nic.link.name}: unloaded\n"
    assert [program.name for program in asyncio.run(look(nic.link.index)).programs] == [FOREIGN]
