# SPDX-License-Identifier: BSD-3-Clause
"""Proxied instances: records that a daemon keeps for others, and lcores that pass between them."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from threading import Thread

import pytest
from inotify_simple import INotify, flags

from lab.processes import held, look
from mtlshm import Busy, Host, Instance, Kind, LcoreType, MtlshmError, Process


def proxy(host: Host, label: str, kind: Kind = Kind.LEGACY) -> Instance:
    return host.register_proxy(kind, Process(1, 2, 3, 4, 5, "comm", "hostname", label))


def holder(segment: str, lcore: int) -> tuple[str, LcoreType | int]:
    return next((each.owner.label, each.type) for each in look(segment).lcores if each.number == lcore)


def test_an_lcore_passes_from_one_to_another(host: Host, segment: str) -> None:
    first, second = proxy(host, "first"), proxy(host, "second")
    first.claim(5, LcoreType.SCH)
    second.take(5, first.owner, LcoreType.TAP)
    assert holder(segment, 5) == ("second", LcoreType.TAP)
    with pytest.raises(MtlshmError):
        first.release(5)
    second.release(5)
    assert held(segment) == set()


def test_it_is_not_free_for_a_moment(host: Host, segment: str) -> None:
    first, second = proxy(host, "first"), proxy(host, "second")
    first.claim(5)
    got: list[bool] = []
    done = False

    def try_it() -> None:
        with host.register(cpus=range(128)) as greedy:
            while not done:
                try:
                    greedy.claim(5)
                except Busy:
                    continue
                got.append(True)
                return

    thread = Thread(target=try_it)
    thread.start()
    for _ in range(20_000):
        second.take(5, first.owner)
        first, second = second, first
    done = True
    thread.join()
    assert got == []


def test_take_refuses_free_lcores_and_those_of_other_owners(host: Host, segment: str) -> None:
    first, second = proxy(host, "first"), proxy(host, "second")
    with host.register("itself", cpus=range(128)) as me:
        me.claim(5)
        gone = first.owner
        first.unregister()
        for lcore, owner in (5, second.owner), (5, gone), (5, me.owner), (6, second.owner), (6, 0):
            with pytest.raises(MtlshmError) as raised:
                second.take(lcore, owner)
            assert raised.value.errno == errno.ESRCH
        assert held(segment) == {5}
        assert holder(segment, 5)[0] == "itself"


@pytest.mark.parametrize(("lcore", "type", "code"), [(1024, 3, errno.ERANGE), (5, 99, errno.EINVAL)])
def test_take_refuses_invalid_lcores_and_types(host: Host, lcore: int, type: int, code: int) -> None:
    first, second = proxy(host, "first"), proxy(host, "second")
    first.claim(5)
    with pytest.raises(MtlshmError) as raised:
        second.take(lcore, first.owner, type)
    assert raised.value.errno == code


def test_registering_for_others_wakes_no_watcher_of_the_file(host: Host, segment: str) -> None:
    """Or the daemon would wake itself with each client."""
    with INotify(nonblocking=True) as inotify:
        inotify.add_watch(segment, flags.CLOSE_WRITE | flags.MODIFY)
        for label in "first", "second":
            proxy(host, label).unregister()
        assert inotify.read(timeout=0) == []
        with host.register():
            pass
        assert inotify.read(timeout=0) != []


def test_a_forked_child_registers_for_others_with_locks_of_its_own(host: Host, segment: str) -> None:
    proxy(host, "before")
    if not (child := os.fork()):
        with suppress(BaseException):
            proxy(host, "child")
            os._exit(0)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    proxy(host, "after")
    assert sorted(info.label for info in look(segment).instances) == ["after", "before", "child"]


def test_it_is_not_registered_in_a_file_that_is_not_at_the_path_any_more(host: Host, segment: str) -> None:
    proxy(host, "before")
    os.unlink(segment)
    with pytest.raises(MtlshmError) as refused:
        proxy(host, "after")
    assert refused.value.errno == errno.ESTALE
    with Host(segment), pytest.raises(MtlshmError):
        proxy(host, "after")
