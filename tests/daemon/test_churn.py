# SPDX-License-Identifier: BSD-3-Clause
"""Clients of all kinds come, claim and die at random, and so does the daemon: no lcore is given twice, none is lost.

The test keeps a record of its own. An lcore is a client's from when the client says that it was granted until it is
told to give it back, or killed. So what the record says is never too much, and whoever is granted what is in the record
as another's was granted it wrongly. Many clients are told at once what to do, and do it at the same time.
"""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lab.processes import BIN, Daemon, Puppet, compile_program, eventually, look, start_puppet
from mtlshm import Kind

REFUSED = {-errno.EBUSY, -errno.ENOSPC, -errno.EALREADY}
KINDS = (Kind.SHM, Kind.SOCKET, Kind.LEGACY)
OF_LEGACY = {Kind.POOL, Kind.LEGACY}


class Client:
    """A process that has registered or attached."""

    def __init__(self, kind: Kind, process: Puppet) -> None:
        self.kind = kind
        self.process = process
        self.has: set[int] = set()
        self.asked: int | None = None  # the lcore that it was told to claim, and has not answered for
        self.told = False
        self.connected = True  # no longer, if the daemon was restarted
        self._ended = False

    def end(self) -> None:
        if not self._ended:
            self._ended = True
            self.process.clean_up()

    def __str__(self) -> str:
        return f"{self.kind.name} {self.process.pid}"


class Company:
    """All clients, and the record of what they were granted of the first `lcores` lcores."""

    def __init__(self, segment: str, start: Callable[[Kind], Client], dice: random.Random) -> None:
        self.segment = segment
        self.lcores = 24
        self.dice = dice
        self.granted: Counter[Kind] = Counter()
        self._start = start
        self._clients: list[Client] = []
        self._record: dict[int, Client] = {}

    def fill(self, kind: Kind, number: int) -> None:
        """See to it that there are so many who can still ask for anything."""
        for _ in range(number - sum(client.kind == kind and client.connected for client in self._clients)):
            self._clients.append(self._start(kind))

    def tell(self, share: float) -> None:
        """Have a share of all claim or release something."""
        for client in self._clients:
            if not client.told and client.connected and self.dice.random() < share:
                self._tell(client)

    def _tell(self, client: Client) -> None:
        client.told = True
        if client.has and self.dice.random() < 0.7:  # often enough that some lcores are free
            lcore = self.dice.choice(sorted(client.has))
            client.has.discard(lcore)
            del self._record[lcore]
            client.process.tell("release", lcore)
            return
        client.asked = self.dice.randrange(self.lcores)
        last = [self.dice.randrange(client.asked, self.lcores)] if client.kind == Kind.LEGACY else []
        client.process.tell("claim", client.asked, *last)

    def hear(self) -> None:
        """All answers that are due."""
        for client in self._clients:
            if client.told:
                self._hear(client)

    def _hear(self, client: Client) -> None:
        answer = client.process.answer()
        asked, client.asked, client.told = client.asked, None, False
        if client.kind == Kind.SOCKET and answer == -errno.EPIPE:
            client.connected = False
        elif asked is None:
            assert answer == 0, f"{client} could not give back what it had: {answer}"
        elif answer >= 0:
            lcore = answer if client.kind == Kind.LEGACY else asked
            assert lcore not in self._record, f"lcore {lcore}: {self._record[lcore]} has it, {client} was given it"
            self._record[lcore] = client
            client.has.add(lcore)
            self.granted[client.kind] += 1
        else:
            assert answer in REFUSED, f"{client} asked for lcore {asked}: {answer}"

    def kill(self, chance: float) -> None:
        """Each with this chance, whatever it is doing."""
        for client in list(self._clients):
            if self.dice.random() < chance:
                for lcore in client.has:
                    del self._record[lcore]
                self._clients.remove(client)
                client.end()

    def daemon_ended(self) -> None:
        for client in self._clients:
            client.connected &= client.kind != Kind.SOCKET

    def check(self) -> None:
        """When all answers are in: what is in the record is in the table, and the living have no more there."""
        table = {lcore.number: lcore.owner for lcore in look(self.segment).lcores}
        for number, client in self._record.items():
            assert number in table, f"lcore {number} is free, but {client} has it"
            owner = table[number]
            if client.kind == Kind.LEGACY:  # the daemon may not have seen yet whose it is
                right = owner.kind in OF_LEGACY
            else:
                right = (owner.kind, owner.pid) == (client.kind, client.process.pid)
            assert right, f"lcore {number} is in the table as {owner.label}'s ({owner.pid}), but {client} has it"
        living = {client.process.pid: client for client in self._clients if client.kind in (Kind.SHM, Kind.SOCKET)}
        for number, owner in table.items():
            client = living.get(owner.pid)
            # One whose connection was lost may have been granted what it never heard of.
            assert client is None or not client.connected or number in client.has, (
                f"{client} has lcore {number} unasked"
            )

    def settled(self) -> bool:
        """Nothing in the table belongs to the dead, and what legacy processes have to themselves."""
        snapshot = look(self.segment)
        pids = {client.process.pid for client in self._clients}
        if any(lcore.owner.pid not in pids for lcore in snapshot.lcores if lcore.owner.kind != Kind.POOL):
            return False
        of_legacy = {lcore.number: lcore.owner.pid for lcore in snapshot.lcores if lcore.owner.kind == Kind.LEGACY}
        return of_legacy == {n: c.process.pid for n, c in self._record.items() if c.kind == Kind.LEGACY}

    def left(self) -> bool:
        """Is anything in the table but the daemon, and what is lent to nobody?"""
        snapshot = look(self.segment)
        return any(i.kind not in (Kind.DAEMON, Kind.POOL) for i in snapshot.instances) or not self.settled()


