# SPDX-License-Identifier: BSD-3-Clause
"""Whatever becomes of the segment, the daemon neither crashes nor hangs, and says what is wrong."""

from __future__ import annotations

import mmap
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lab.damages import SIZE, poke, token
from lab.processes import DEADLINE, Daemon, Puppet, eventually, look
from mtlshm import Host
from mtlshm.manager_client import Manager

Start = Callable[..., Puppet]
StartDaemon = Callable[..., Daemon]


def test_a_sound_segment_is_not_worth_a_word(daemon: StartDaemon, puppet: Start) -> None:
    server = daemon()
    for _ in range(5):
        one = puppet()
        one.lock(1000)  # it is left to whoever wants it next
        one.kill()
    time.sleep(1.5)  # it looks after half a second
    assert "damaged" not in server.log()


@pytest.mark.parametrize("length", [0, 100, 4096, SIZE - 1])
def test_cut_short_it_says_so_and_stops(daemon: StartDaemon, puppet: Start, segment: str, length: int) -> None:
    server = daemon()
    puppet().claim(3)
    os.truncate(segment, length)
    assert server.wait() == 1
    assert "truncated" in server.log()


def test_damage_is_said_once(daemon: StartDaemon, puppet: Start, segment: str) -> None:
    server = daemon()
    puppet()
    poke(segment, "header", "magic", value=b"?")
    server.await_log("the magic is wrong")
    poke(segment, "header", "state", value=9)
    server.await_log("neither in use nor retired")
    assert server.log().count("the magic is wrong") == 1
    assert server.running()


def test_damage_through_a_mapping_is_seen_when_the_next_one_registers(
    daemon: StartDaemon, puppet: Start, segment: str
) -> None:
    server = daemon()
    with open(segment, "r+b") as file, mmap.mmap(file.fileno(), 0) as table:
        table[:4] = b"????"
        client = puppet(ready=False)
        assert client.open(0) < 0
        with pytest.raises(OSError, match="not a mtlshm segment"):
            Host(segment)
        poke(segment, "header", "doorbell", value=0)  # as one does that has it open already
        server.await_log("the magic is wrong")


def test_damage_done_before_it_started(daemon: StartDaemon, puppet: Start, segment: str) -> None:
    puppet()
    poke(segment, "instances", 0, "kind", value=99)
    daemon().await_log("has an unknown kind")


@pytest.mark.parametrize("seed", range(4))
def test_bytes_overwritten_at_random_under_all_of_them_kill_and_block_nobody(
    daemon: StartDaemon, puppet: Start, segment: str, host64: Path, seed: int, manager_socket: Path
) -> None:
    chance = random.Random(seed)
    server = daemon()
    clients = [puppet(sysfs=host64) for _ in range(4)]
    manager = Manager(manager_socket, timeout=DEADLINE)
    manager.register()
    for client in clients:
        client.tell("storm", 20000)
    with open(segment, "r+b") as file, mmap.mmap(file.fileno(), 0) as table:
        for _ in range(300):
            at = chance.randrange(SIZE - 64)
            if chance.random() < 0.5:  # words that mean something, where they mean something
                words = [token(chance.randrange(300), chance.randrange(1, 50)), chance.randrange(3) | 3 << 8, 0]
                at, data = at & ~7, chance.choice(words).to_bytes(8, "little")
            else:
                data = chance.randbytes(chance.choice([1, 8, 64]))
            table[at : at + len(data)] = data
            manager.heartbeat(1)
    for client in clients:
        assert client.answer() == 0
        assert client.running()
    manager.close()
    poke(segment, "header", "doorbell", value=0)
    server.await_log("the segment is damaged")
    assert server.running()
    assert server.end(signal.SIGTERM) == 0


def test_replaced_at_random_nobody_dies_or_hangs(daemon: StartDaemon, puppet: Start, segment: str) -> None:
    server = daemon()
    clients = [puppet() for _ in range(4)]
    for client in clients:
        client.tell("storm", 5000)
    os.unlink(segment)
    Host(segment).close()
    assert server.wait() == 1
    for client in clients:
        assert client.answer() == 0
    newcomer = puppet()
    assert newcomer.claim(3) == 0
    eventually(lambda: look(segment).lcores)
