# SPDX-License-Identifier: BSD-3-Clause
"""The core on a 32-bit machine whose time_t has 64 bits."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMPILER = "i686-linux-gnu-gcc"

WAIT = """
#include <string.h>
#include "mtlshm.h"

int main(int count, char **words)
{
    struct mtlshm_cpuset all;
    const struct mtlshm_identity identity = {.cpus = &all};
    struct mtlshm_host *host;
    struct mtlshm_instance *holder, *waiter;

    memset(&all, 0xff, sizeof(all));
    if (count != 2 || mtlshm_open(&host, words[1], MTLSHM_CREATE, NULL) || mtlshm_register(&holder, host, &identity) ||
        mtlshm_register(&waiter, host, &identity) || mtlshm_lock(holder, 0))
        return 2;
    return mtlshm_lock(waiter, 500) == 0;
}
"""


@pytest.mark.skipif(
    not (shutil.which(COMPILER) and shutil.which("strace")),
    reason=f"no {COMPILER} or no strace; not tested: 32-bit machines",
)
def test_waiting_sleeps(segment: str, tmp_path: Path) -> None:
    """A sleep that the kernel takes for one of 0 ns would be asked for ten thousand times."""
    (tmp_path / "wait.c").write_text(WAIT)
    core = [ROOT / "cffi_build" / name for name in (ROOT / "cffi_build/sources.txt").read_text().split()]
    flags = ["-static", "-O2", "-w", "-march=i686", "-std=c11", "-pthread"]
    flags += ["-D_GNU_SOURCE", "-D_FILE_OFFSET_BITS=64", "-D_TIME_BITS=64"]
    program, calls = tmp_path / "wait", tmp_path / "calls"
    subprocess.run([COMPILER, *flags, "-I", ROOT / "cffi_build", "-o", program, tmp_path / "wait.c", *core], check=True)
    command = ["strace", "-o", calls, "-e", "trace=futex,futex_time64,clock_nanosleep,clock_nanosleep_time64"]
    subprocess.run([*command, program, segment], check=True, env=os.environ)
    assert 0 < len(re.findall(r"^(?:futex|clock_nanosleep)", calls.read_text(), re.MULTILINE)) < 100
