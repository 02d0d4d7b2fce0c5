# SPDX-License-Identifier: BSD-3-Clause
"""A client of the manager socket owns what it was granted until it gives it back or dies."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress

import pytest

from lab.processes import DEADLINE, eventually, held, look, namespaces, needs_root
from lab.refusals import refusal
from mtlshm import Host, Kind, MtlshmError, Process, wire
from mtlshm.manager_client import Manager
from mtlshm.namespaces import own
from mtlshm.wire import Dialect, Lcore, Type


def test_closed_connection_gives_back_its_lcores(connect, segment):
    first, second = connect(), connect()
    first.get_lcore(1)
    second.get_lcore(0)
    assert refusal(second.get_lcore, 1) == errno.EBUSY
    first.close()
    eventually(lambda: held(segment) == {0})
    second.get_lcore(1)


def test_client_cannot_give_back_anothers_lcore(connect, segment):
    first, second = connect(), connect()
    first.get_lcore(1)
    assert refusal(second.put_lcore, 1) == errno.EINVAL
    assert held(segment) == {1}


def test_a_dead_client_holds_nothing(daemon, client, segment):
    daemon()
    client(1).kill()
    eventually(lambda: held(segment) == set())


def test_socket_inherited_by_a_child_keeps_no_lcores_of_a_dead_client(daemon, client, segment):
    daemon()
    process = client(1, "fork")
    os.kill(process.pid, signal.SIGKILL)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    eventually(lambda: held(segment) == set())
    os.kill(process.child, 0)  # the child lives


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_living_clients_keep_their_lcores_over_a_restart(daemon, client, segment, manager_socket, number):
    first = daemon()
    living, dying = client(1), client(0)
    first.end(number)
    dying.kill()
    dying.wait()
    daemon()
    eventually(lambda: held(segment) == {1})
    with Manager(manager_socket, timeout=DEADLINE) as newcomer:
        newcomer.register()
        assert refusal(newcomer.get_lcore, 1) == errno.EBUSY
        newcomer.get_lcore(0)
        living.kill()
        eventually(lambda: held(segment) == {0})
        newcomer.get_lcore(1)


def test_reused_pid_that_is_a_thread_counts_as_dead(daemon, segment):
    over = threading.Event()
    thread = threading.Thread(target=over.wait)
    thread.start()
    try:
        with Host(segment) as host:
            gone = Process(thread.native_id or 0, own("pid"), 1, 1, 0, "gone", "vm", "gone")
            host.register_proxy(Kind.SOCKET, gone).claim(1)
        daemon()
        eventually(lambda: held(segment) == set())
    finally:
        over.set()
        thread.join()


def test_own_direct_claim_is_granted_over_the_socket_and_survives_a_put(connect, segment, own_cpu):
    manager = connect()
    with Host(segment) as host, host.register("direct") as me:
        me.claim(own_cpu)
        manager.get_lcore(own_cpu)
        assert refusal(manager.get_lcore, own_cpu) == errno.EBUSY
        assert refusal(connect().get_lcore, own_cpu) == errno.EBUSY
        manager.put_lcore(own_cpu)
        assert me.lcores == {own_cpu}
        assert refusal(manager.put_lcore, own_cpu) == errno.EINVAL
        manager.get_lcore(own_cpu)
        assert refusal(me.release, own_cpu) == errno.EPERM  # its libmtl has it
        manager.put_lcore(own_cpu)
        me.release(own_cpu)
    assert held(segment) == set()


def test_get_is_answered_while_the_same_process_releases_the_lcore(connect, segment, own_cpu):
    manager = connect()
    over = threading.Event()

    def come_and_go() -> None:
        with Host(segment) as host, host.register("direct") as me:
            while not over.is_set():
                with suppress(MtlshmError):
                    me.claim(own_cpu)
                with suppress(MtlshmError):
                    me.release(own_cpu)

    direct = threading.Thread(target=come_and_go)
    direct.start()
    try:
        for _ in range(5000):
            for kind in Type.GET_LCORE, Type.PUT_LCORE:
                manager.exchange(wire.encode(kind, Lcore(own_cpu), Dialect.A))
    finally:
        over.set()
        direct.join()


def test_direct_claim_of_another_process_is_not_granted(connect, puppet, segment):
    puppet().claim(1)
    assert refusal(connect().get_lcore, 1) == errno.EBUSY


@needs_root("a mount namespace of the daemon's")
def test_every_request_is_answered_without_proc(daemon, manager_socket, puppet, segment):
    server = daemon(prefix=("unshare", "--mount"))
    puppet().claim(0)
    with Manager(manager_socket, timeout=DEADLINE) as manager:
        manager.register()
        subprocess.run(["nsenter", "--mount", f"--target={server.pid}", "umount", "--lazy", "/proc"], check=True)
        assert refusal(manager.get_lcore, 0) == errno.EBUSY
        manager.get_lcore(1)


def test_direct_claim_of_a_dead_process_is_granted(connect, puppet, segment):
    victim = puppet()
    victim.claim(1)
    victim.kill()
    connect().get_lcore(1)


def test_a_socket_clients_lcore_is_not_taken_by_direct_claims_or_sweeps(connect, segment, puppet):
    connect().get_lcore(1)
    assert puppet().claim(1) == -errno.EBUSY
    with Host(segment) as host:
        host.sweep()
    assert held(segment) == {1}


def test_ids_that_are_no_cpus_here_are_refused(connect):
    assert refusal(connect().get_lcore, 127) == errno.EINVAL
    assert refusal(connect().get_lcore, 65535) == errno.EINVAL


def test_unreadable_threads_are_logged_before_ids_are_taken_for_cpus(daemon, manager_socket, own_cpu):
    server = daemon(prefix=namespaces("pid"))
    with Manager(manager_socket, timeout=DEADLINE) as manager:
        manager.register()
        manager.get_lcore(own_cpu)
        server.await_log("are not seen from here")
        assert refusal(manager.get_lcore, 127) == errno.EINVAL


OWN_LIBMTL = """
import sys
from mtlshm import Host
from mtlshm.manager_client import Manager
with Host(sys.argv[1]) as host, host.register("direct") as me, Manager(sys.argv[2], timeout=120) as manager:
    manager.register()
    me.claim(int(sys.argv[3]))
    manager.get_lcore(int(sys.argv[3]))
