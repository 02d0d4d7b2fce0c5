# SPDX-License-Identifier: BSD-3-Clause
"""A segment cut short under those who use it is an error, and kills nobody."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from errno import EBADF, EBADMSG
from pathlib import Path

import pytest

from processes import Puppet

Start = Callable[..., Puppet]

PAGE = os.sysconf("SC_PAGESIZE")


@pytest.mark.parametrize("length", [0, 1, 100, PAGE])
def test_a_process_whose_segment_is_cut_short_goes_on(puppet: Start, segment: str, length: int) -> None:
    client = puppet()
    client.claim(0)
    os.truncate(segment, length)
    assert client.claim(5) == -EBADMSG
    assert client.release(0) == -EBADMSG
    assert client.claim_many(2, 10) == -EBADMSG
    assert client.snapshot() == -EBADMSG
    assert client.sweep() == -EBADMSG
    assert client.alive(client.owner()) == -EBADMSG
    assert client.collect(client.owner()) == -EBADMSG
    assert client.retire() == -EBADMSG
    assert client.lock(10) == -EBADMSG
    assert client.unregister() == 0
    assert client.claim(5) == -EBADF


def test_it_is_the_same_for_one_who_only_looks(puppet: Start, segment: str) -> None:
    puppet()
    visitor = puppet(ready=False)
    assert visitor.open(2) == 0
    os.truncate(segment, 0)
    assert visitor.snapshot() == -EBADMSG
    assert visitor.close() == 0


def test_what_is_claimed_in_a_lost_table_is_nobodys(puppet: Start, segment: str) -> None:
    """Made long again, the file is another table. Both having the same lcore would be worse than an error."""
    one, other = puppet(), puppet()
    size = os.stat(segment).st_size
    os.truncate(segment, 0)
    assert one.claim(3) == -EBADMSG
    os.truncate(segment, size)
    assert one.claim(3) == -EBADMSG
    assert one.register() == -EBADMSG
    one.kill()
    assert other.running()


@pytest.mark.parametrize("seed", range(3))
def test_cut_short_amid_everything_nobody_dies_or_hangs(
    puppet: Start, segment: str, host64: Path, tmp_path: Path, seed: int
) -> None:
    chance = random.Random(seed)
    clients = [puppet(sysfs=host64) for _ in range(6)]
    for client in clients:
        client.tell("storm")
    time.sleep(chance.uniform(0.05, 0.2))
    os.truncate(segment, chance.choice([0, 256, PAGE, 17 * PAGE]))
    for client in clients:
        assert client.answer() == -EBADMSG
        assert client.unregister() == 0


def test_a_child_made_by_fork_is_safe_as_well(puppet: Start, segment: str, tmp_path: Path) -> None:
    child = puppet().fork(tmp_path / "pipes")
    os.truncate(segment, 0)
    assert child.snapshot() == -EBADMSG


def test_a_sigbus_that_is_not_ours_kills_as_ever(puppet: Start, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(PAGE))
    for command in ["touch_truncated", tmp_path / "file"], ["die", int(signal.SIGBUS)]:
        client = puppet()
        client.tell(*command)
        assert client.wait() == -signal.SIGBUS


def test_a_process_with_a_handler_of_its_own_keeps_it_and_can_be_as_safe(puppet: Start, segment: str) -> None:
    client = puppet(ready=False)
    client.own_handler()
    assert client.open(1) == 0
    assert client.register() == 0
    os.truncate(segment, 0)
    assert client.claim(5) == -EBADMSG
    assert client.times_handled() == 1
