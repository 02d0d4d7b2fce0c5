# SPDX-License-Identifier: BSD-3-Clause
"""The figures of the manager socket, as a libmtl sees it that knows nothing of the table."""

import shlex
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from time import monotonic, sleep

from benchmarks.daemon import death, mtlshmd, on_made_up_cpus, running
from benchmarks.measure import Bench, Figure, Measure, figure, pinned

TURNS = 9
CONNECTS = 500
START_S = 60

# Has a manager program run. The Bench that it gives has the socket in its directory.
Serve = Callable[[Bench], AbstractContextManager[Bench]]


@contextmanager
def served(bench: Bench) -> Iterator[Bench]:
    """A daemon runs."""
    with running(on_made_up_cpus(mtlshmd(bench), bench)):
        yield bench


@dataclass(frozen=True)
class Peer:
    """Another manager program, and the path of its socket."""

    socket: Path
    command: str

    @contextmanager
    def served(self, bench: Bench) -> Iterator[Bench]:
        """It runs in a mount namespace of its own: whatever serves that path here is not in its way. The clients reach
        it through a link in the directory of the Bench that is returned."""
        there = next(parent for parent in self.socket.parents if parent.is_dir())
        script = 'mount -t tmpfs tmpfs "$1" && mkdir -p "$2" && shift 2 && exec "$@"'
        command = ["unshare", "--mount", "sh", "-c", script, "sh", str(there), str(self.socket.parent)]
        with subprocess.Popen(
            [*command, *shlex.split(self.command)], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        ) as process:
            try:
                inside = Path(f"/proc/{process.pid}/root") / self.socket.relative_to("/")
                _await(process, inside)
                mine = replace(bench, directory=bench.directory / "peer")
                mine.directory.mkdir(exist_ok=True)
                link = mine.directory / "manager.sock"
                link.unlink(missing_ok=True)
                link.symlink_to(inside)
                yield mine
            finally:
                process.kill()


def _await(process: subprocess.Popen[bytes], path: Path) -> None:
    deadline = monotonic() + START_S
    while True:
        with socket.socket(socket.AF_UNIX) as probe, suppress(OSError):
            probe.connect(str(path))
            return
        if process.poll() is not None or monotonic() > deadline:
            raise RuntimeError(f"{process.args!r} does not listen at {path}")
        sleep(0.01)


def _turns(serve: Serve, on_one_core: bool, bench: Bench, *arguments: object) -> list[tuple[float, float]]:
    """If on one core, so are the server, its clients and the baseline."""
    with pinned(0) if on_one_core else nullcontext(), serve(bench) as there:
        return there.turns("manager", *arguments)


def round_trip(serve: Serve, clients: int, on_one_core: bool, bench: Bench, name: str) -> Figure:
    turns = _turns(serve, on_one_core, bench, "round_trip", clients, TURNS)
    return figure(name, "µs", "118 bytes to a C epoll server and back", turns, scale=1e-3, events=True)


def throughput(serve: Serve, clients: int, on_one_core: bool, bench: Bench, name: str) -> Figure:
    turns = _turns(serve, on_one_core, bench, "throughput", clients, TURNS)
    return figure(name, "requests/s", "of a C epoll server", turns)


def register(serve: Serve, on_one_core: bool, bench: Bench, name: str) -> Figure:
    turns = _turns(serve, on_one_core, bench, "register", 1, CONNECTS)
    return figure(name, "µs", "connect to a C epoll server, one request", turns, scale=1e-3, events=True)


def hot_p99(serve: Serve, bench: Bench, name: str) -> Figure:
    turns = _turns(serve, False, bench, "hot", 1, TURNS)
    subjects, others = (sorted(column) for column in zip(*turns, strict=True))
    at = int(0.99 * len(turns))
    return Figure(
        *(name, subjects[at] / 1e3, "µs", None),
        *("p99 of a round trip to a C epoll server beside 300 connects/s", others[at] / 1e3),
        ratio=subjects[at] / others[at],
        quartiles=(subjects[len(turns) // 4] / 1e3, median(subjects) / 1e3),
    )


CLIENTS = (1, 4, 16)


def _figures(serve: Serve) -> dict[str, Measure]:
    """All that any manager program can be asked."""
    return {
        **{f"socket_{n}": partial(round_trip, serve, n, False) for n in CLIENTS},
        **{f"socket_{n}_pinned": partial(round_trip, serve, n, True) for n in CLIENTS},
        **{f"throughput_{n}": partial(throughput, serve, n, False) for n in CLIENTS},
        **{f"throughput_{n}_pinned": partial(throughput, serve, n, True) for n in CLIENTS},
        "socket_register": partial(register, serve, False),
        "register_pinned": partial(register, serve, True),
        "hot_p99": partial(hot_p99, serve),
    }


FIGURES: dict[str, Measure] = {**_figures(served), "socket_death": death("socket", 1)}


def peer_figures(peer: Peer) -> dict[str, Measure]:
    """The same of another manager program."""
    return _figures(peer.served)
