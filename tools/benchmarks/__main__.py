# SPDX-License-Identifier: BSD-3-Clause
"""tools/bench: measures mtlshm, each figure against a baseline measured by turns in the same run."""

import argparse
import json
import os
import platform
import re
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import NoReturn

from rich.console import Console
from rich.table import Table

from benchmarks import core, ctl, daemon, manager, report, vm, xdp
from benchmarks.measure import Bench, Figure, Measure
from lab.sysfs import Machine

FIGURES = core.FIGURES | ctl.FIGURES | daemon.FIGURES | manager.FIGURES | xdp.FIGURES | vm.FIGURES


def machine() -> dict[str, object]:
    cpu = re.search(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return {
        "cpu": cpu[1] if cpu else platform.machine(),
        "cpus": len(os.sched_getaffinity(0)),
        "load": os.getloadavg()[0],  # when the run began; more than a little spoils it
        "kernel": platform.release(),
        "libc": " ".join(platform.libc_ver()),
        "compiler": subprocess.run(["cc", "--version"], stdout=subprocess.PIPE, text=True).stdout.partition("\n")[0],
        "python": platform.python_version(),
        "library": "C figures call libmtlshm.so, dynamically linked; Python's the module of the package",
        "table": "64 CPUs, made up: 2 sockets x 16 cores x 2 threads",
    }


def number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.3g}"


def show(figures: list[Figure]) -> None:
    table = Table()
    for heading in ("figure", "value", "p99", "unit", "baseline", "its value", "ratio"):
        table.add_column(heading, justify="left" if heading in ("figure", "unit", "baseline") else "right")
    for f in figures:
        ratio = "" if f.ratio is None else f"{f.ratio:.3g}"
        table.add_row(f.name, number(f.value), number(f.p99), f.unit, f.baseline, number(f.baseline_value), ratio)
    # Not cut to 80 columns where there is no terminal to ask.
    Console(width=None if sys.stdout.isatty() else 140).print(table)


def _path(text: str) -> Path:
    return Path(text).resolve()


def main() -> int:
    parser = argparse.ArgumentParser(prog="tools/bench", description=__doc__, epilog="names: " + " ".join(FIGURES))
    parser.add_argument("--directory", type=Path, required=True, help=argparse.SUPPRESS)  # from tools/enclosed
    parser.add_argument("names", nargs="*", metavar="NAME", help="what to measure (everything)")
    parser.add_argument("--all", action="store_true", help="everything, which is what no name means, too")
    # Resolved now: who comes back from another mount namespace is in its root directory.
    parser.add_argument("--report", type=_path, metavar="DIRECTORY", help="write figures.md and figures.png there")
    parser.add_argument("--json", type=_path, metavar="FILE", help="write the figures there as well")
    parser.add_argument(
        "--peer",
        nargs=2,
        metavar=("SOCKET", "COMMAND"),
        help="measure another manager program, too, which listens at the path SOCKET, in a mount namespace of its own "
        "(needs root)",
    )
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(FIGURES):
        parser.error(f"no such figure: {' '.join(sorted(unknown))} (there are: {' '.join(FIGURES)})")

    def stop(*_: object) -> NoReturn:
        raise SystemExit(130)

    signal.signal(signal.SIGTERM, stop)  # so that what was started is stopped

    sysfs = Machine(sockets=2, cores=16, threads=2, split=True).write(arguments.directory / "sysfs")
    bench = Bench(arguments.directory, sysfs)
    here = machine()
    figures, failed = [], False
    wanted: list[tuple[str, Measure]] = []
    peers = manager.peer_figures(manager.Peer(Path(arguments.peer[0]), arguments.peer[1])) if arguments.peer else {}
    for name in FIGURES if arguments.all else arguments.names or FIGURES:
        wanted.append((name, FIGURES[name]))
        if name in peers:
            wanted.append((f"{name} (peer)", peers[name]))
    for name, measure in wanted:
        print(f"{name} ...", file=sys.stderr, flush=True)
        try:
            figures.append(measure(bench, name))
        except (OSError, RuntimeError, subprocess.CalledProcessError) as e:
            print(f"{name}: {e}", file=sys.stderr)
            failed = True
        bench.segment.unlink(missing_ok=True)
    here["load at the end"] = os.getloadavg()[0]
    show(figures)
    print(
        f"load of {here['cpus']} CPUs: {here['load']:.1f} before, {here['load at the end']:.1f} after", file=sys.stderr
    )
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": here, "figures": list(map(asdict, figures))}, indent=2) + "\n")
    if arguments.report:
        report.write(arguments.report, here, figures, number)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
