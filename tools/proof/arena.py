# SPDX-License-Identifier: BSD-3-Clause
"""Where the torture happens: keepers with their clients, and a daemon that is killed and started again.

A program of its own: PID 1 of a PID namespace, with System V memory of its own as well, so nothing outlives it. It ends
when its standard input does. python -m proof.arena ORDER, as torture.py writes it; what came of it goes to result.json.
"""

from __future__ import annotations

import json
import os
import random
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import sysv_ipc

from mtlshm import Host
from proof.keeper import Setting, keeper_command, slots_of
from proof.witness import Witness

# Far more than anything takes. Only a hang takes so long, and that is what they are for.
_PATIENCE = 600.0  # seconds
_LCORES = 48
_RETURN = 10  # for so many kills, one return of a regular, who must have been given what is theirs each time
# On made-up CPUs.
_DAEMON = """
import sys
from pathlib import Path
from mtlshm.daemon import app, eal
eal.ONLINE = Path(sys.argv.pop(1))
app.main()
"""
_ANCHOR, _NEWCOMER, _DRAIN, _HOLDER, _AUDIT = 254, 252, 250, 248, 246  # slots
_KEY = 0x7075  # in our IPC namespace

# Two in containers with the same PIDs, and legacy processes in one with a host name of its own, whose memory has to be
# everybody's: so half of all are in PID namespaces of their own.
_OUTSIDE = ["shm"] * 6 + ["janitor"] * 2 + ["socket"] * 4 + ["legacy"] * 3
_OUTSIDE += ["tree"] * 2 + ["guest"] * 3 + ["steward"] * 2 + ["greedy"] + ["regular"] * 2
_INSIDE = ["shm"] * 4 + ["janitor"] + ["socket"] * 2 + ["tree", "guest", "steward"]
_LEGACY = ["legacy"] * 2
_USER = ("unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child", "--mount-proc")
NAMESPACES = (*_USER, "--ipc")
_WITH_NAME = (*_USER, "--uts", "sh", "-c", 'hostname torture-box && exec "$@"', "sh")


class Wrong(Exception):
    """Something is not as it should be."""


@dataclass(frozen=True, slots=True)
class Order:
    """What torture.py wants."""

    directory: str
    program: str
    library: str
    kills: int
    seed: str