"""


@pytest.mark.parametrize("of_client", [(), ("pid",)])
@pytest.mark.parametrize("of_daemon", [(), ("pid",)])
def test_own_direct_claim_is_granted_in_a_pid_namespace(daemon, manager_socket, segment, own_cpu, of_client, of_daemon):
    daemon(prefix=namespaces(*of_daemon) if of_daemon else ())
    prefix = namespaces(*of_client) if of_client else ()
    command = [*prefix, sys.executable, "-c", OWN_LIBMTL, segment, str(manager_socket), str(own_cpu)]
    subprocess.run(command, check=True, timeout=DEADLINE)


@pytest.fixture
def own_cpu() -> int:
    return min(os.sched_getaffinity(0))


def test_remapped_ids_on_disjoint_cpu_sets_are_different_cpus(daemon, eal_process, segment, two_cpus):
    daemon()
    first, second = eal_process({1: two_cpus[0]}), eal_process({1: two_cpus[1]})
    assert first.ask("get", 1) == 0
    assert held(segment) == {two_cpus[0]}
    assert second.ask("get", 1) == 0
    assert held(segment) == set(two_cpus)
    assert first.ask("put", 1) == 0
    assert held(segment) == {two_cpus[1]}


def test_remapped_ids_on_overlapping_cpu_sets_meet_at_the_cpu(daemon, eal_process, segment, two_cpus):
    daemon()
    first = eal_process({1: two_cpus[0], 2: two_cpus[1]})
    second = eal_process({1: two_cpus[1], 2: two_cpus[0]})
    assert first.ask("get", 2) == 0
    assert held(segment) == {two_cpus[1]}
    assert second.ask("get", 1) == -errno.EBUSY
    assert second.ask("get", 2) == 0
    assert held(segment) == set(two_cpus)


def test_the_table_shows_cpu_and_id(daemon, eal_process, segment, own_cpu):
    daemon()
    eal_process({17: own_cpu}).ask("get", 17)
    (lcore,) = look(segment).lcores
    assert (lcore.number, lcore.id) == (own_cpu, 17)
