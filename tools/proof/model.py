# SPDX-License-Identifier: BSD-3-Clause
"""The models of the protocol in cffi_build/model/, searched exhaustively by spin; with --self-test, their mutants."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from proof.models import MUTANTS, SEARCHES, Search
from proof.plants import Plant, planted
from proof.proof import ROOT, arguments, check_names, verdict

NAME = "model"
MODELS = ROOT / "cffi_build/model"

_DEPTH = 5_000_000
_MEGABYTES = 4096


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one search."""

    model: str
    search: str
    states: int
    error: str  # '' if none was found


def search(model: str, which: Search, directory: Path, mutant: Plant | None = None) -> Outcome:
    """Search in a new directory, which is made."""
    planted(MODELS, mutant, directory)
    defines = [f"-D{name}" if value is None else f"-D{name}={value}" for name, value in which.sizes.items()]

    def run(*command: str) -> str:
        return subprocess.run(command, cwd=directory, check=True, stdout=subprocess.PIPE, text=True).stdout

    run("spin", "-a", *defines, f"{model}.pml")
    kind = ["-DNP"] if which.fair else ["-DSAFETY"]
    run("cc", "-O2", "-w", "-DCOLLAPSE", f"-DMEMLIM={_MEGABYTES}", *kind, "-o", "pan", "pan.c")
    said = run("./pan", f"-m{_DEPTH}", *(["-l", "-f"] if which.fair else []))
    error = re.search(r"^pan:\d+: (.*)$", said, re.MULTILINE)
    states = re.search(r"^ *([\d.e+]+) states, stored", said, re.MULTILINE)
    if not states or ("Search not completed" in said and not error) or "max search depth too small" in said:
        raise RuntimeError(f"{model}, {which.name}: the search did not come to its end\n{said}")
    return Outcome(model, which.name, int(float(states[1])), error[1] if error else "")


def find(name: str, directory: Path) -> str:
    """What is wrong with a mutant; '' if nothing is found."""
    model = MUTANTS[name].file.removesuffix(".pml")
    for n, which in enumerate(SEARCHES[model]):
        outcome = search(model, which, directory / f"{name}-{n}", MUTANTS[name])
        if outcome.error:
            return f"{outcome.search}: {outcome.error}"
    return ""


def main() -> int:
    parser = arguments(__doc__, NAME)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="which models, or with --self-test which mutants (all)"
    )
    options = parser.parse_args()
    begin = time.monotonic()
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        if options.self_test:
            names = check_names(parser, options.names, MUTANTS)
            found = {}
            for name, what in zip(names, pool.map(lambda name: find(name, options.directory), names), strict=True):
                found[name] = what
                print(f"{name} ({MUTANTS[name].what}): {what or 'NOT FOUND'}", flush=True)
            caught = sum(map(bool, found.values()))
            sentence = f"{caught} of {len(found)} mutants found ({time.monotonic() - begin:.0f} s)"
            return verdict(NAME, caught == len(found), sentence, {"found": found}, options.json)

        names = check_names(parser, options.names, SEARCHES)
        searches = [(model, which) for model in names for which in SEARCHES[model]]
        jobs = [
            pool.submit(search, model, which, options.directory / f"{model}-{n}")
            for n, (model, which) in enumerate(searches)
        ]
        outcomes = []
        for job in jobs:
            outcomes.append(one := job.result())
            print(f"{one.model}, {one.search}: {one.states:,} states; {one.error or 'nothing wrong'}", flush=True)
    wrong = sum(bool(outcome.error) for outcome in outcomes)
    states = sum(outcome.states for outcome in outcomes)
    sentence = f"{len(names)} models, {states:,} states, {wrong} things wrong ({time.monotonic() - begin:.0f} s)"
    figures = {"seconds": time.monotonic() - begin, "searches": [asdict(outcome) for outcome in outcomes]}
    return verdict(NAME, not wrong, sentence, figures, options.json)


if __name__ == "__main__":
    sys.exit(main())
