# SPDX-License-Identifier: BSD-3-Clause
"""mtlshm-dra killed between any two of its steps: no lcore is granted twice, leaked or lost.

A stand-in for kubelet and scheduler prepares claims and ends them, so many that the pool is often full. Each call is
made by a process that kills itself at a line chosen at random. Then kubelet, which has no answer, makes the call again,
or ends the claim. What the table and the CDI directory have must then be what kubelet was told, and no more.

Deaths within the core's functions are tools/crashtest's.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import pathlib
import random
import signal
import sys
import tempfile
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

from lab.api_stand_in import claim
from lab.sysfs import Machine
from mtlshm import CpuSet, Host, Kind
from mtlshm.dra import cdi, driver
from mtlshm.dra.api import Api
from mtlshm.dra.devices import devices
from mtlshm.dra.messages import Claim

POOL = CpuSet.parse("4-15")
WISHES = (2, 2, 4, 6, 2, 4)  # lcores of each claim; more than the pool has
STEPS = {str(Path(module.__file__)) for module in (driver, cdi, sys.modules["mtlshm.host"], pathlib) if module.__file__}


class Wrong(Exception):
    """A promise was broken."""


class Objects(Api):
    """A STAND-IN for the API server, without a network."""

    def __init__(self, objects: dict[str, Any]) -> None:
        self._objects = objects

    async def get(self, path: str) -> dict[str, Any]:
        await asyncio.sleep(0)
        found: dict[str, Any] = self._objects[path]
        return found


class Node:
    """One node, as kubelet sees it."""

    def __init__(self, place: Path, segment: str) -> None:
        self.segment, self.cdi = segment, place / "cdi"
        sysfs = str(Machine(cores=8, threads=2).write(place / "sysfs"))
        self.host = Host(segment, sysfs=sysfs)
        objects = dict(claim(f"uid-{i}", "node-1", ("lcores-node0", n)) for i, n in enumerate(WISHES))
        self.claims = [Claim("studio", f"uid-{i}", f"claim-of-uid-{i}") for i in range(len(WISHES))]
        found = devices(POOL, self.host.topology())
        self.driver = driver.Driver("node-1", found, Objects(objects), self.cdi, segment, sysfs)
        self.told: dict[int, CpuSet] = {}  # what kubelet has an answer about

    def prepare(self, number: int) -> Coroutine[Any, Any, Any]:
        return self.driver.prepare([self.claims[number]])

    def unprepare(self, number: int) -> Coroutine[Any, Any, Any]:
        return self.driver.unprepare([self.claims[number]])

    def finish(self, number: int, prepare: bool) -> None:
        """The call that has an answer."""
        (result,) = asyncio.run((self.prepare if prepare else self.unprepare)(number)).values()
        if result.error:
            raise Wrong(result.error)
        there = self.host.reservation(f"claim-uid-{number}")
        if prepare and there:
            self.told.setdefault(number, there.lcores)
        if not prepare:
            self.told.pop(number, None)

    def check_files(self) -> None:
        """Wrong if a container runtime could read half of one."""
        for path in self.cdi.glob("*.json"):
            try:
                json.loads(path.read_text())
            except ValueError:
                raise Wrong(f"half a file: {path.name}") from None

    def check(self) -> None:
        """Wrong if anything is there twice, too much or missing."""
        self.host.sweep()
        table = self.host.snapshot()
        reserved = {info.key: info.lcores for info in table.instances if info.kind == Kind.RESERVATION}
        if reserved != {f"claim-uid-{number}": lcores for number, lcores in self.told.items()}:
            raise Wrong(f"the table has {reserved}, and kubelet was told {self.told}")
        if len(table.lcores) != sum(WISHES[number] for number in self.told):
            raise Wrong(f"{len(table.lcores)} lcores are held for {self.told}")
        files = {path.name: path for path in self.cdi.iterdir()} if self.cdi.exists() else {}
        if files.keys() != {f"dra.mtlshm-claim-uid-{number}.json" for number in self.told}:
            raise Wrong(f"the CDI directory has {sorted(files)}, and kubelet was told {self.told}")
        for number, lcores in self.told.items():
            (device,) = json.loads(files[f"dra.mtlshm-claim-uid-{number}.json"].read_text())["devices"]
            if f"MTLSHM_LCORES={lcores}" not in device["containerEdits"]["env"]:
                raise Wrong(f"claim {number} has lcores {lcores}, and its containers are told {device}")


def in_a_process(call: Callable[[], Coroutine[Any, Any, Any]], last: int) -> tuple[bool, int]:
    """Whether it was killed, at line `last` that it ran, and how many lines it ran if not."""
    reading, writing = os.pipe()
    if not (pid := os.fork()):
        lines = 0

        def trace(frame: FrameType, event: str, _: Any) -> Any:
            nonlocal lines
            if frame.f_code.co_filename not in STEPS:
                return None
            if event == "line":
                lines += 1
                if lines == last:
                    os.kill(os.getpid(), signal.SIGKILL)
            return trace

        with suppress(BaseException):
            sys.settrace(trace)
            asyncio.run(call())
            sys.settrace(None)
            os.write(writing, str(lines).encode())
        os._exit(0)
    os.close(writing)
    with open(reading) as answer:
        lines = int(answer.read() or 0)
    _, status = os.waitpid(pid, 0)
    return os.WIFSIGNALED(status), lines


def run(node: Node, kills: int, source: random.Random) -> dict[str, int]:
    """So many kills; what happened."""
    counts = {"kills": 0, "prepared": 0, "unprepared": 0, "turned back": 0}
    longest = {True: 0, False: 0}  # lines of a call that was not killed
    while counts["kills"] < kills:
        number = source.randrange(len(WISHES))
        prepare = number not in node.told or source.random() < 0.2  # kubelet asks again after its own restart
        room = len(POOL) - sum(WISHES[each] for each in node.told)
        if number not in node.told and WISHES[number] > room:
            prepare = False  # the scheduler does not give what is not there; kubelet may end what never was
        last = source.randint(1, longest[prepare] + 10) if longest[prepare] else 0
        killed, lines = in_a_process(lambda: (node.prepare if prepare else node.unprepare)(number), last)  # noqa: B023
        counts["kills"] += killed
        node.check_files()
        longest[prepare] = max(longest[prepare], lines)
        if prepare and source.random() < 0.3:  # the pod is deleted meanwhile
            prepare = False
            counts["turned back"] += 1
        node.finish(number, prepare)
        counts["prepared" if prepare else "unprepared"] += 1
        node.check()
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=14)
    given = parser.parse_args()
    logging.disable()
    with tempfile.TemporaryDirectory(prefix="mtlshm-dra-") as place:
        segment = f"/dev/shm/{Path(place).name}"
        try:
            node = Node(Path(place), segment)
            counts = run(node, given.kills, random.Random(given.seed))
        except Wrong as error:
            sys.exit(f"dra_kills: FAILED: {error}")
        finally:
            with suppress(FileNotFoundError):
                os.unlink(segment)
    print(f"dra_kills: PASSED: {counts}, 0 granted twice, 0 leaked, 0 lost")


if __name__ == "__main__":
    main()
