# SPDX-License-Identifier: BSD-3-Clause
"""How long a client waits that names an interface, with the programs to be loaded and with them loaded."""

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter_ns, sleep

from benchmarks.daemon import mtlshmd, running
from benchmarks.measure import Bench, Figure, figure
from lab import networks
from mtlshm.manager_client import Manager
from mtlshm.net.xdp import find_object

TURNS = 15
UNLOADED_MS = 300  # after the last client has ended


@contextmanager
def veth(bench: Bench) -> Iterator[tuple[int, str]]:
    """With a daemon that serves it."""
    if os.geteuid() != 0:
        raise RuntimeError("needs root")
    with networks.sandbox(), networks.veth() as link, running(mtlshmd(bench, "--legacy", "off", "--xdp", "fused")):
        yield link.index, link.name


def named(bench: Bench, *interfaces: int) -> float:
    """ns for a REGISTER."""
    with Manager(bench.directory / "manager.sock") as manager:
        start = perf_counter_ns()
        manager.register(interfaces)
        return perf_counter_ns() - start


def by_hand(device: str) -> float:
    command = ["xdp-loader", "load", "--mode", "native", device, str(find_object("mtl_dp_fused.o"))]
    start = perf_counter_ns()
    subprocess.run(command, check=True)
    took = perf_counter_ns() - start
    subprocess.run(["xdp-loader", "unload", device, "--all"], check=True)
    return took


def unhurried(measure: Callable[[], float]) -> float:
    sleep(UNLOADED_MS / 1000)
    return measure()


def load(bench: Bench, name: str) -> Figure:
    with veth(bench) as (index, device):
        named(bench, index)  # the first of all has more to do: see mtlshm/daemon/lazy.py
        turns = [(unhurried(lambda: named(bench, index)), unhurried(lambda: by_hand(device))) for _ in range(TURNS)]
    return figure(name, "ms", "xdp-loader load, by hand", turns, scale=1e-6)


def loaded(bench: Bench, name: str) -> Figure:
    with veth(bench) as (index, _), Manager(bench.directory / "manager.sock") as another:
        another.register((index,))
        turns = [(named(bench, index), named(bench)) for _ in range(20 * TURNS)]
    return figure(name, "µs", "REGISTER with no interface", turns, scale=1e-3, events=True)


FIGURES = {"register_load": load, "register_loaded": loaded}
