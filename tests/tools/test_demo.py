# SPDX-License-Identifier: BSD-3-Clause
"""tools/demo shows what it says, and leaves the host as it was."""

from __future__ import annotations

import subprocess
from pathlib import Path

from mtlshm.manager_client import default_socket

ROOT = Path(__file__).parents[2]


def left() -> set[Path]:
    """What it could leave, or take from the host."""
    shared = set(Path("/dev/shm").glob("mtlshm-demo.*"))
    return {path for path in (Path(default_socket()), Path("/dev/shm/mtlshm"), *shared) if path.exists()}


def test_it_works_and_leaves_nothing() -> None:
    before = left()
    done = subprocess.run([ROOT / "tools/demo"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    assert "held by a living owner" in done.stdout
    assert left() == before
