# SPDX-License-Identifier: BSD-3-Clause
"""The figures of the manager socket, as a libmtl sees it that knows nothing of the table."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from benchmarks.daemon import death, mtlshmd, on_made_up_cpus, running
from benchmarks.measure import Bench, Figure, Measure, figure, pinned

TURNS = 9
CONNECTS = 500


@contextmanager
def served(bench: Bench, on_one_core: bool) -> Iterator[None]:
    """A daemon runs; if on one core, so does all that is started meanwhile."""
    with pinned(0) if on_one_core else nullcontext(), running(on_made_up_cpus(mtlshmd(bench), bench)):
        yield


def round_trip(clients: int, on_one_core: bool = False) -> Measure:
    def measure(bench: Bench, name: str) -> Figure:
        with served(bench, on_one_core):
            turns = bench.turns("manager", "round_trip", clients, TURNS)
        return figure(name, "µs", "118 bytes to a C epoll server and back", turns, scale=1e-3, events=True)

    return measure


def throughput(clients: int, on_one_core: bool = False) -> Measure:
    def measure(bench: Bench, name: str) -> Figure:
        with served(bench, on_one_core):
            turns = bench.turns("manager", "throughput", clients, TURNS)
        return figure(name, "requests/s", "of a C epoll server", turns)

    return measure


def register(bench: Bench, name: str) -> Figure:
    with served(bench, on_one_core=False):
        turns = bench.turns("manager", "register", 1, CONNECTS)
    return figure(name, "µs", "connect to a C epoll server, one request", turns, scale=1e-3, events=True)


CLIENTS = (1, 4, 16)

FIGURES: dict[str, Measure] = {
    **{f"socket_{n}": round_trip(n) for n in CLIENTS},
    **{f"socket_{n}_pinned": round_trip(n, on_one_core=True) for n in CLIENTS},
    **{f"throughput_{n}": throughput(n) for n in CLIENTS},
    **{f"throughput_{n}_pinned": throughput(n, on_one_core=True) for n in CLIENTS},
    "socket_register": register,
    "socket_death": death("socket", 1),
}
