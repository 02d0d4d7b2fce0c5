# SPDX-License-Identifier: BSD-3-Clause
"""Whatever is killed when: killed at random moments, nobody leaves anything that stays."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lab.processes import Puppet, held, look, namespaces
from mtlshm._core import lib

Start = Callable[..., Puppet]


@pytest.mark.parametrize("surroundings", ["one namespace", "own pid namespaces"])
def test_hundreds_killed_at_random_leave_nothing_owned_and_nothing_owned_twice(
    puppet: Start, host64: Path, segment: str, tmp_path: Path, surroundings: str
) -> None:
    chance = random.Random(3)
    own = surroundings != "one namespace"

    def start(n: int) -> Puppet:
        churner = puppet(sysfs=host64, prefix=namespaces("pid") if own and n % 2 else ())
        assert churner.churn(tmp_path / "witness", n) == 0
        return churner

    churners = [start(n) for n in range(4)]
    for n in range(60 if own else 240):
        time.sleep(chance.uniform(0, 0.003))
        victim = churners.pop(0)
        assert victim.running(), "it ended by itself, because something was wrong"
        victim.kill()
        churners.append(start(4 + n))
    for churner in churners:
        assert churner.running(), "it ended by itself, because something was wrong"
        churner.kill()

    observer = puppet(sysfs=host64)
    assert observer.sweep() >= 0
    assert held(segment) == set()
    assert [info.pid for info in look(segment).instances] == [observer.pid]
    assert observer.lock(0) in (0, 1)
    assert observer.unlock() == 0
    assert observer.claim_many(64) == 0
    assert observer.register_many(lib.MTLSHM_INSTANCES) == lib.MTLSHM_INSTANCES - 1
