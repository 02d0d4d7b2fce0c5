# SPDX-License-Identifier: BSD-3-Clause
"""The legacy table and both sides' lcores survive restarts and kills of the daemon."""

from __future__ import annotations

import errno
import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import sysv_ipc

from lab.legacy_clients import EVERYTHING, available, claim_all, falls_asleep, lent, of_legacy
from lab.processes import (
    Daemon,
    Puppet,
    eventually,
    held,
    look,
)
from mtlshm import CpuSet, Host, Kind

StartPuppet = Callable[..., Puppet]


StartDaemon = Callable[..., Daemon]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_restart_changes_nothing(
    bridge: StartDaemon, legacy: StartPuppet, puppet: StartPuppet, segment: str, number: signal.Signals
) -> None:
    process, client = legacy(), puppet()
    server = bridge("5-7")
    assert process.claim(0) == 5
    client.claim(8)
    eventually(lambda: of_legacy(segment) == {5: process.pid})
    before = {info.owner for info in look(segment).instances if info.kind == Kind.LEGACY}
    for _ in range(3):
        server.end(number)
        assert held(segment) == {5, 6, 7, 8}
        assert available(process) == {6, 7}
        server = bridge("5-7")
        assert of_legacy(segment) == {5: process.pid}
        assert lent(segment) == {6, 7}
        assert {info.owner for info in look(segment).instances if info.kind == Kind.LEGACY} == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_both_sides_keep_apart_without_a_daemon_and_the_next_one_catches_up(
    bridge: StartDaemon, legacy: StartPuppet, puppet: StartPuppet, segment: str, number: signal.Signals
) -> None:
    process, victim, client = legacy(), legacy(), puppet()
    server = bridge("5-8")
    assert [process.claim(0), victim.claim(0)] == [5, 6]
    eventually(lambda: len(of_legacy(segment)) == 2)
    server.end(number)

    process.release(5)
    assert process.claim(7) == 7
    victim.kill()
    newcomer = legacy()
    assert claim_all(newcomer) == [5, 6, 8]
    assert [client.claim(lcore) for lcore in range(5, 9)] == [-errno.EBUSY] * 4
    assert client.claim(9) == 0

    bridge("5-8")
    assert of_legacy(segment) == {5: newcomer.pid, 6: newcomer.pid, 7: process.pid, 8: newcomer.pid}


def test_a_table_zeroed_while_no_daemon_ran_is_reserved_again(
    bridge: StartDaemon, legacy: StartPuppet, puppet: StartPuppet, segment: str
) -> None:
    client = puppet()
    client.claim(9)
    bridge("5-7").end(signal.SIGKILL)
    process = legacy()
    assert available(process) == set(EVERYTHING)
    server = bridge("5-7")
    assert claim_all(process) == [5, 6, 7]
    assert "two owners" not in server.log()


def test_while_it_runs_nobody_zeroes_or_removes_the_table(bridge: StartDaemon, legacy: StartPuppet) -> None:
    bridge("5-7")
    for _ in range(3):
        process = legacy()
        assert available(process) == {5, 6, 7}
        assert process.detach() == 0
        process.kill()


def test_removed_legacy_table_is_made_again_and_its_users_keep_their_lcores(
    bridge: StartDaemon, legacy: StartPuppet, segment: str
) -> None:
    server = bridge("5-7")
    old = legacy()
    assert old.claim(0) == 5
    eventually(lambda: of_legacy(segment) == {5: old.pid})
    old.remove()
    server.await_log("somebody has removed it")
    new = legacy()
    assert claim_all(new) == [6, 7]
    eventually(lambda: len(of_legacy(segment)) == 3)
    server.kill()
    bridge("5-7")
    assert of_legacy(segment)[5] == old.pid
    old.kill()
    eventually(lambda: lent(segment) == {5})
    assert claim_all(new) == [5]


def test_legacy_table_is_made_again_once_its_key_is_free(
    bridge: StartDaemon, legacy: StartPuppet, segment: str, legacy_place: dict[str, str]
) -> None:
    """No event tells that it is gone."""
    server = bridge("5-7")
    process = legacy()
    assert process.claim(0) == 5
    eventually(lambda: of_legacy(segment) == {5: process.pid})

    def descriptors() -> int:
        return len(os.listdir(f"/proc/{server.pid}/fd"))

    assert falls_asleep(server)  # it looks at nobody any more
    before = descriptors()
    server.send(signal.SIGSTOP)
    process.remove()
    key = int(legacy_place["MTLSHM_LEGACY_KEY"], 0)
    something = sysv_ipc.SharedMemory(key, sysv_ipc.IPC_CREX, size=100)
    server.resume()
    server.await_log("no table of libmtl's")
    something.detach()
    something.remove()
    eventually(lambda: server.log().count("1024 lcores") == 2)
    assert server.log().count("no table of libmtl's") == 1
    eventually(lambda: descriptors() == before)  # nobody is watched twice
    process.kill()
    eventually(lambda: lent(segment) == {5, 6, 7})


def test_shorter_loan_list_returns_lcores_as_they_are_released(
    bridge: StartDaemon, legacy: StartPuppet, segment: str
) -> None:
    server = bridge("5-7")
    process = legacy()
    assert process.claim(0) == 5
    eventually(lambda: of_legacy(segment) == {5: process.pid})
    server.end(signal.SIGTERM)
    bridge("6-7")
    assert of_legacy(segment) == {5: process.pid}
    process.release(5)
    eventually(lambda: held(segment) == {6, 7})
    assert available(process) == {6, 7}


