# SPDX-License-Identifier: BSD-3-Clause
"""The figures of the daemon, and of deaths with and without one."""

import os
import re
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from random import SystemRandom
from threading import Thread
from time import perf_counter_ns, sleep

import sysv_ipc

from benchmarks.measure import ROOT, Bench, Figure, Measure, figure, pinned

KILLS = 500
STARTS = 15
SETTLE_S = 2
IDLE_S = 10

# What any daemon in this language and on this library starts with.
EMPTY_ASYNCIO = [
    sys.executable,
    "-c",
    """
import asyncio, sys
async def main():
    print("ready", file=sys.stderr, flush=True)
    await asyncio.sleep(3600)
asyncio.run(main())
""",
]


def mtlshmd(bench: Bench, *options: str) -> list[str]:
    # The machine's own configuration, socket and legacy table are not for us.
    ours = ["--config", os.devnull, "--segment", str(bench.segment), "--socket", str(bench.directory / "manager.sock")]
    ours += ["--state", str(bench.directory / "state")]
    return [str(ROOT / ".venv/bin/mtlshmd"), *ours, *(options or ("--legacy", "off"))]


def on_made_up_cpus(command: list[str], bench: Bench) -> list[str]:
    """A daemon that takes those of `bench` for online."""
    online = bench.sysfs / "devices/system/cpu/online"
    code = f"from mtlshm.daemon import app, eal; eal.ONLINE = eal.Path({str(online)!r}); app.main()"
    return [str(ROOT / ".venv/bin/python"), "-P", "-c", code, *command[1:]]


@contextmanager
def with_all_duties(bench: Bench) -> Iterator[list[str]]:
    """A daemon with a legacy table too."""
    key = SystemRandom().randrange(1 << 28, 1 << 30)
    try:
        yield mtlshmd(bench, "--legacy-key", str(key), "--legacy-lock", str(bench.directory / "legacy.lock"))
    finally:
        with suppress(sysv_ipc.ExistentialError):
            sysv_ipc.SharedMemory(key).remove()


@contextmanager
def running(command: Sequence[str]) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Starts a program, waits until it says that it is ready; the process, and ns until then."""
    start = perf_counter_ns()
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    said = deque[str](maxlen=20)
    try:
        for line in process.stderr:
            said.append(line)
            if re.search(r"\bready\b", line):
                break
        else:
            raise RuntimeError(f"{command[0]} never was ready; it said:\n{''.join(said)}")
        took = perf_counter_ns() - start
        # Whatever else it says must not fill the pipe.
        Thread(target=said.extend, args=(process.stderr,), daemon=True).start()
        yield process, took
        if process.poll() is not None:
            raise RuntimeError(f"{command[0]} ended by itself; it said:\n{''.join(said)}")
    finally:
        process.terminate()
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def status_field(path: Path, field: str) -> int:
    match = re.search(rf"^{field}:\s*(\d+)", path.read_text(), re.MULTILINE)
    assert match is not None
    return int(match[1])


def death(kind: str, instances: int) -> Measure:
    def measure(bench: Bench, name: str) -> Figure:
        with ExitStack() as stack:
            with pinned(1):  # the observer has the first CPU: see death.c
                stack.enter_context(running(mtlshmd(bench)))
            turns = bench.turns("death", kind, instances, KILLS)
        victim = "an instance" if kind == "free" else "a process"
        baseline = f"SIGKILL of {victim} seen through a pidfd by a C process, no daemon"
        return figure(name, "µs", baseline, turns, scale=1e-3, events=True)

    return measure


def death_grant(bench: Bench, name: str) -> Figure:
    turns = bench.turns("death", "grant", 1, KILLS)
    return figure(name, "µs", "through a C epoll server that sees the socket close", turns, scale=1e-3, events=True)


def daemon_start(bench: Bench, name: str) -> Figure:
    def once(command: Sequence[str]) -> float:
        bench.segment.unlink(missing_ok=True)
        with running(command) as (_, ns):
            return ns

    with with_all_duties(bench) as command:
        turns = [(once(command), once(EMPTY_ASYNCIO)) for _ in range(STARTS)]
    return figure(name, "ms", "an empty asyncio program", turns, scale=1e-6)


def daemon_rss(bench: Bench, name: str) -> Figure:
    def once(command: Sequence[str]) -> float:
        with running(command) as (process, _):
            sleep(SETTLE_S)
            return status_field(Path(f"/proc/{process.pid}/status"), "VmRSS") * 1024

    with with_all_duties(bench) as command:
        turns = [(once(command), once(EMPTY_ASYNCIO)) for _ in range(3)]
    return figure(name, "MB", "an empty asyncio program", turns, scale=1e-6)


def daemon_wakeups(bench: Bench, name: str) -> Figure:
    with with_all_duties(bench) as command, running(command) as (process, _):

        def switches() -> int:
            return sum(
                status_field(status, "voluntary_ctxt_switches") + status_field(status, "nonvoluntary_ctxt_switches")
                for status in Path(f"/proc/{process.pid}/task").glob("*/status")
            )

        sleep(SETTLE_S)
        before = switches()
        sleep(IDLE_S)
        return Figure(name, switches() - before, f"wake-ups in {IDLE_S} s")


FIGURES: dict[str, Measure] = {
    "death_1": death("free", 1),
    "death_64": death("free", 64),
    "death_250": death("free", 250),
    "death_grant": death_grant,
    "daemon_start": daemon_start,
    "daemon_rss": daemon_rss,
    "daemon_wakeups": daemon_wakeups,
}