class Arena:
    def __init__(self, order: Order) -> None:
        self._order = order
        self._directory = Path(order.directory)
        self._dice = random.Random(order.seed)
        self._witness = Witness(Path(order.library), self._directory / "witness")
        self._setting = Setting(
            program=order.program,
            library=order.library,
            witness=str(self._directory / "witness"),
            lcores=_LCORES,
            segment=str(self._directory / "segment"),
            sysfs=str(self._made_up_cpus()),
            socket=str(self._directory / "manager.sock"),
            key=hex(_KEY),
            lock=str(self._directory / "legacy.lock"),
            leases=[],
        )
        self._daemon: subprocess.Popen[bytes] | None = None
        self._log = self._directory / "mtlshmd.log"
        self.restarts = 0
        self._next = 0.0  # when something happens to the daemon
        self._begun = 0  # what it had logged when the daemon began
        self._awaited = False  # shall it be ready first?

    def _made_up_cpus(self) -> Path:
        cpus = self._directory / "sysfs/devices/system/cpu"
        cpus.mkdir(parents=True)
        for name in ("possible", "online"):
            (cpus / name).write_text(f"0-{_LCORES - 1}\n")
        return self._directory / "sysfs"

    # -- the daemon

    def _start_daemon(self, *arguments: str) -> None:
        settings = {
            "MTLSHM_PATH": self._setting.segment,
            "MTLSHMD_CONFIG": os.devnull,
            "MTL_MANAGER_SOCK_PATH": self._setting.socket,
            "MTLSHM_LEGACY_KEY": self._setting.key,
            "MTLSHM_LEGACY_LOCK": self._setting.lock,
            "MTLSHMD_XDP": "off",
            "MTLSHMD_STATE": str(self._directory / "state"),
        }
        online = Path(self._setting.sysfs) / "devices/system/cpu/online"
        command = [sys.executable, "-P", "-c", _DAEMON, str(online), *arguments]
        with self._log.open("ab") as log:
            self._begun = log.tell()
            self._daemon = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=log, env=os.environ | settings)

    def _lent(self) -> str:
        """As a list, which a single number is not."""
        return ",".join(f"{n}-{n}" for n in self._dice.sample(range(_LCORES), self._dice.randrange(1, 9)))

    def _await_daemon(self) -> None:
        self._start_daemon("--legacy", self._lent())
        self._eventually(self._is_ready, lambda: "the daemon does not start")

    def _is_ready(self) -> bool:
        with self._log.open("rb") as log:
            log.seek(self._begun)
            return b" ready: " in log.read()

    def _disturb_daemon(self) -> None:
        if time.monotonic() < self._next:
            return
        if self._daemon is None:
            self._start_daemon("--legacy", self._lent())
            # Sometimes before it has begun. But on a busy machine it would never begin, if it always was so.
            self._awaited = self._dice.random() < 0.6
            self._next = time.monotonic() + self._lifetime()
            return
        if (status := self._daemon.poll()) is not None:
            last = self._log.read_text().splitlines()[-1:]
            raise Wrong(f"the daemon ended by itself, with status {status}: {last}")
        if self._awaited:
            if self._is_ready():
                self._awaited = False
                self._next = time.monotonic() + self._lifetime()
            return
        self._end_daemon(self._dice.choice([signal.SIGTERM, signal.SIGKILL, signal.SIGKILL]))
        self._next = time.monotonic() + self._dice.choice([0.0, 0.5]) * self._dice.random()

    def _lifetime(self) -> float:
        return self._dice.choice([0.3, 2.0, 5.0]) * self._dice.random()

    def _end_daemon(self, number: int) -> None:
        if self._daemon is None:
            return
        self._daemon.send_signal(number)
        status = self._daemon.wait(_PATIENCE)
        if status not in (0, -number):
            raise Wrong(f"the daemon, told to stop, ended with status {status}")
        self._daemon = None
        self.restarts += 1

    # -- all of it

    def run(self) -> None:
        """Until as many have been killed as shall be; Wrong if anything was."""
        with ExitStack() as company:
            Host(self._setting.segment, sysfs=self._setting.sysfs).close()
            self._await_daemon()
            # As long as somebody is attached the legacy table stays: what happens otherwise cannot be helped. So
            # nothing happens to the daemon before he is there.
            anchor = subprocess.Popen(self._setting.command("anchor", _ANCHOR, 1))
            company.callback(anchor.wait)
            company.callback(anchor.kill)
            table = sysv_ipc.SharedMemory(_KEY)  # attached by this, too
            self._eventually(lambda: table.number_attached == 3, lambda: "nobody stays with the legacy table")
            table.detach()
            holder = self._start_holder(company)
            keepers = self._start_keepers(company)
            self._go_on(keepers)
            self._witness.record.over = 1
            for keeper in keepers:
                if keeper.wait(_PATIENCE):
                    raise Wrong("a keeper failed")
            self._stop_if_wrong()
            self._end_daemon(signal.SIGKILL)
            self._await_daemon()
            subprocess.run(self._setting.command("audit", _AUDIT, 1), check=True)
            self._stop_if_wrong()
            self._witness.condemn(_HOLDER)
            holder.kill()
            self._check()
            self._end_daemon(signal.SIGTERM)
            self._check()
        log = self._log.read_text().splitlines()
        for bad in ("Traceback", "two owners", "ERROR"):
            if line := next((line for line in log if bad in line), ""):
                raise Wrong(f"the daemon's log: {line}")

    def _start_holder(self, company: ExitStack) -> subprocess.Popen[str]:
        """Whose tenants the regulars are."""
        command = self._setting.command("holder", _HOLDER, 1)
        holder = company.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        company.callback(holder.kill)
        assert holder.stdout
        self._setting = replace(self._setting, leases=[holder.stdout.readline().strip() for _ in range(2)])
        self._stop_if_wrong()
        return holder

    def _start_keepers(self, company: ExitStack) -> list[subprocess.Popen[bytes]]:
        keepers, slot = [], 0
        kinds = [((), _OUTSIDE), (NAMESPACES, _INSIDE), (NAMESPACES, _INSIDE), (_WITH_NAME, _LEGACY)]
        for n, (namespaces, who) in enumerate(kinds):
            command = keeper_command(self._setting, who, slot, f"{self._order.seed}/{n}")
            keepers.append(company.enter_context(subprocess.Popen([*namespaces, *command])))
            company.callback(keepers[-1].kill)
            slot += slots_of(who)
        return keepers

    def _go_on(self, keepers: list[subprocess.Popen[bytes]]) -> None:
        last, since = 0, time.monotonic()
        while (killed := sum(self._witness.record.killed)) < self._order.kills or not self._everybody_had_something():
            if select.select([sys.stdin], [], [], 0.02)[0]:
                raise Wrong("told to end")
            self._stop_if_wrong()
            if any(keeper.poll() is not None for keeper in keepers):
                raise Wrong("a keeper failed")
            self._disturb_daemon()
            if killed > last:
                last, since = killed, time.monotonic()
            elif time.monotonic() > since + _PATIENCE:
                raise Wrong("nobody can be killed any more")

    def _everybody_had_something(self) -> bool:
        enough = self._witness.record.returns >= self._order.kills // _RETURN
        return enough and all(self._witness.figures()["granted"].values())

    def _stop_if_wrong(self) -> None:
        if wrongs := self._witness.wrongs():
            raise Wrong("; ".join(wrongs))

    def _eventually(self, condition: Callable[[], bool], otherwise: Callable[[], str]) -> None:
        deadline = time.monotonic() + _PATIENCE
        while not condition():
            if time.monotonic() > deadline:
                raise Wrong(otherwise())
            time.sleep(0.05)

    # -- nobody is there any more, so everything has to be free

    def _check(self) -> None:
        """Whatever lcore a newcomer in shared memory cannot have, a legacy process can; and all the rest is free."""
        missing: set[int] = set()

        def nothing_leaked() -> bool:
            newcomer = subprocess.Popen(
                self._setting.command("newcomer", _NEWCOMER, 1),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            with newcomer:
                assert newcomer.stdout
                ours = set(map(int, newcomer.stdout.readline().split()))
                drain = self._setting.command("drain", _DRAIN, 1)
                drained = subprocess.run(drain, check=True, stdout=subprocess.PIPE, text=True)
                newcomer.communicate()
            for slot in (_NEWCOMER, _DRAIN):
                self._witness.vacate(slot)
            self._stop_if_wrong()
            if newcomer.returncode == os.EX_TEMPFAIL:
                return False
            theirs = set(map(int, drained.stdout.split()))
            if both := ours & theirs:
                raise Wrong(f"at the end, lcores {sorted(both)} were given to two")
            missing.clear()
            missing.update(set(range(_LCORES)) - ours - theirs)
            return not missing

        self._eventually(nothing_leaked, lambda: f"at the end, lcores {sorted(missing)} cannot be had")

    def result(self, wrong: str, seconds: float) -> None:
        """What came of it, into the file."""
        figures = self._witness.figures() | {"restarts": self.restarts, "seconds": seconds, "wrong": wrong}
        figures["kills"] = sum(figures["killed"].values())
        (self._directory / "result.json").write_text(json.dumps(figures))


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    arena = Arena(Order(**json.loads(sys.argv[1])))
    begin = time.monotonic()
    wrong = ""
    try:
        arena.run()
    except Wrong as error:
        wrong = str(error)
    arena.result(wrong, time.monotonic() - begin)
    os._exit(0)  # and with us everything else


if __name__ == "__main__":
    main()
