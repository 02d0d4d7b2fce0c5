# SPDX-License-Identifier: BSD-3-Clause
"""Instance: a registered identity, able to own lcores."""

from __future__ import annotations

import errno
import gc
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Barrier, Thread

import pytest

from lab.processes import Puppet, eventually, held, look, run_python
from lab.refusals import refusal
from mtlshm import Busy, CpuSet, Host, Instance, InstanceGone, LcoreType, MtlshmError, Smt, TimedOut

Start = Callable[..., Puppet]


@pytest.fixture
def host(segment: str, host64: Path) -> Iterator[Host]:
    with Host(segment, sysfs=host64) as host:
        yield host


@pytest.fixture
def me(host: Host) -> Iterator[Instance]:
    with host.register(cpus=range(64)) as me:
        yield me


def test_claim_and_release(me: Instance, segment: str) -> None:
    me.claim(5)
    assert me.lcores == held(segment) == {5}
    me.release(5)
    assert me.lcores == held(segment) == set()


def test_claim_type_defaults_to_app(me: Instance, segment: str) -> None:
    me.claim(5)
    me.claim(6, LcoreType.SCH)
    assert [lcore.type for lcore in look(segment).lcores] == [LcoreType.APP, LcoreType.SCH]


def test_a_claim_of_several_returns_what_it_got(me: Instance, segment: str) -> None:
    lcores = me.claim_many(8, smt=Smt.AVOID, type=LcoreType.SCH)
    assert isinstance(lcores, CpuSet)
    assert len(lcores) == 8
    assert held(segment) == lcores
    assert {lcore.type for lcore in look(segment).lcores} == {LcoreType.SCH}
    assert me.release_all() == 8


@pytest.mark.parametrize(
    ("call", "error", "number"),
    [
        (lambda me: me.claim(1), Busy, errno.EBUSY),
        (lambda me: me.claim(2), Busy, errno.EALREADY),
        (lambda me: me.claim(1024), MtlshmError, errno.ERANGE),
        (lambda me: me.claim(3, 99), MtlshmError, errno.EINVAL),
        (lambda me: me.release(1), MtlshmError, errno.EPERM),
        (lambda me: me.release(1024), MtlshmError, errno.ERANGE),
        (lambda me: me.claim_many(64), Busy, errno.EBUSY),
        (lambda me: me.claim_many(0), MtlshmError, errno.EINVAL),
        (lambda me: me.claim_many(-1), MtlshmError, errno.ERANGE),
        (lambda me: me.claim_many(65), MtlshmError, errno.ERANGE),
        (lambda me: me.claim_many(10**9), MtlshmError, errno.ERANGE),
        (lambda me: me.claim_many(1, node=9), MtlshmError, errno.ENXIO),
    ],
)
def test_refused_call_raises_its_errno_and_loses_nothing(
    me: Instance,
    puppet: Start,
    segment: str,
    call: Callable[[Instance], object],
    error: type[MtlshmError],
    number: int,
) -> None:
    other = puppet()
    other.claim(1)
    me.claim(2)
    with pytest.raises(error) as raised:
        call(me)
    assert raised.value.errno == number
    assert held(segment) == {1, 2}


def test_numbers_that_no_lcore_can_have_are_refused(me: Instance) -> None:
    for number in -1, 2**32, 2**80:
        assert refusal(me.claim, number) == errno.ERANGE
        assert refusal(me.release, number) == errno.ERANGE


def test_closed_instance_is_refused_and_close_is_idempotent(me: Instance) -> None:
    me.close()
    me.close()
    assert me.owner == 0
    for call in (
        lambda: me.claim(5),
        lambda: me.release(5),
        lambda: me.claim_many(1),
        me.release_all,
        lambda: me.semaphore().__enter__(),
    ):
        with pytest.raises(InstanceGone) as raised:
            call()
        assert raised.value.errno == errno.EBADF


def test_an_lcore_of_the_dead_is_claimed_like_a_free_one(me: Instance, puppet: Start) -> None:
    holder = puppet()
    holder.claim(5)
    with pytest.raises(Busy):
        me.claim(5)
    holder.kill()
    me.claim(5)


def test_labels_are_for_people_and_may_be_in_their_script(host: Host) -> None:
    with host.register("Schnürsenkel 靴ひも") as me:
        assert host.inspect(me.owner).label == "Schnürsenkel 靴ひも"
    with host.register("é" * 60) as me:  # cut within a letter
        assert host.inspect(me.owner).label.startswith("é" * 31)


def test_the_cpus_given_are_those_that_may_be_claimed(host: Host) -> None:
    with host.register(cpus=[3, 4]) as me:
        me.claim(3)
        with pytest.raises(MtlshmError) as raised:
            me.claim(5)
        assert raised.value.errno == errno.EDOM
        assert me.claim_many(1) == {4}
        with pytest.raises(MtlshmError) as raised:
            me.claim_many(3)
        assert raised.value.errno == errno.ERANGE
    with pytest.raises(ValueError, match="1024"):
        host.register(cpus=[1024])


