# SPDX-License-Identifier: BSD-3-Clause
"""The pictures in docs/, drawn by the programs themselves: see tools/pictures, which makes the namespaces."""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.text import Text

from lab.sysfs import Machine
from mtlshm import EventKind, Host
from mtlshm.ctl.table import Paper
from mtlshm.ctl.top_screen import Top
from mtlshm.ctl.view import View

_MACHINE = Machine(sockets=2, cores=8, threads=2, caches=2, split=True)
_COLUMNS, _LINES = 104, 46  # of a terminal
_NAME = "studio-host"
_WORKERS = (
    ("encoder-a", 4, 0),
    ("encoder-b", 4, 0),
    ("playout", 6, 1),
    ("multiviewer", 2, 1),
)  # lcores, and of which node
_WORKER = """
import sys
from mtlshm import Host
label, count, node = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
me = Host().register(label, cpus=range(1024))
me.claim_many(count, node=node)
print(flush=True)
sys.stdin.read()
"""


def main() -> None:
    """Draw all pictures into a directory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("into", type=Path)
    parser.add_argument("--directory", type=Path, required=True)  # from tools/enclosed
    options = parser.parse_args()
    _make_machine(options.directory)
    os.environ |= {
        "MTLSHM_PATH": str(options.directory / "mtlshm"),
        "MTLSHMD_CONFIG": "/dev/null",
        "MTL_MANAGER_SOCK_PATH": str(options.directory / "socket"),
        "MTLSHM_LEGACY_LOCK": str(options.directory / "legacy.lock"),
    }
    options.into.mkdir(parents=True, exist_ok=True)
    with _studio(options.directory):
        for name, draw in _PICTURES.items():
            (options.into / f"{name}.svg").write_text(_without_fonts(draw()))


def _make_machine(directory: Path) -> None:
    """Show the made-up machine where the kernel shows this one, in our mount namespace."""
    made = _MACHINE.write(directory / "sysfs")
    for what in "cpu", "node":
        place = f"devices/system/{what}"
        subprocess.run(["mount", "--bind", made / place, f"/sys/{place}"], check=True)
    _run_for(0, _stat(directory))
    subprocess.run(["mount", "--bind", _stat(directory), "/proc/stat"], check=True)
    socket.sethostname(_NAME)


def _stat(directory: Path) -> Path:
    return directory / "stat"


def _run_for(ticks: int, stat: Path) -> None:
    """Write proc(5) stat of a machine whose even CPUs have worked for so long, and the others a tenth of it."""
    busy = {cpu.number: ticks if cpu.number % 2 == 0 else ticks // 10 for cpu in _MACHINE.online}
    stat.write_text("".join(f"cpu{number} {time} 0 0 {ticks - time} 0 0 0 0 0 0\n" for number, time in busy.items()))


@contextmanager
def _studio(directory: Path) -> Iterator[None]:
    """A daemon and its users, one of which has died."""
    started: list[subprocess.Popen[str]] = []

    def start(*command: object, said: str) -> subprocess.Popen[str]:
        new = subprocess.Popen(
            list(map(str, command)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(new)
        assert new.stdout
        if all(said not in line for line in iter(new.stdout.readline, "")):
            raise SystemExit(f"{command[0]} ended")
        return new

    try:
        state = ["--state", directory / "state", "--pins", directory / "pins"]
        start("mtlshmd", "--xdp", "off", "--legacy", "2", *state, said="ready")
        for label, count, node in (("recorder", 2, 1), *_WORKERS):
            worker = start(sys.executable, "-c", _WORKER, label, count, node, said="\n")
            if label == "recorder":
                worker.kill()
                worker.wait()
                _await(lambda events: EventKind.DIED in events)
        with Host() as host:
            host.reserve("studio-1", 2, node=0, cpus=range(1024))
        yield
    finally:
        for each in started:
            with each:
                each.kill()


def _await(told: Callable[[set[EventKind]], bool]) -> None:
    with Host() as host:
        while not told({event.kind for event in host.events()}):
            os.sched_yield()


def _view(host: Host) -> View:
    return View(host, "/nonexistent", "/nonexistent")


def _status() -> str:
    with Host(read_only=True) as host:
        lines = list(_view(host).lines(Paper(_COLUMNS, colour=True)))
    with open(os.devnull, "w") as nowhere:
        screen = Console(width=_COLUMNS, file=nowhere, record=True, force_terminal=True)
        screen.print(Text.from_ansi("\n".join(lines), no_wrap=True))
        return screen.export_svg(title="mtlshm-ctl status")


def _top() -> str:
    async def shot() -> str:
        with Host(read_only=True) as host:
            top = Top(_view(host), 3600)
            _run_for(100, _stat(Path(host.path).parent))
            async with top.run_test(size=(_COLUMNS, _LINES)) as pilot:
                await pilot.pause()
                return top.export_screenshot(title="mtlshm-ctl top")

    return asyncio.run(shot())


def _topology() -> str:
    subprocess.run(["mtlshm-ctl", "topology", "--svg", file := Path(os.environ["MTLSHM_PATH"] + ".svg")], check=True)
    return file.read_text()


def _without_fonts(svg: str) -> str:
    """They would be fetched from somewhere else."""
    return re.sub(r"\s*@font-face \{.*?\}", "", svg, flags=re.DOTALL)


_PICTURES = {"status": _status, "top": _top, "topology": _topology}

if __name__ == "__main__":
    main()
