# SPDX-License-Identifier: BSD-3-Clause
"""What is read of other processes' threads, which are real ones here. What it is for: see test_manager_socket.py."""

from __future__ import annotations

import os
import subprocess
import sys

from mtlshm.daemon import eal

THREADS = """
import os, sys, threading
cpu = int(sys.argv[1])
threading.stack_size(65536)
def live(name, ready):
    if name:
        os.sched_setaffinity(0, {cpu})
        with open(f"/proc/self/task/{threading.get_native_id()}/comm", "w") as comm:
            comm.write(name)
    ready.set()
    threading.Event().wait()
for name in ["dpdk-worker1", *[""] * int(sys.argv[2]), "dpdk-worker2"]:
    ready = threading.Event()
    threading.Thread(target=live, args=(name, ready), daemon=True).start()
    ready.wait()
print(flush=True)
sys.stdin.read()
os._exit(0)
"""


def lcores_of_a_process_with(others: int) -> tuple[dict[int, int], int]:
    """What is found of two workers, one before and one after so many other threads; and their CPU."""
    cpu = min(os.sched_getaffinity(0))
    command = [sys.executable, "-c", THREADS, str(cpu), str(others)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"\n"
        return eal.lcores(process.pid), cpu


def test_workers_are_found_among_other_threads() -> None:
    found, cpu = lcores_of_a_process_with(100)
    assert found == {1: cpu, 2: cpu}


def test_who_has_very_many_threads_has_not_all_looked_at() -> None:
    """The daemon does nothing else meanwhile."""
    found, cpu = lcores_of_a_process_with(2100)
    assert found == {1: cpu}
