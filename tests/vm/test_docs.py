# SPDX-License-Identifier: BSD-3-Clause
"""The commands of the documents that concern services of systemd."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.documents import ROOT, Block, blocks
from lab.processes import BIN

UNITS = Path("/usr/local/lib/systemd/system")
PROGRAMS = Path("/usr/local/bin")
SERVICES = ("mtlshmd", "mtlshm-segment")

pytestmark = pytest.mark.skipif(
    not Path("/run/systemd/system").exists(), reason="systemd is not the first process; not tested: services"
)


@pytest.fixture
def installed() -> Iterator[None]:
    """What the commands before these have installed."""
    shutil.rmtree("/etc/mtlshm", ignore_errors=True)  # the host's
    UNITS.mkdir(parents=True, exist_ok=True)
    for service in SERVICES:
        shutil.copy(ROOT / f"build/{service}.service", UNITS)
    for program in ("mtlshmd", "mtlshm-ctl"):
        (PROGRAMS / program).unlink(missing_ok=True)
        (PROGRAMS / program).symlink_to(BIN / program)
    yield
    subprocess.run(["systemctl", "disable", "--now", *SERVICES], check=True)
    subprocess.run([BIN / "mtlshmd", "--teardown"], check=True)
    for program in ("mtlshmd", "mtlshm-ctl"):
        (PROGRAMS / program).unlink()


@pytest.mark.parametrize("block", [block for block in blocks() if block.tier == "vm"], ids=str)
def test_commands(block: Block, installed: None) -> None:
    both = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    command = ["bash", "-euo", "pipefail", "-c", block.text]
    done = subprocess.run(command, **both, text=True, stdin=subprocess.DEVNULL, env=os.environ)
    assert done.returncode == 0, f"{block}\n{done.stdout}"
