# SPDX-License-Identifier: BSD-3-Clause
"""Starts clients, stops them, kills them, and starts others in their places, until all is over.

A program of its own, since some of it runs in namespaces of its own: python -m proof.keeper SETTING, as the arena
writes it.

Each client is in a process group with its children, and its number is not free for others before the group is gone:
so no signal meets anyone else.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from mtlshm import Busy, Host, Instance, LcoreType, MtlshmError
from proof.witness import KINDS, NICENESS, PATIENCE, Witness

_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
_PACE = 0.03  # seconds between two disturbances, if one kept a single client

# How often each is disturbed: whoever needs the daemon has to live longer to get anything.
_TENDER = {"shm": 6, "janitor": 6, "python": 3, "socket": 1, "legacy": 3}


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

    def command(self, kind: str, slot: int, seed: int) -> list[str]:
        """Of a client in C."""
        words = [self.program, kind, slot, seed, self.witness, self.lcores, self.segment, self.sysfs, self.socket]
        return [*map(str, words), self.key, self.lock]


@dataclass(slots=True)
class Place:
    """Where one client lives after the other. Its slots are `slot`, and the next one for a child of its."""

    kind: str
    slot: int
    pid: int = 0  # 0: nobody
    dead: bool = False  # killed alone; children may be left
    resume: float = 0.0  # when, if it is stopped


class Keeper:
    def __init__(self, setting: Setting, kinds: list[str], first_slot: int, seed: str) -> None:
        self._setting = setting
        self._witness = Witness(Path(setting.library), Path(setting.witness))
        self._places = [Place(kind, first_slot + 2 * n) for n, kind in enumerate(kinds)]
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
        for slot in (place.slot, place.slot + 1):
            self._witness.vacate(slot)
        seed = self._dice.getrandbits(60)
        place.dead, place.resume = False, 0.0
        if place.kind != "python":
            command = self._setting.command(place.kind, place.slot, seed)
            place.pid = os.posix_spawn(self._setting.program, command, os.environ, setpgroup=0)
            return
        place.pid = os.fork()
        if place.pid:
            with suppress(PermissionError):  # it has done that, and is another program by now
                os.setpgid(place.pid, place.pid)
            return
        os.setpgid(0, 0)
        os.setpriority(os.PRIO_PROCESS, 0, max(NICENESS, os.getpriority(os.PRIO_PROCESS, 0)))
        PythonClient(self._setting, self._witness, place.slot, seed).live()

    def _kill_alone(self, place: Place) -> None:
        if place.pid:
            self._witness.condemn(place.slot)
            os.kill(place.pid, signal.SIGKILL)
            place.dead = True

    def _clear(self, place: Place) -> None:
        """Kill whoever is there, children too, and wait for the end of all."""
        if not place.pid:
            return
        for slot in (place.slot, place.slot + 1):
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


class PythonClient:
    """What live_in_shared_memory() of torture/ is in C."""

    def __init__(self, setting: Setting, witness: Witness, slot: int, seed: int) -> None:
        self._setting = setting
        self._witness = witness
        self._slot = slot
        self._dice = random.Random(seed)
        self._held: list[int] = []

    def live(self) -> None:
        """Does not return."""
        status = 1
        try:
            self._witness.begin(self._slot, KINDS.index("python"))
            while True:
                with Host(self._setting.segment, sysfs=self._setting.sysfs) as host:
                    self._be_an_instance(host)
                if self._dice.random() < 0.1:
                    break
            self._witness.end()
            status = 0
        except BaseException as error:
            self._witness.report(f"python client (slot {self._slot}): {type(error).__name__}: {error}")
        finally:
            os._exit(status)

    def _be_an_instance(self, host: Host) -> None:
        steps: list[Callable[[Instance], None]] = []
        steps += [self._claim_one] * 40 + [self._claim_some] * 10 + [self._release_one] * 25
        steps += [self._release_everything] * 5 + [self._use_semaphore] * 5 + [self._nap] * 13
        with host.register("torture", cpus=range(self._setting.lcores)) as me:
            for _ in range(self._dice.randrange(30)):
                self._dice.choice(steps)(me)
                if self._dice.random() < 0.02:
                    host.sweep()
                if self._dice.random() < 0.003:
                    self._become_another()
                if (
                    self._dice.random() < 0.005
                    and not self._slot % 2
                    and not self._witness.record.lives[self._slot + 1]
                ):
                    self._fork(me)
            while self._held:
                self._give(0)

    def _got(self, lcore: int) -> None:
        self._witness.got(lcore)
        self._held.append(lcore)

    def _give(self, position: int) -> int:
        lcore = self._held.pop(position)
        self._witness.gives(lcore)
        return lcore

    def _claim_one(self, me: Instance) -> None:
        lcore = self._dice.randrange(self._setting.lcores)
        if lcore not in self._held:
            with suppress(Busy):
                me.claim(lcore, self._dice.choice(list(LcoreType)))
                self._got(lcore)

    def _claim_some(self, me: Instance) -> None:
        with self._patience(), suppress(Busy):
            for lcore in me.claim_many(self._dice.randrange(1, 7), timeout=PATIENCE):
                self._got(lcore)

    def _release_one(self, me: Instance) -> None:
        if self._held:
            me.release(self._give(self._dice.randrange(len(self._held))))

    def _release_everything(self, me: Instance) -> None:
        expected = len(self._held)
        while self._held:
            self._give(0)
        if (count := me.release_all()) != expected:
            self._witness.wrong("released another number of lcores than it had:", count - expected)

    def _use_semaphore(self, me: Instance) -> None:
        with self._patience(), me.semaphore(PATIENCE):
            self._witness.entered()
            self._witness.leaves()

    def _nap(self, me: Instance) -> None:
        time.sleep(self._dice.random() * 0.001)

    @contextmanager
    def _patience(self) -> Iterator[None]:
        """Time may run out, if others had the semaphore meanwhile."""
        before = self._witness.record.semaphores
        try:
            yield
        except MtlshmError as error:
            if error.errno != errno.ETIMEDOUT or self._witness.record.semaphores == before:
                raise

    def _become_another(self) -> None:
        """A client in C."""
        self._witness.count("executed")
        self._witness.end()
        command = self._setting.command("shm", self._slot, self._dice.getrandbits(60))
        os.execv(command[0], command)

    def _fork(self, me: Instance) -> None:
        self._witness.count("forked")
        if os.fork():
            return
        try:
            me.claim(self._dice.randrange(self._setting.lcores))
        except MtlshmError as error:
            if error.errno != errno.ECHILD:
                raise
        else:
            self._witness.report("a child could claim an lcore in its parent's name")
        child = PythonClient(self._setting, self._witness, self._slot + 1, self._dice.getrandbits(60))
        child.live()


def main() -> None:
    words = json.loads(sys.argv[1])
    Keeper(Setting(**words["setting"]), words["kinds"], words["first_slot"], words["seed"]).run()


def keeper_command(setting: Setting, kinds: list[str], first_slot: int, seed: str) -> list[str]:
    """What main() reads."""
    words = {"setting": asdict(setting), "kinds": kinds, "first_slot": first_slot, "seed": seed}
    return [sys.executable, "-P", "-m", "proof.keeper", json.dumps(words)]


if __name__ == "__main__":
    main()