def test_the_semaphore_is_held_inside_the_block_only(me: Instance, puppet: Start) -> None:
    other = puppet()
    with me.semaphore() as taken_over:
        assert taken_over is False
        assert other.lock(0) < 0
    assert other.lock(0) == 0
    with pytest.raises(TimedOut) as raised, me.semaphore(timeout=0.01):
        pass
    assert raised.value.errno == errno.ETIMEDOUT
    other.kill()
    with me.semaphore() as taken_over:
        assert taken_over is True
    with me.semaphore() as taken_over:
        assert taken_over is False


def test_one_thread_wins_each_lcore(host: Host) -> None:
    instances = [host.register(cpus=range(64)) for _ in range(8)]
    start = Barrier(len(instances))
    wins: list[int] = []

    def claim_all(me: Instance) -> None:
        start.wait()
        for lcore in range(64):
            try:
                me.claim(lcore)
            except Busy:
                continue
            wins.append(lcore)

    threads = [Thread(target=claim_all, args=[me]) for me in instances]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Counter(wins) == dict.fromkeys(range(64), 1)


FORK = """
import os, sys
from mtlshm import Host, InstanceGone
with Host(sys.argv[1]) as host, host.register(cpus=range(128)) as me:
    me.claim(5)
    if not (child := os.fork()):
        try:
            me.claim(6)
        except InstanceGone as error:
            assert error.errno == 10
        else:
            raise AssertionError
        with host.register(cpus=range(128)) as own:
            own.claim(6)
            assert own.lcores == {6}
    else:
        assert os.waitpid(child, 0)[1] == 0
        assert me.lcores == {5}
        me.claim(6)
        print(sorted(me.lcores))
"""


def test_a_forked_child_registers_for_itself_and_leaves_its_parents_lcores_alone(segment: str) -> None:
    """It ends as Python does: its copies of host and instance are closed, which means nothing to the parent's."""
    assert run_python(FORK, segment) == "[5, 6]\n"
    assert look(segment).instances == ()


def test_exec_ends_the_instance(segment: str) -> None:
    code = """
import os, sys
from mtlshm import Host
me = Host(sys.argv[1]).register(cpus=range(128))
me.claim(5)
os.execv(sys.executable, [sys.executable, "-c", "import sys, mtlshm\\nfor info in mtlshm.Host(sys.argv[1]).snapshot().instances: print(info.alive, *info.lcores)", sys.argv[1]])
"""  # noqa: E501
    assert run_python(code, segment) == "False 5\n"


def test_a_process_that_just_ends_leaves_the_table(segment: str) -> None:
    run_python("import mtlshm, sys\nme = mtlshm.Host(sys.argv[1]).register(cpus=range(8))\nme.claim(5)", segment)
    assert not any(info.alive for info in look(segment).instances)
    with Host(segment) as host, host.register(cpus=range(8)) as me:
        me.claim(5)


def test_an_instance_unregisters_when_its_block_ends_with_an_exception(host: Host) -> None:
    with pytest.raises(RuntimeError), host.register() as me:
        raise RuntimeError
    assert me.owner == 0
    assert host.owners() == []


def test_closing_does_not_pull_the_handle_from_under_another_thread(segment: str, host64: Path) -> None:
    """Every call of the other thread works or is refused; under a sanitizer nothing is used after it is freed."""
    for _ in range(50):
        host = Host(segment, sysfs=host64)
        me = host.register(cpus=range(64))
        refused = []

        def work(me: Instance = me, refused: list[InstanceGone] = refused) -> None:
            try:
                while True:
                    me.claim_many(8)
                    me.release_all()
            except InstanceGone as error:
                refused.append(error)

        threads = [Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        me.close()
        host.close()
        for thread in threads:
            thread.join()
        assert len(refused) == len(threads)
        del me, work
    assert held(segment) == set()


def test_hosts_and_instances_in_a_cycle_leave_nothing_mapped(segment: str) -> None:
    for _ in range(5):
        host = Host(segment)
        host.mine = host.register()  # type: ignore[attr-defined]
        del host
    gc.collect()
    assert segment not in Path("/proc/self/maps").read_text()
    assert look(segment).instances == ()


def test_cpus_that_have_gone_offline_are_not_chosen(segment: str, host64: Path) -> None:
    with Host(segment, sysfs=host64) as host, host.register(cpus=range(64)) as me:
        assert me.claim_many(64) == set(range(64))
        me.release_all()
        (host64 / "devices/system/cpu/online").write_text("0-1\n")

        def refused() -> bool:  # from the next second on: it is looked up once a second
            if refusal(me.claim_many, 3) == errno.ERANGE:
                return True
            me.release_all()
            return False

        eventually(refused)
        assert me.claim_many(2) == {0, 1}
