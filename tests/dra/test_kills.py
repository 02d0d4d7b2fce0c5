# SPDX-License-Identifier: BSD-3-Clause
"""The driver killed between its steps; and that this would find a driver which is wrong."""

from __future__ import annotations

import subprocess
import sys

import pytest

from lab.processes import DEADLINE

PLANT = "import sys; from mtlshm.dra import cdi, driver, naming\nfrom proof import dra_kills\n{bug}\ndra_kills.main()"


def kills(count, bug="pass"):
    command = [sys.executable, "-P", "-c", PLANT.format(bug=bug), "--kills", str(count)]
    return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE)


@pytest.mark.slow
def test_kills_between_any_two_steps_lose_nothing():
    done = kills(150)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("dra_kills: PASSED: {'kills': 150, ")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bug", "why"),
    [
        ("cdi._replace = lambda path, data: (path.parent.mkdir(exist_ok=True), path.write_bytes(data))", "half a file"),
        ("naming.key = lambda uid: f'{uid}-{__import__(\"os\").getpid()}'", "the table has"),
        ("cdi.remove = lambda directory, uid: None", "the CDI directory has"),
        ("driver.Host.end = lambda self, owner: None", "the table has"),
    ],
    ids=["not atomic", "forgets its key", "leaves files", "ends nothing"],
)
def test_a_driver_that_is_wrong_is_found(bug, why):
    done = kills(5000, bug)
    assert done.returncode == 1, done.stdout
    assert f"dra_kills: FAILED: {why}" in done.stderr