@pytest.fixture
def dice() -> random.Random:
    seed = int(os.environ.get("MTLSHM_TEST_SEED") or random.SystemRandom().randrange(2**32))
    print(f"again with MTLSHM_TEST_SEED={seed}")
    return random.Random(seed)


@pytest.fixture(scope="session")
def socket_program(build_once: Callable[..., Path]) -> Path:
    """socket_process.c, compiled."""
    source = Path(__file__).with_name("socket_process.c")
    return build_once("socket_process", lambda program: compile_program(program, source))


@pytest.fixture
def start(
    puppet_program: Path,
    legacy_program: Path,
    socket_program: Path,
    segment: str,
    manager_socket: Path,
    legacy_place: dict[str, str],
) -> Iterator[Callable[[Kind], Client]]:
    """Starts clients of any kind."""
    key, lock = legacy_place.values()
    started: list[Client] = []

    def run(kind: Kind) -> Client:
        if kind == Kind.SHM:
            process = start_puppet(puppet_program, segment)
            words = [("open", 1), ("register",)]
        elif kind == Kind.SOCKET:
            process = start_puppet(socket_program, str(manager_socket))
            words = [("register",)]
        else:
            process = start_puppet(legacy_program, key, Path(lock))
            words = [("attach",)]
        started.append(client := Client(kind, process))
        for command in words:
            process.tell(*command)
            assert process.answer() == 0, f"{client} could not {command[0]}"
        return client

    yield run
    for client in started:
        client.end()


@pytest.fixture
def company(segment: str, start: Callable[[Kind], Client], dice: random.Random) -> Iterator[Company]:
    yield Company(segment, start, dice)
    for instance in look(segment).instances:  # should the test have failed
        print(instance)


def some_lcores(dice: random.Random, lcores: int) -> str:
    """As a list, which a single number is not."""
    return ",".join(f"{n}-{n}" for n in dice.sample(range(lcores), dice.randrange(1, 7)))


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
def test_over_50_restarts_of_the_daemon_nobody_is_given_what_another_has(
    daemon: Callable[..., Daemon],
    company: Company,
    legacy_place: dict[str, str],
    start: Callable[[Kind], Client],
    dice: random.Random,
    part: int,
) -> None:
    server = daemon("--legacy", "0", environment=legacy_place)
    # As long as somebody is attached the legacy table stays, also while no daemon is.
    start(Kind.LEGACY)
    for _ in range(50):
        for kind in KINDS:
            company.fill(kind, 5)
        for _ in range(dice.randrange(1, 5)):
            company.tell(0.5)
            company.hear()
            company.check()
        company.tell(0.3)
        company.kill(0.15)
        server.end(dice.choice([signal.SIGTERM, signal.SIGKILL]))
        company.hear()
        company.daemon_ended()
        company.check()
        for _ in range(dice.randrange(3)):
            company.kill(0.15)
            company.tell(0.5)
            company.hear()
            company.check()
        server = daemon("--legacy", some_lcores(dice, company.lcores), environment=legacy_place)
        eventually(company.settled)
        company.check()
        assert "two owners" not in server.log()
    company.kill(1)
    eventually(lambda: not company.left())
    assert all(company.granted[kind] for kind in KINDS)


@pytest.mark.slow
def test_of_48_clients_that_claim_and_die_none_is_given_what_another_has_and_none_leaves_anything(
    daemon: Callable[..., Daemon],
    company: Company,
    legacy_place: dict[str, str],
    segment: str,
    dice: random.Random,
    tmp_path: Path,
) -> None:
    server = daemon("--legacy", "0-15", environment=legacy_place)
    operator: subprocess.Popen[bytes] | None = None
    company.lcores = 64
    end = time.monotonic() + 30
    with (tmp_path / "operator.log").open("wb") as log:
        while time.monotonic() < end:
            for kind in KINDS:
                company.fill(kind, 16)
            company.tell(0.4)
            company.kill(0.005)
            company.hear()
            if dice.random() < 0.2:
                company.check()
            # Lcores move between the tables all the time.
            if operator is None or operator.poll() is not None:
                words = ["legacy", dice.choice(["lend", "reclaim"]), str(dice.randrange(1, 4))]
                command = [BIN / "mtlshm-ctl", "--segment", segment, *words]
                operator = subprocess.Popen(command, env=os.environ | legacy_place, stdout=log, stderr=log)
        assert operator
        operator.wait()
    company.check()
    eventually(company.settled)
    company.kill(1)
    eventually(lambda: not company.left())
    assert all(company.granted[kind] for kind in KINDS)
    assert "two owners" not in server.log()
    said = (tmp_path / "operator.log").read_text()
    assert "lent" in said
    assert "reclaimed" in said
    assert "Traceback" not in said
