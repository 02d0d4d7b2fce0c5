# SPDX-License-Identifier: BSD-3-Clause
"""release --force takes from the living what an operator says; gc takes from the dead only."""

from __future__ import annotations

import os

import pytest

from lab.processes import held, look
from mtlshm import Host, MtlshmError


def test_release_says_whose_it_is_and_asks(ctl, segment, own_cpus):
    with Host(segment) as host, host.register("encoder") as me:
        me.claim(own_cpus[0])
        done = ctl("release", "--force", own_cpus[0], answer="n\n")
        assert done.returncode == 1
        assert f"encoder (pid {os.getpid()}" in done.stdout
        assert held(segment) == {own_cpus[0]}

        assert ctl("release", "--force", own_cpus[0], answer="y\n").returncode == 0
        assert held(segment) == set()
        with pytest.raises(MtlshmError) as refused:
            me.release(own_cpus[0])
        assert "not held by this instance" in str(refused.value)


def test_release_does_not_ask_if_told_so(ctl, segment, own_cpus):
    with Host(segment) as host, host.register("encoder") as me:
        me.claim(own_cpus[0])
        assert ctl("release", "--force", "--yes", own_cpus[0]).returncode == 0
        assert held(segment) == set()


def test_release_without_force_takes_nothing(ctl, segment, own_cpus):
    with Host(segment) as host, host.register("encoder") as me:
        me.claim(own_cpus[0])
        assert ctl("release", "--yes", own_cpus[0]).returncode == 2
        assert held(segment) == {own_cpus[0]}


def test_release_of_a_free_lcore_says_that_it_is_free(ctl, segment):
    Host(segment).close()
    done = ctl("release", "--force", "--yes", 0)
    assert (done.returncode, done.stdout) == (0, "lcore 0 is free\n")


def test_gc_collects_the_dead_and_leaves_the_living(ctl, segment, puppet):
    living, dead = puppet(), puppet()
    living.claim(0)
    dead.claim(1)
    dead.kill()
    done = ctl("gc")
    assert done.returncode == 0
    assert f"pid {dead.pid}" in done.stdout
    assert f"pid {living.pid}" not in done.stdout
    assert [i.pid for i in look(segment).instances] == [living.pid]
    assert held(segment) == {0}
    assert ctl("gc").stdout == "nothing to collect\n"


@pytest.mark.parametrize("words", [("gc",), ("release", "--force", "--yes", "0")])
def test_with_no_segment_none_is_made(ctl, segment, words):
    done = ctl(*words)
    assert done.returncode == 3
    assert done.stderr.count("\n") == 1
    assert not os.path.exists(segment)


def test_release_of_what_is_not_in_the_table_is_wrong_usage(ctl, segment):
    Host(segment).close()
    assert ctl("release", "--force", "--yes", 5000).returncode == 2
