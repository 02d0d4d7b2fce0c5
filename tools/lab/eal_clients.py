# SPDX-License-Identifier: BSD-3-Clause
"""Clients of the manager socket with the worker threads of a libmtl process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

# As EAL does: worker threads named after their lcore id, pinned to their CPU. As libmtl does: a scheduler renames the
# worker of the lcore that it was granted, for good.
_EAL = """
import ctypes, os, sys, threading
from mtlshm.manager_client import Manager
libc = ctypes.CDLL(None)
stop, ready = threading.Event(), threading.Barrier(len(sys.argv) - 2 + 1)
threads = {}
def worker(lcore, cpu):
    libc.prctl(15, f"dpdk-worker{lcore}".encode())
    os.sched_setaffinity(0, {cpu})
    threads[lcore] = threading.get_native_id()
    ready.wait()
    stop.wait()
for word in sys.argv[2:]:
    threading.Thread(target=worker, args=map(int, word.split(":")), daemon=True).start()
ready.wait()
manager = Manager(sys.argv[1], timeout=600)
manager.register()
schedulers = 0
for line in sys.stdin:
    verb, lcore = line.split()
    try:
        getattr(manager, verb + "_lcore")(int(lcore))
        if verb == "get":
            with open(f"/proc/self/task/{threads[int(lcore)]}/comm", "w") as comm:
                comm.write(f"mtl_sch_{schedulers}")
            schedulers += 1
        print(0, flush=True)
    except OSError as error:
        print(-error.errno, flush=True)
"""


class EalProcess:
    """Its workers have these CPUs, by their lcore ids."""

    def __init__(self, path: Path, lcores: dict[int, int]) -> None:
        words = [f"{lcore}:{cpu}" for lcore, cpu in lcores.items()]
        command = [sys.executable, "-c", _EAL, str(path), *words]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, verb: str, lcore: int) -> int:
        """ "get" or "put"; returns 0 or a negative errno."""
        assert self.process.stdin
        assert self.process.stdout
        print(verb, lcore, file=self.process.stdin, flush=True)
        return int(self.process.stdout.readline())
