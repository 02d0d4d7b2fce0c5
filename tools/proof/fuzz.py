# SPDX-License-Identifier: BSD-3-Clause
"""Nonsense of all kinds, to whoever takes input: the segment's content, the manager socket, and text that is read."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from proof.plants import FUZZ_SEGMENT, FUZZ_SELECTOR, FUZZ_SOCKET, FUZZ_TEXT, Plant, planted
from proof.proof import HERE, ROOT, arguments, check_names, verdict

NAME = "fuzz"

# Of the time there is. The segment has the most ways to be wrong, and coverage to look for them.
SHARES = {"segment": 0.5, "socket": 0.3, "text": 0.2}
PLANTS = {"segment": FUZZ_SEGMENT, "socket": FUZZ_SOCKET | FUZZ_SELECTOR, "text": FUZZ_TEXT}

_SANITIZED = ["-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=all", "-O1", "-g"]
# SECONDS are such of CPU time, or a busy machine would try less, and find less. These two are seconds of the clock:
_HANGS = 30  # for one segment
_GRACE = 3600  # then a fuzzer that does not end is itself at fault
_SECONDS_TO_FIND = 45  # a planted bug


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one target."""

    figures: dict[str, Any]
    wrong: str  # '' if nothing is


def _seeds() -> Iterator[bytes]:
    """Inputs with one change each, for libFuzzer to put together: as fuzz_segment.c reads them."""
    for how in range(32):  # where, in the lowest 3 bits, and what
        for where in range({1: 32, 7: 64}.get(how % 8, 2)):  # of the header and the first event, each field
            change = where.to_bytes(2, "little") + bytes([how]) + b"\xff\x01\x10" + bytes(5)
            yield bytes([1, how % 8, how, 0]) + change


def fuzz_segment(directory: Path, seconds: float, seed: int, plant: Plant | None) -> Outcome:
    core = planted(ROOT / "cffi_build", plant, directory / "core")
    program = directory / "fuzz_segment"
    sources = [HERE / "fuzz_segment.c", *(core / name for name in (core / "sources.txt").read_text().split())]
    flags = ["-std=c11", "-D_GNU_SOURCE", "-pthread", "-Wall", "-Wextra", *([] if plant else ["-Werror"])]
    command = ["clang", *flags, *_SANITIZED, "-I", core, "-o", program, *sources]
    subprocess.run(list(map(str, command)), check=True)

    corpus = directory / "corpus"
    corpus.mkdir()
    for n, seed_input in enumerate(_seeds()):
        (corpus / f"{n}").write_bytes(seed_input)
    options = [f"-seed={seed}", f"-timeout={_HANGS}", "-max_len=400"]
    # SIGBUS is the core's own affair; the others are for the sanitizers.
    options += ["-len_control=0", "-handle_bus=0", "-print_final_stats=1", f"-artifact_prefix={directory}/"]
    environment = os.environ | {
        "ASAN_OPTIONS": "handle_sigbus=0:quarantine_size_mb=16",
        "MTLSHM_FUZZ": f"{directory}/segment",
    }
    status, output = _run_for(seconds, [program, *options, corpus], environment, directory / "output")
    runs = re.search(r"^stat::number_of_executed_units: (\d+)", output, re.MULTILINE)
    coverage = re.findall(r" cov: (\d+) ", output)
    figures = {"segments": int(runs[1]) if runs else 0, "coverage": int(coverage[-1]) if coverage else 0}
    if not status:
        return Outcome(figures, "")
    said = re.search(r"(not so: .*|runtime error: .*|ERROR: .*)", output)
    inputs = [path.read_bytes().hex() for path in directory.glob("*-*") if path.is_file()]
    what = said[1] if said else f"it ended with {status}"
    return Outcome(figures, f"{what}{f'; input {inputs[0]}' if inputs else ''}")


def _run_for(seconds: float, command: list[Any], environment: dict[str, str], log: Path) -> tuple[int, str]:
    """Run libFuzzer for so many seconds of CPU time; returns its status and what it said."""
    with log.open("wb") as stderr:
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=stderr)
    with process:
        try:
            watched, deadline, told = psutil.Process(process.pid), time.monotonic() + _GRACE, False
            while process.poll() is None and time.monotonic() < deadline:
                times = watched.cpu_times()
                if not told and times.user + times.system >= seconds:
                    process.send_signal(signal.SIGUSR1)  # to end in good order
                    told = True
                time.sleep(0.05)
        finally:
            process.kill()
    return process.returncode, log.read_text(errors="replace")


