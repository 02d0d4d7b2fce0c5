# SPDX-License-Identifier: BSD-3-Clause
"""What is read of other processes' threads, which are real ones here. What it is for: see test_manager_socket.py."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from mtlshm.daemon import eal
from mtlshm.daemon.eal import Lcores
from mtlshm.daemon.observer import Observer

THREADS = """
import os, sys, threading
threading.stack_size(65536)
def live(word, ready):
    if word:
        name, cpu = word.split(":")
        os.sched_setaffinity(0, {int(cpu)})
        with open(f"/proc/self/task/{threading.get_native_id()}/comm", "w") as comm:
            comm.write(name)
    ready.set()
    threading.Event().wait()
first, *rest = sys.argv[2:]
for word in [first, *[""] * int(sys.argv[1]), *rest]:
    ready = threading.Event()
    threading.Thread(target=live, args=(word, ready), daemon=True).start()
    ready.wait()
print(flush=True)
sys.stdin.read()
os._exit(0)
"""

CPU = min(os.sched_getaffinity(0))


@contextmanager
def process(*workers: str, others: int = 0) -> Iterator[int]:
    """With threads of these names on these CPUs, and so many others after the first; its PID."""
    command = [sys.executable, "-c", THREADS, str(others), *workers]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as started:
        assert started.stdout
        assert started.stdout.readline() == b"\n"
        yield started.pid


def at_once(pid: int) -> Lcores:
    lcores = eal.at_once(pid)
    assert lcores
    return lcores


def test_workers_are_found_among_other_threads() -> None:
    with process(f"dpdk-worker1:{CPU}", f"dpdk-worker20:{CPU}", others=30) as pid:
        lcores = at_once(pid)
    assert [lcores.cpu(1), lcores.cpu(20)] == [CPU, CPU]
    assert lcores.cpu(2) is None, "it has workers, and this is none"


def test_process_with_very_many_threads_is_read_by_an_observer() -> None:
    async def ask(pid: int) -> Lcores:
        observer = Observer()
        try:
            return await eal.in_a_while(observer, pid)
        finally:
            observer.close()

    with process(f"dpdk-worker1:{CPU}", f"dpdk-worker2:{CPU}", others=2100) as pid:
        assert eal.at_once(pid) is None
        lcores = asyncio.run(ask(pid))
    assert [lcores.cpu(1), lcores.cpu(2)] == [CPU, CPU]


def test_ids_are_online_cpus_without_workers() -> None:
    with process("") as pid:
        lcores = at_once(pid)
    assert lcores.seen
    assert lcores.cpu(CPU) == CPU
    assert lcores.cpu(4095) is None


def test_renamed_worker_stands_for_no_id_and_is_one_of_eal_all_the_same() -> None:
    with process(f"mtl_sch_0:{CPU}") as pid:
        lcores = at_once(pid)
    assert lcores.workers == (("mtl_sch_0", (CPU,)),)
    assert lcores.cpu(CPU) is None


def test_scheduler_thread_that_may_run_anywhere_is_no_worker() -> None:
    assert eal._lcores([("mtl_sch_0", [0, 1]), ("dpdk-worker1", [1])]).workers == (("dpdk-worker1", (1,)),)


def test_what_was_seen_can_be_kept() -> None:
    fd = Lcores(True, None, (("dpdk-worker1", (3,)), ("dpdk-worker2", (4, 5)))).keep()
    try:
        assert eal.kept(fd).workers == (("dpdk-worker1", (3,)), ("dpdk-worker2", (4, 5)))
    finally:
        os.close(fd)


def test_unseen_threads_are_told_from_no_workers() -> None:
    with process("") as pid:
        pass
    assert [at_once(pid).seen, at_once(0).seen] == [False, False]
    assert at_once(0).cpu(CPU) == CPU
    assert at_once(0).cpu(4095) is None


def test_truncated_thread_name_matches_its_id() -> None:
    with process(f"lcore-worker-100:{CPU}") as pid:
        lcores = at_once(pid)
    assert lcores.workers == (("lcore-worker-10", (CPU,)),)
    assert lcores.cpu(100) == CPU
    assert lcores.cpu(1) is None


@pytest.mark.parametrize(
    ("cpus", "lcore_id", "expected"),
    [
        ((0, 1), 10, None),  # either may be 10
        ((0, 1), 100, None),
        ((10, 100), 10, 10),  # ids are CPUs
        ((10, 100), 100, 100),
        ((10, 100), 101, None),
        ((10, 0), 10, None),  # they are not
        ((3, 3), 100, 3),  # wherever it is
    ],
)
def test_two_truncated_thread_names_are_not_confused(
    cpus: tuple[int, ...], lcore_id: int, expected: int | None
) -> None:
    lcores = Lcores(True, None, tuple(("lcore-worker-10", (cpu,)) for cpu in cpus))
    assert lcores.cpu(lcore_id) == expected


def test_a_worker_that_may_run_anywhere_stands_for_no_cpu() -> None:
    assert Lcores(True, None, (("dpdk-worker1", (0, 1)),)).cpu(1) is None


def test_known_ids_are_those_of_workers_and_mean_what_is_said_of_each() -> None:
    with process(f"dpdk-worker1:{CPU}", f"dpdk-worker20:{CPU}", f"lcore-worker-100:{CPU}", others=3) as pid:
        lcores = at_once(pid)
    assert dict(lcores.known()) == {1: CPU, 20: CPU, 10: lcores.cpu(10)}


def test_known_ids_without_workers_are_the_online_cpus() -> None:
    with process("", others=2) as pid:
        known = dict(at_once(pid).known())
    assert CPU in known
    assert all(lcore_id == cpu for lcore_id, cpu in known.items())


def test_of_too_many_workers_none_is_known_at_once() -> None:
    workers = tuple((f"dpdk-worker{number}", (number,)) for number in range(1000))
    lcores = Lcores(True, None, workers)
    assert lcores.cpu(999) == 999
    assert dict(lcores.known()) == {}
