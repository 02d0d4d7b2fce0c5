# SPDX-License-Identifier: BSD-3-Clause
"""Starts clients, stops them, kills them, and starts others in their places, until all is over.

A program of its own, since some of it runs in namespaces of its own: python -m proof.keeper SETTING, as the arena
writes it.

Each client is in a process group with its children, and its number is not free for others before the group is gone:
so no signal meets anyone else.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import signal
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from proof.witness import KINDS, Witness

_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
_PACE = 0.03  # seconds between two disturbances, if one kept a single client

# How often each is disturbed: whoever needs the daemon, or children, has to live longer to get anything.
_TENDER = {
    "shm": 6,
    "janitor": 6,
    "socket": 1,
    "legacy": 3,
    "tree": 1,
    "guest": 2,
    "steward": 2,
    "greedy": 3,
    "regular": 8,
}

# How many slots one has, for itself and its children; else two.
_SLOTS = {"tree": 7, "guest": 3}


@dataclass(frozen=True, slots=True)
class Setting:
    """What clients work on, and where they note what they get."""

    program: str
    library: str
    witness: str
    lcores: int
    segment: str
    sysfs: str
    socket: str
    key: str
    lock: str
    leases: list[str]  # of regulars

    def command(self, kind: str, slot: int, seed: int) -> list[str]:
        """Of a client."""
        words = [self.program, kind, slot, seed, self.witness, self.lcores, self.segment, self.sysfs, self.socket]
        return [*map(str, words), self.key, self.lock]


@dataclass(slots=True)
class Place:
    """Where one client lives after the other. The first of its slots is its own, the others are for children of its."""

    kind: str
    slot: int
    lease: str  # or ''
    pid: int = 0  # 0: nobody
    dead: bool = False  # killed alone; children may be left
    resume: float = 0.0  # when, if it is stopped

    @property
    def slots(self) -> range:
        return range(self.slot, self.slot + slots_of([self.kind]))


def slots_of(kinds: Iterable[str]) -> int:
    """How many these have, an even number each: the last bit tells a child."""
    return sum(_SLOTS.get(kind, 2) + 1 & ~1 for kind in kinds)


class Keeper:
    def __init__(self, setting: Setting, kinds: list[str], first_slot: int, seed: str) -> None:
        self._setting = setting
        self._witness = Witness(Path(setting.library), Path(setting.witness))
        self._places: list[Place] = []
        for kind in kinds:
            regulars = sum(place.kind == "regular" for place in self._places)
            lease = setting.leases[regulars % len(setting.leases)] if kind == "regular" else ""
            self._places.append(Place(kind, first_slot, lease))
            first_slot += slots_of([kind])
        self._weights = [_TENDER[place.kind] for place in self._places]
        self._dice = random.Random(seed)

    def run(self) -> None:
        """Until all is over, or something is wrong; then nobody is left."""
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
        while not self._witness.record.over:
            for place in self._places:
                if not place.pid:
                    self._start(place)
                elif place.resume and place.resume < time.monotonic():
                    place.resume = 0.0
                    os.kill(place.pid, signal.SIGCONT)
                elif not place.dead and os.waitid(os.P_PID, place.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                    self._clear(place)
            self._disturb()
            time.sleep(self._dice.expovariate(len(self._places) / _PACE))
        for place in self._places:
            self._clear(place)

    def _disturb(self) -> None:
        what, place = self._dice.random(), self._dice.choices(self._places, self._weights)[0]
        if what < 0.005:
            for each in self._places:
                self._clear(each)
        elif what < 0.5 or place.dead:
            self._clear(place)
        elif what < 0.7:
            self._kill_alone(place)
        elif what < 0.85 and place.pid:
            self._witness.count("stopped", KINDS.index(place.kind))
            place.resume = time.monotonic() + self._dice.expovariate(1 / 0.02)
            os.kill(place.pid, signal.SIGSTOP)

    def _start(self, place: Place) -> None:
        for slot in place.slots:
            self._witness.vacate(slot)
        seed = self._dice.getrandbits(60)
        place.dead, place.resume = False, 0.0
        command = self._setting.command(place.kind, place.slot, seed)
        environment = os.environ | ({"MTLSHM_LEASE": place.lease} if place.lease else {})
        place.pid = os.posix_spawn(self._setting.program, command, environment, setpgroup=0)

    def _kill_alone(self, place: Place) -> None:
        if place.pid:
            self._witness.condemn(place.slot)
            os.kill(place.pid, signal.SIGKILL)
            place.dead = True

    def _clear(self, place: Place) -> None:
        """Kill whoever is there, children too, and wait for the end of all."""
        if not place.pid:
            return
        for slot in place.slots:
            self._witness.condemn(slot)
        os.killpg(place.pid, signal.SIGKILL)
        with suppress(ChildProcessError):
            while True:
                _, status = os.waitpid(-place.pid, 0)
                self._note_end(place, os.waitstatus_to_exitcode(status))
        place.pid = 0

    def _note_end(self, place: Place, status: int) -> None:
        if status in (0, -signal.SIGKILL):
            self._witness.count("killed" if status else "ended", KINDS.index(place.kind))
        else:
            self._witness.report(f"{place.kind} (slot {place.slot}) ended with status {status}")


def main() -> None:
    words = json.loads(sys.argv[1])
    Keeper(Setting(**words["setting"]), words["kinds"], words["first_slot"], words["seed"]).run()


def keeper_command(setting: Setting, kinds: list[str], first_slot: int, seed: str) -> list[str]:
    """What main() reads."""
    words = {"setting": asdict(setting), "kinds": kinds, "first_slot": first_slot, "seed": seed}
    return [sys.executable, "-P", "-m", "proof.keeper", json.dumps(words)]


if __name__ == "__main__":
    main()
