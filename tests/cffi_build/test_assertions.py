# SPDX-License-Identifier: BSD-3-Clause
"""assertion.h: what is touched without its lock, or in the wrong order, ends the process, in every build."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest

from lab.processes import compile_program
from proof.plants import FUZZ_SEGMENT, Plant, planted

CORE = Path(__file__).parents[2] / "cffi_build"
PROGRAM = """
#include "mtlshm.h"
int main(int count, char **arguments)
{
	struct mtlshm_host *host;

	return count != 2 || mtlshm_open(&host, arguments[1], MTLSHM_CREATE, NULL) || mtlshm_close(host);
}
"""


def close(plant: Plant | None, segment: str, directory: Path) -> subprocess.CompletedProcess[str]:
    """A process that opens a segment and closes it, of a core with this bug."""
    core = planted(CORE, plant, directory / "core")
    source, program = directory / "close.c", directory / "close"
    source.write_text(PROGRAM)
    sources = [core / name for name in (core / "sources.txt").read_text().split()]
    compile_program(program, source, *sources, flags=["-DNDEBUG", "-O0", "-I", core])
    return subprocess.run([program, segment], stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize(
    ("bug", "assertion"),
    [("unmaps-what-is-watched", "!is_watched(memory)"), ("unwatches-without-the-guard", "life_guarded()")],
)
def test_a_table_unmapped_at_the_wrong_moment_ends_the_process(
    bug: str, assertion: str, segment: str, tmp_path: Path
) -> None:
    done = close(FUZZ_SEGMENT[bug], segment, tmp_path)
    assert done.returncode == -signal.SIGABRT
    assert f"Assertion `{assertion}' failed" in done.stderr


def test_without_a_bug_it_goes_on(segment: str, tmp_path: Path) -> None:
    done = close(None, segment, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
