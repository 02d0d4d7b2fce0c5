# SPDX-License-Identifier: BSD-3-Clause
"""tools/fuzz finds nothing wrong with what takes input, and something with each copy that has a bug planted."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def fuzz(*arguments: object) -> str:
    """The last line."""
    command = [str(ROOT / "tools/fuzz"), *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    return done.stdout.splitlines()[-1]


@pytest.mark.slow
def test_no_input_is_a_crash_a_hang_or_an_answer_less(tmp_path: Path) -> None:
    assert fuzz("--seconds", 60, "--json", tmp_path / "figures.json").startswith("fuzz: PASSED: 3 targets, 0 with")
    targets = json.loads((tmp_path / "figures.json").read_text())["targets"]
    assert targets["segment"]["segments"] > 100  # what was given nothing would pass as well
    assert targets["segment"]["coverage"] > 300
    assert targets["socket"]["requests"] > 1000
    if os.geteuid() == 0:
        assert targets["socket"]["at an interface"]["granted"] > 10
    assert all(targets["text"][name] > 100 for name in ("config", "channels", "rules", "lcores", "wire"))


@pytest.mark.slow
@pytest.mark.parametrize("bug", ["truncation-kills", "half-a-record-lost", "half-a-record-answered", "not-a-number"])
def test_it_finds_a_planted_bug(bug: str) -> None:
    assert fuzz("--self-test", bug).startswith("fuzz: PASSED: 1 of 1 planted bugs found")