def _package(directory: Path, plant: Plant | None) -> Path:
    """A copy of the package with the bug, which is compiled in if it is one in C."""
    if plant is None or plant.file.endswith(".py"):
        planted(ROOT / "mtlshm", plant, directory / "mtlshm")
        return directory
    planted(ROOT / "mtlshm", None, directory / "mtlshm")
    planted(ROOT / "cffi_build", plant, directory / "cffi_build")
    for name in ("setup.py", "VERSION"):
        shutil.copy(ROOT / name, directory)
    for old in directory.glob("mtlshm/_core.*.so"):
        old.unlink()
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace", "--force"]
    subprocess.run(command, cwd=directory, check=True, capture_output=True)
    return directory


def _fuzz_python(name: str, directory: Path, seconds: float, seed: int, plant: Plant | None) -> Outcome:
    """In a process of its own, which imports the package with the bug."""
    package = _package(directory / "package", plant)
    arguments = [str(package), str(directory / "files"), str(seconds), str(seed)]
    command = [sys.executable, "-P", "-m", f"proof.fuzz_{name}", *arguments]
    environment = os.environ | {"PYTHONPATH": str(package)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=_GRACE)
    try:
        said = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        raise RuntimeError(f"{name}: the fuzzer itself failed\n{done.stderr}") from None
    return Outcome(said.get("figures", {}), said.get("wrong", ""))


def fuzz(target: str, directory: Path, seconds: float, seed: int, plant: Plant | None = None) -> Outcome:
    """In a new directory, which is made."""
    directory.mkdir()
    if target == "segment":
        return fuzz_segment(directory, seconds, seed, plant)
    return _fuzz_python(target, directory, seconds, seed, plant)


def test_itself(names: list[str], directory: Path, seed: int) -> dict[str, str]:
    """What gave away each planted bug."""

    def find(name: str) -> str:
        target = next(target for target, plants in PLANTS.items() if name in plants)
        return fuzz(target, directory / name, _SECONDS_TO_FIND, seed, PLANTS[target][name]).wrong

    found = {}
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for name, wrong in zip(names, pool.map(find, names), strict=True):
            found[name] = wrong
            print(f"{name}: {wrong[:300] or 'NOT FOUND'}", flush=True)
    return found


def main() -> int:
    parser = arguments(__doc__, NAME)
    parser.add_argument("--seconds", type=float, default=60, help="of CPU time, for all targets together (60)")
    parser.add_argument("names", nargs="*", metavar="NAME", help="which targets, or with --self-test which bugs (all)")
    options = parser.parse_args()
    begin = time.monotonic()
    if options.self_test:
        known = [name for plants in PLANTS.values() for name in plants]
        found = test_itself(check_names(parser, options.names, known), options.directory, options.seed)
        caught = sum(map(bool, found.values()))
        sentence = f"{caught} of {len(found)} planted bugs found ({time.monotonic() - begin:.0f} s)"
        return verdict(NAME, caught == len(found), sentence, {"found": found}, options.json)

    targets = check_names(parser, options.names, SHARES)
    total = sum(SHARES[target] for target in targets)
    outcomes = {}
    for target in targets:
        seconds = options.seconds * SHARES[target] / total
        outcomes[target] = one = fuzz(target, options.directory / target, seconds, options.seed)
        print(f"{target}: {one.wrong or 'nothing wrong'}; {one.figures}", flush=True)
    wrong = sum(bool(one.wrong) for one in outcomes.values())
    sentence = (
        f"{len(targets)} targets, {wrong} with something wrong (seed {options.seed}, {time.monotonic() - begin:.0f} s)"
    )
    figures = {target: {"wrong": one.wrong, **one.figures} for target, one in outcomes.items()}
    return verdict(NAME, not wrong, sentence, {"seed": options.seed, "targets": figures}, options.json)


if __name__ == "__main__":
    sys.exit(main())
