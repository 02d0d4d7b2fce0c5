# SPDX-License-Identifier: BSD-3-Clause
"""How long mtlshm-ctl takes, beside an interpreter that does nothing.

Both run in an environment of their own, with the package as pip would install it: an editable install and sources that
are compiled at each start would be measured otherwise.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from time import perf_counter_ns

from benchmarks.measure import ROOT, Bench, Figure, Measure, figure
from lab.sysfs import Machine
from mtlshm import CpuSet, Host

TURNS = 21
INSTANCES, LCORES = 250, 1024
BASELINE = "python -c pass"

SCRIPT = """#!{python}
import sys
from mtlshm.ctl.start import main
if __name__ == "__main__":
    sys.exit(main())
"""


def installed(bench: Bench) -> Path:
    """Where its programs are. The dependencies are those of .venv, without what makes the package editable there."""
    place = bench.directory / "installed"
    programs = place / "bin"
    if programs.exists():
        return programs
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", place], check=True)
    site = place / "site"
    shutil.copytree(ROOT / "mtlshm", site / "mtlshm", ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run([programs / "python", "-m", "compileall", "-q", site], check=True)
    own = Path(sysconfig.get_path("purelib", vars={"base": str(place)}))
    (own / "benchmark.pth").write_text(f"{site}\n{sysconfig.get_path('purelib')}\n")
    (programs / "mtlshm-ctl").write_text(SCRIPT.format(python=programs / "python"))
    (programs / "mtlshm-ctl").chmod(0o755)
    return programs


@contextmanager
def full(bench: Bench) -> Iterator[None]:
    """A table in which so many hold all there is."""
    sysfs = bench.directory / "sysfs1024"
    if not sysfs.exists():
        Machine(sockets=2, cores=LCORES // 4, threads=2).write(sysfs)
    with Host(bench.segment, sysfs=sysfs) as host, ExitStack() as stack:
        cpus = CpuSet(range(LCORES))
        mine = [stack.enter_context(host.register(f"instance {n}", cpus=cpus)) for n in range(INSTANCES)]
        for number in range(LCORES):
            mine[number * INSTANCES // LCORES].claim(number)
        yield


@contextmanager
def empty(bench: Bench) -> Iterator[None]:
    """A table in which nobody holds anything."""
    with Host(bench.segment):
        yield


def ctl(words: str, table: Callable[[Bench], AbstractContextManager[None]]) -> Measure:
    def measure(bench: Bench, name: str) -> Figure:
        programs = installed(bench)
        settings = {"MTLSHM_PATH": str(bench.segment), "MTLSHMD_STATE": str(bench.directory / "state")}

        def once(program: str, *arguments: str) -> float:
            start = perf_counter_ns()
            subprocess.run(
                [programs / program, *arguments], env=os.environ | settings, stdout=subprocess.DEVNULL, check=True
            )
            return perf_counter_ns() - start

        with table(bench):
            turns = [(once("mtlshm-ctl", *words.split()), once("python", "-c", "pass")) for _ in range(TURNS)]
        return figure(name, "ms", BASELINE, turns, scale=1e-6)

    return measure


FIGURES: dict[str, Measure] = {
    "ctl_start": ctl("status", empty),
    "ctl_help": ctl("--help", empty),
    "status_250": ctl("status", full),
}
