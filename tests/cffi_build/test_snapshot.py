# SPDX-License-Identifier: BSD-3-Clause
"""snapshot.c: seeing it all without stopping anyone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lab.processes import Puppet, look
from mtlshm import Host

Start = Callable[..., Puppet]


def test_every_lcore_shown_has_its_owner_among_the_instances_while_eight_churn(
    puppet: Start, host64: Path, tmp_path: Path
) -> None:
    observer = puppet(sysfs=host64)
    churners = [puppet(sysfs=host64) for _ in range(8)]
    for n, churner in enumerate(churners):
        assert churner.churn(tmp_path / "witness", n) == 0
    assert observer.watch(10000) == 0
    assert all(churner.running() for churner in churners)


def test_the_dead_are_shown_as_dead_until_somebody_collects_them(puppet: Start, segment: str) -> None:
    living, dead = puppet(), puppet()
    dead.claim(5)
    dead.kill()
    assert {info.pid: info.alive for info in look(segment).instances} == {living.pid: True, dead.pid: False}
    assert look(segment).lcores[0].owner.alive is False
    living.sweep()
    assert {info.pid: info.alive for info in look(segment).instances} == {living.pid: True}


def test_looking_changes_nothing(puppet: Start, segment: str) -> None:
    holder, dead = puppet(), puppet()
    holder.claim(4)
    dead.claim(5)
    dead.kill()
    before = Path(segment).read_bytes()
    with Host(segment, read_only=True) as host:
        host.snapshot()
        host.owners()
        for owner in host.owners():
            host.inspect(owner)
            host.alive(owner)
    assert Path(segment).read_bytes() == before


def test_one_instance_is_seen_as_in_the_snapshot_of_all(puppet: Start, segment: str) -> None:
    me = puppet()
    me.claim(5)
    with Host(segment, read_only=True) as host:
        one, (of_all,) = host.inspect(me.owner()), host.snapshot().instances
        assert one
        assert (one.owner, one.pid, one.label, one.alive) == (of_all.owner, of_all.pid, of_all.label, True)
        me.unregister()
        assert host.inspect(one.owner) is None
