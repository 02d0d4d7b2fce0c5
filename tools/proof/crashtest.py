# SPDX-License-Identifier: BSD-3-Clause
"""A process is killed, and stopped, at every instruction of every call that changes the segment."""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from proof.plants import CORE
from proof.proof import HERE, arguments, build, check_names, verdict

NAME = "crashtest"

# Of these only the changes and system calls, however long one waits: it is mostly the reading of CPUs from sysfs,
# which touches nothing that is shared.
TOO_LONG = {"claim_many_at_first"}

TURNS = 5  # at most, for a planted bug

STATIC = ["-static", "-no-pie"]  # the same addresses in every process, and no dynamic linker in between


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one scenario."""

    scenario: str
    instructions: int = 0
    changes: int = 0  # of the segment, and system calls,
    calls: int = 0  # and the latter alone
    killed: int = 0
    stopped: int = 0
    repeated: int = 0
    astray: int = 0  # killed or stopped elsewhere than planned, since that victim's trace was another
    failures: int = 0


class Crashes:
    """Runs scenarios, each on a CPU of its own as long as there are any."""

    def __init__(self, program: Path, directory: Path, seed: int) -> None:
        self._program, self._seed = program, seed
        self._directory = directory / f"{program.name}.segments"
        self._directory.mkdir(parents=True)
        self._sysfs = directory / f"{program.name}.sysfs"
        cpus = self._sysfs / "devices/system/cpu"
        cpus.mkdir(parents=True)
        for name in ("possible", "online"):
            (cpus / name).write_text("0-15\n")
        self._cpus: queue.SimpleQueue[int] = queue.SimpleQueue()
        for cpu in os.sched_getaffinity(0):
            self._cpus.put(cpu)

    def names(self) -> list[str]:
        return subprocess.run([self._program, "list"], check=True, stdout=subprocess.PIPE, text=True).stdout.split()

    def run(self, name: str, how: str) -> tuple[Outcome, list[str]]:
        """What came of it, and what was wrong."""
        own = self._directory / name  # open leaves nothing else in the directory
        own.mkdir()
        cpu = self._cpus.get()
        try:
            command = [str(self._program), name, str(own / "segment"), str(self._sysfs), str(cpu), str(self._seed), how]
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        finally:
            self._cpus.put(cpu)
            (own / "segment").unlink(missing_ok=True)
        wrong, outcome = [], None
        for line in done.stdout.splitlines():
            kind, *words = line.split("\t")
            if kind == "wrong":
                _, position, address, doing, what = words
                wrong.append(f"{name}, {doing} at instruction {position} ({self._place(address)}): {what}")
            elif kind == "done":
                outcome = Outcome(words[0], *map(int, words[1:]))
            else:
                wrong.append(line)
        if outcome is None:
            outcome = Outcome(name, failures=1)
            wrong.append(f"{name}: it ended with status {done.returncode} before it was done")
        return outcome, wrong

    def _place(self, address: str) -> str:
        command = ["addr2line", "-fse", str(self._program), address]
        function, line = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split("\n")[:2]
        return f"{function}, {line}"

    def run_all(self, names: Iterable[str], how: str) -> Iterator[tuple[Outcome, list[str]]]:
        with ThreadPoolExecutor(self._cpus.qsize()) as pool:
            yield from pool.map(lambda name: self.run(name, "changes" if name in TOO_LONG else how), names)


def find(name: str, directory: Path, seed: int) -> str:
    """What gives away a planted bug; '' if nothing does.

    What a rival does is left to chance, and one turn misses a bug once in twenty times.
    """
    program = build(directory / name, HERE / "crash", CORE[name], *STATIC)
    for turn in range(TURNS):
        crashes = Crashes(program, directory / f"turn-{turn}", seed + turn)
        for scenario in crashes.names():
            outcome, wrong = crashes.run(scenario, "changes")
            if outcome.failures:
                return wrong[0]
    return ""


def test_itself(names: list[str], directory: Path, seed: int) -> dict[str, str]:
    """What gave away each planted bug."""
    found = {}
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for name, what in zip(names, pool.map(lambda name: find(name, directory, seed), names), strict=True):
            found[name] = what
            print(f"{name} ({CORE[name].what}): {what or 'NOT FOUND'}", flush=True)
    return found


def main() -> int:
    parser = arguments(__doc__, NAME)
    parser.add_argument("--quick", action="store_true", help="of long calls only what changes something: half a minute")
    parser.add_argument("names", nargs="*", metavar="NAME", help="which calls, or with --self-test which bugs (all)")
    options = parser.parse_args()
    begin = time.monotonic()
    if options.self_test:
        found = test_itself(check_names(parser, options.names, CORE), options.directory, options.seed)
        caught = sum(map(bool, found.values()))
        sentence = f"{caught} of {len(found)} planted bugs found ({time.monotonic() - begin:.0f} s)"
        return verdict(NAME, caught == len(found), sentence, {"found": found}, options.json)

    crashes = Crashes(
        build(options.directory / "crash", HERE / "crash", None, *STATIC), options.directory, options.seed
    )
    names = check_names(parser, options.names, crashes.names())
    outcomes = []
    for outcome, wrong in crashes.run_all(names, "changes" if options.quick else "every"):
        outcomes.append(outcome)
        print(*wrong, sep="\n", end="\n" if wrong else "")
        words = (f"{getattr(outcome, field.name)} {field.name}" for field in fields(outcome)[1:])
        print(f"{outcome.scenario}: {', '.join(words)}", flush=True)
    total = {field.name: sum(getattr(o, field.name) for o in outcomes) for field in fields(Outcome)[1:]}
    sentence = (
        f"{total['killed']:,} kills and {total['stopped']:,} stops in {total['instructions']:,} instructions of "
        f"{len(outcomes)} calls; {total['failures']} things wrong"
        f" (seed {options.seed}, {time.monotonic() - begin:.0f} s)"
    )
    figures = {
        "seed": options.seed,
        "seconds": time.monotonic() - begin,
        "total": total,
        "scenarios": list(map(asdict, outcomes)),
    }
    return verdict(NAME, not total["failures"], sentence, figures, options.json)


if __name__ == "__main__":
    sys.exit(main())
