# SPDX-License-Identifier: BSD-3-Clause
"""tools/crashtest finds nothing wrong with the core, and something with each core that has a bug planted."""

from __future__ import annotations

import json
import platform
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

needs_x86 = pytest.mark.skipif(
    platform.machine() != "x86_64", reason="the tracer knows x86-64 only; not tested: death at every instruction"
)


def crashtest(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [str(ROOT / "tools/crashtest"), *map(str, arguments)]
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@needs_x86
@pytest.mark.slow
def test_a_process_may_be_killed_or_stopped_at_any_instruction(tmp_path: Path) -> None:
    done = crashtest("--quick", "--json", tmp_path / "figures.json")
    assert done.returncode == 0, done.stdout
    assert done.stdout.splitlines()[-1].startswith("crashtest: PASSED: ")
    scenarios = json.loads((tmp_path / "figures.json").read_text())["scenarios"]
    assert len(scenarios) > 35
    for one in scenarios:  # what killed or stopped nobody would pass as well
        assert min(one["killed"], one["stopped"]) >= min(one["instructions"], one["changes"] + 10)


@needs_x86
@pytest.mark.slow
@pytest.mark.parametrize("bug", ["claims-by-load-and-store", "no-takeover", "rolls-back-to-anybody"])
def test_it_finds_a_planted_bug(bug: str) -> None:
    done = crashtest("--self-test", bug)
    assert done.returncode == 0, done.stdout
    assert done.stdout.splitlines()[-1].startswith("crashtest: PASSED: 1 of 1 planted bugs found")
