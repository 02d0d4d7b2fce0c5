# SPDX-License-Identifier: BSD-3-Clause
"""What the figures share: how numbers become a figure, and where things are."""

import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter_ns

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Figure:
    name: str
    value: float
    unit: str
    p99: float | None = None
    baseline: str | None = None  # what it is
    baseline_value: float | None = None
    ratio: float | None = None  # value / baseline_value
    quartiles: tuple[float, float] | None = None  # of the value, over all turns


@dataclass(frozen=True)
class Bench:
    directory: Path  # for everything that is made; in shared memory
    sysfs: Path  # a made-up machine: 2 sockets x 16 cores x 2 threads

    @property
    def segment(self) -> Path:
        """Each figure's own: __main__ removes it in between, else one's dead would be collected in another's time."""
        return self.directory / "segment"

    def turns(self, program: str, *arguments: object) -> list[tuple[float, float]]:
        """Runs one of the C programs and returns what it printed: subject and baseline, a pair a turn."""
        command = [ROOT / "build/tools/benchmarks" / f"bench_{program}", self.directory, self.sysfs, *arguments]
        output = subprocess.run(list(map(str, command)), check=True, stdout=subprocess.PIPE, text=True).stdout
        return [(float(subject), float(baseline)) for subject, baseline in map(str.split, output.splitlines())]


Measure = Callable[[Bench, str], Figure]  # the second is the figure's name
Run = Callable[[int], None]  # does something so many times


def figure(
    name: str, unit: str, baseline: str, turns: Sequence[tuple[float, float]], scale: float = 1, events: bool = False
) -> Figure:
    """Medians over all turns; with `events` each turn was a single event, and has a p99."""
    subjects = sorted(subject * scale for subject, _ in turns)
    value, baseline_value = median(subjects), median(other * scale for _, other in turns)
    p99 = subjects[int(0.99 * len(subjects))] if events else None
    quartiles = subjects[len(subjects) // 4], subjects[-1 - len(subjects) // 4]
    return Figure(name, value, unit, p99, baseline, baseline_value, value / baseline_value, quartiles)


def take_turns(rounds: int, n: int, subject: Run, other: Run) -> list[tuple[float, float]]:
    """Time in ns for one of `n`, a pair a round."""

    def one(run: Run) -> float:
        run(n // 10)  # the other one has had the caches
        start = perf_counter_ns()
        run(n)
        return (perf_counter_ns() - start) / n

    return [(one(subject), one(other)) for _ in range(rounds)]


@contextmanager
def pinned(nth: int) -> Iterator[None]:
    """On the n-th CPU we may use, or the last; what is started meanwhile stays there."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {(sorted(allowed)[: nth + 1])[-1]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)
