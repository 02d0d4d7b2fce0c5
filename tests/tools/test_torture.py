# SPDX-License-Identifier: BSD-3-Clause
"""tools/torture finds nothing wrong with mtlshm, and something with a bug planted in the core; it leaves nothing."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from lab.processes import eventually, namespaces_work

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(
    not namespaces_work(), reason="unshare(1) makes no namespaces here; not tested: many processes dying at random"
)


def torture(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [str(ROOT / "tools/torture"), *map(str, arguments)]
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.slow
def test_no_death_duplicates_or_loses_an_lcore(tmp_path: Path) -> None:
    done = torture("--kills", 10_000, "--json", tmp_path / "figures.json")
    assert done.returncode == 0, done.stdout
    assert done.stdout.splitlines()[-1].startswith("torture: PASSED: ")
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["kills"] >= 10_000
    # What nobody did proves nothing.
    for what in ("granted", "killed", "stopped"):
        assert all(figures[what].values()), what
    for what in ("restarts", "forked", "executed", "inherited", "lendings", "orphaned", "semaphores"):
        assert figures[what], what
    assert figures["returns"] >= 1000


@pytest.mark.slow
@pytest.mark.parametrize("bug", ["claims-by-load-and-store", "child-is-its-parent", "keeps-no-parent"])
def test_it_finds_a_planted_bug(bug: str) -> None:
    done = torture("--self-test", bug)
    assert done.returncode == 0, done.stdout
    assert done.stdout.splitlines()[-1].startswith("torture: PASSED: 1 of 1 planted bugs found")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_of_it_when_it_is_ended(number: int, tmp_path: Path) -> None:
    """In a session of its own, of which nothing is left; what it has in System V memory ends with its namespace."""

    def in_session() -> set[str]:
        command = ["ps", "-o", "args=", "--sid", str(process.pid)]
        return set(subprocess.run(command, stdout=subprocess.PIPE, text=True).stdout.splitlines())

    def directory() -> Path | None:
        found = re.search(r"/dev/shm/mtlshm-torture\.\w+", "\n".join(in_session()))
        return Path(found[0]) if found else None

    command = [ROOT / "tools/torture", "--kills", "1000000"]
    with (tmp_path / "output").open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
    try:
        eventually(lambda: any(" legacy " in line for line in in_session()) or process.poll() is not None)
        place = directory()
        assert place, (tmp_path / "output").read_text()
    finally:
        if process.poll() is None:
            # SIGKILL for the tool alone: the shell that started it removes its files.
            os.kill(child_of(process.pid) if number == signal.SIGKILL else process.pid, number)
        process.wait()
    eventually(lambda: not in_session())
    assert not place.exists()


def child_of(pid: int) -> int:
    """The one that runs the tool's Python program."""
    command = ["ps", "-o", "pid=,args=", "--ppid", str(pid)]
    listing = subprocess.run(command, stdout=subprocess.PIPE, text=True).stdout
    return next(int(line.split()[0]) for line in listing.splitlines() if "proof.torture" in line)