# Kills itself just before, or just after, the n-th change of either table.
KILLED_AT = """
import os, signal, sys
from mtlshm import Host, Instance
from mtlshm.legacy.table import LegacyTable
import mtlshm.daemon.app
left = int(sys.argv.pop(1))
def killed(function):
    def change(*arguments, **names):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*arguments, **names)
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return change
for owner, name in (
    (Host, "evict"), (Host, "register_proxy"), (Instance, "claim"), (Instance, "take"), (Instance, "unregister"),
    (LegacyTable, "reserve"), (LegacyTable, "clear"),
):
    setattr(owner, name, killed(getattr(owner, name)))
import sysv_ipc, mtlshm.legacy.table
mtlshm.legacy.table._ENTRIES = 128  # fewer steps
mtlshm.daemon.app.main()
"""


@pytest.mark.slow
def test_bridge_killed_at_any_step_recovers(
    bridge: StartDaemon, legacy: StartPuppet, puppet: StartPuppet, segment: str
) -> None:
    """Start, take-over, loan, return, death. What a killed daemon leaves is never free on both sides."""
    warden, client = legacy(), puppet()  # keeps the table

    def in_one_domain() -> None:
        free_twice = available(warden) - held(segment)
        assert not free_twice

    survived = 0
    for step in [*range(1, 12), *range(240, 10_000)]:  # in between it reserves, one lcore after the other
        warden.wipe()
        with Host(segment) as host:
            for owner in host.proxies():
                host.adopt(owner).unregister()
        client.claim(1)
        before = legacy()
        assert before.claim(0) == 0

        program = [sys.executable, "-c", KILLED_AT, str(step)]
        server = bridge("2-3", command=program, ready=False)

        def comes_to_this(of: dict[int, int], pool: set[int], server: Daemon = server) -> None:
            """Or is killed on the way."""
            eventually(lambda: (of_legacy(segment) == of and lent(segment) == pool) or not server.running())
            if warden.reserved(127):  # else it came no further
                in_one_domain()

        comes_to_this({0: before.pid}, {2, 3})
        if server.running():
            assert before.release(0) == 0
            comes_to_this({}, {2, 3})
        if server.running():
            assert before.claim(2) == 2
            comes_to_this({2: before.pid}, {3})
        before.kill()
        comes_to_this({}, {2, 3})
        survived += server.running()
        server.kill()

        last = bridge("2-3")
        in_one_domain()
        # Who is looked at as it dies keeps its memory for as long as that takes.
        eventually(lambda: lent(segment) == {2, 3} == available(warden))
        assert client.release(1) == 0
        assert last.end(signal.SIGTERM) == 0
        if survived == 3:
            break
    assert survived == 3


@pytest.mark.slow
def test_no_lcore_is_given_twice_or_lost(
    bridge: StartDaemon, legacy: StartPuppet, puppet: StartPuppet, host64: Path, segment: str
) -> None:
    """Legacy processes and clients of ours claim, give back and die, and so does the daemon, over 200 rounds."""
    chance = random.Random(11)
    warden = legacy()  # somebody attached, or a newcomer zeroes the table while there is no daemon
    server = bridge("0-31")
    owned: dict[int, Puppet] = {}  # what the test knows to be held, by living processes only
    processes: list[tuple[str, Puppet]] = []

    def newcomer() -> None:
        kind = chance.choice(["legacy", "client"])
        processes.append((kind, legacy() if kind == "legacy" else puppet(sysfs=host64)))

    for _ in range(16):
        newcomer()
    for _ in range(200):
        # All act at once; then the answers are put together.
        acting: list[tuple[Puppet, str, int]] = []
        for kind, each in processes:
            mine = [lcore for lcore, holder in owned.items() if holder is each]
            if mine and chance.random() < 0.4:
                lcore = chance.choice(mine)
                each.tell("release", lcore)
                acting.append((each, "release", lcore))
            elif kind == "legacy":
                each.tell("claim", 0)
                acting.append((each, "claim", -1))
            else:
                lcore = chance.randrange(64)
                each.tell("claim", lcore)
                acting.append((each, "claim", lcore))
        if chance.random() < 0.2:
            server.end(chance.choice([signal.SIGTERM, signal.SIGKILL]))
            server = bridge("0-31", ready=chance.random() < 0.5)
        granted: list[tuple[int, Puppet]] = []
        for each, what, lcore in acting:
            result = each.answer()
            if what == "release":
                assert result == 0
                del owned[lcore]
            elif result >= 0:
                granted.append((result if lcore < 0 else lcore, each))
        for lcore, each in granted:
            assert lcore not in owned, f"lcore {lcore} was given to {each.pid} and is {owned[lcore].pid}'s"
            owned[lcore] = each
        while chance.random() < 0.5:
            victim = chance.choice(processes)
            processes.remove(victim)
            victim[1].kill()
            owned = {lcore: holder for lcore, holder in owned.items() if holder is not victim[1]}
            newcomer()

    server.await_log("ready")
    eventually(lambda: held(segment) - lent(segment) == set(owned))
    for _, each in processes:
        each.kill()
    eventually(lambda: lent(segment) == set(range(32)) == held(segment))
    assert available(warden) == set(range(32))
    assert CpuSet(of_legacy(segment)) == CpuSet()
