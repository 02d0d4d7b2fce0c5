# SPDX-License-Identifier: BSD-3-Clause
"""tools/crashtest finds nothing wrong with the core, and something with each core that has a bug planted."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "tools/proof"))
from plants import CORE, planted  # noqa: E402 - lies beside the tools

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
    assert len(scenarios) > 20
    for one in scenarios:  # what killed or stopped nobody would pass as well
        assert min(one["killed"], one["stopped"]) >= min(one["instructions"], one["changes"] + 10)


@needs_x86
@pytest.mark.slow
@pytest.mark.parametrize("bug", ["claims-by-load-and-store", "no-takeover"])
def test_it_finds_a_planted_bug(bug: str) -> None:
    done = crashtest("--self-test", bug)
    assert done.returncode == 0, done.stdout
    assert done.stdout.splitlines()[-1].startswith("crashtest: PASSED: 1 of 1 planted bugs found")


@pytest.mark.parametrize("bug", CORE)
def test_every_bug_can_still_be_planted(bug: str, tmp_path: Path) -> None:
    core = planted(ROOT / "cffi_build", CORE[bug], tmp_path / "core")
    changed = [
        path.name for path in core.glob("*.*") if path.read_bytes() != (ROOT / "cffi_build" / path.name).read_bytes()
    ]
    assert changed == [CORE[bug].file]


def test_a_bug_that_does_not_fit_any_more_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "lease.c").write_text("something else\n")
    with pytest.raises(SystemExit, match=r"0 times in lease\.c, not once"):
        CORE["takes-half"].into(tmp_path)
