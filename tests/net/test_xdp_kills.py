# SPDX-License-Identifier: BSD-3-Clause
"""Killed at any line of a load or an unload, the next one finishes it, and no packet is lost."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from pathlib import Path
from types import FrameType

import pytest

from lab.gates import OTHERS, PORTS, Receiver, assert_nothing_is_left, assert_whole, load, send, sockets, unload
from lab.networks import NEAR4, Veth
from lab.processes import DEADLINE
from mtlshm.net import gate as gate_module
from mtlshm.net import pins as pins_module
from mtlshm.net import xdp
from mtlshm.net.tool import Tools
from mtlshm.net.xdp import Loader

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="not root; not tested: XDP on interfaces")


SERVE = """
import asyncio, sys, time
from pathlib import Path
from mtlshm.net.tool import Tools
from mtlshm.net.xdp import Loader
gate = asyncio.run(Loader(Tools(Path(sys.argv[1]), timeout=600)).load(int(sys.argv[2])))
for port in map(int, sys.argv[3:]):
    gate.set_port(port, True)
print("ready", flush=True)
time.sleep(1000)
"""


ROUNDS = 8


@pytest.mark.slow
def test_no_packet_is_lost_when_the_loader_is_killed_under_traffic(loader: Loader, link: Veth, tmp_path: Path) -> None:
    command = [sys.executable, "-c", SERVE, str(tmp_path), str(link.index), *map(str, PORTS)]

    def start() -> subprocess.Popen[str]:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        return process

    served = start()
    sent = 0
    with (
        asyncio.run(loader.find(link.index)) as gate,
        sockets(link, gate) as xsks,
        ExitStack() as stack,
        link.far_udp(socket.AF_INET) as far,
    ):
        receiver = Receiver(link, xsks, stack)

        def traffic(until: Callable[[], bool]) -> None:
            """One packet for AF_XDP and one for the stack by turns."""
            nonlocal sent
            enough = sent + 50
            while sent < enough or not until():
                far.sendto(b"media %d" % sent, (NEAR4, PORTS[sent % 100]))
                far.sendto(b"other %d" % sent, (NEAR4, OTHERS[sent % 100]))
                sent += 1
                receiver.look()

        for _ in range(ROUNDS):
            served.kill()
            traffic(lambda process=served: process.poll() is not None)
            assert served.stdout
            served.stdout.close()
            served = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            traffic(lambda process=served: bool(select.select([process.stdout], [], [], 0)[0]))
        receiver.wait_for(2 * sent)
        assert sorted(receiver.by_xdp) == sorted(b"media %d" % n for n in range(sent))
        assert sorted(receiver.by_stack) == sorted(b"other %d" % n for n in range(sent))
        served.kill()
        served.wait()
        assert served.stdout
        served.stdout.close()


TRACED = {xdp.__file__, gate_module.__file__, pins_module.__file__}


def run_traced(coroutine: Coroutine[object, object, object], kill_at: int = 0) -> list[tuple[str, int]]:
    """Run it and return which lines of our modules were passed; or be killed when about to pass the n-th."""
    lines: list[tuple[str, int]] = []

    def trace(frame: FrameType, event: str, _: object) -> object:
        if frame.f_code.co_filename not in TRACED:
            return None
        if event == "line":
            lines.append((frame.f_code.co_filename, frame.f_lineno))
            if len(lines) == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)
    try:
        asyncio.run(coroutine)
    finally:
        sys.settrace(None)
    return lines


def moments(lines: list[tuple[str, int]]) -> list[int]:
    """The first and the last time that each line is passed, counted from 1."""
    first = {line: n for n, line in reversed(list(enumerate(lines, 1)))}
    last = {line: n for n, line in enumerate(lines, 1)}
    return sorted({*first.values(), *last.values()})


def killed_at(moment: int, coroutine: Coroutine[object, object, object]) -> bool:
    """In a child; False if it was at its end before. Who has to wait for something passes more lines than others."""
    signalled = in_a_child(lambda: run_traced(coroutine, moment))
    coroutine.close()
    assert signalled in (0, signal.SIGKILL)
    return signalled == signal.SIGKILL


def in_a_child(run: Callable[[], object]) -> int:
    """The signal that ended it; 0 if it came to its end."""
    if (pid := os.fork()) == 0:
        try:
            run()
            os._exit(0)
        finally:
            os._exit(1)
    return os.WTERMSIG(os.waitpid(pid, 0)[1])


@pytest.mark.slow
def test_load_killed_at_any_line_is_finished_or_undone_by_the_next(link: Veth, tmp_path: Path) -> None:
    tools = Tools(tmp_path, timeout=DEADLINE)
    lines = run_traced(Loader(tools).load(link.index))
    unload(Loader(tools), link)
    assert len(set(lines)) > 50
    with ExitStack() as stack:
        receiver = Receiver(link, [], stack)
        for n, moment in enumerate(moments(lines)):
            if not killed_at(moment, Loader(tools).load(link.index)):
                assert n > 50
                unload(Loader(tools), link)
                break
            # Half loaded or not, every packet finds its way.
            send(link, PORTS[:1], f"while half {n}")
            receiver.wait_for(n + 1)
            loader = Loader(tools)
            if n % 2:
                load(loader, link).close()
                assert_whole(loader, link)
            unload(loader, link)
            assert_nothing_is_left(link)


@pytest.mark.slow
def test_unload_killed_at_any_line_is_finished_by_the_next(loader: Loader, link: Veth) -> None:
    load(loader, link).close()
    lines = run_traced(loader.unload(link.index))
    for n, moment in enumerate(moments(lines)):
        load(loader, link).close()
        if not killed_at(moment, loader.unload(link.index)):
            assert n > 10
            break
        if n % 2:
            load(loader, link).close()
            assert_whole(loader, link)
        unload(loader, link)
        assert_nothing_is_left(link)


@pytest.mark.slow
def test_next_load_waits_for_the_command_of_a_killed_one(link: Veth, tmp_path: Path) -> None:
    """In the middle of xdp-loader, mostly, which goes on without us."""
    tools = Tools(tmp_path, timeout=DEADLINE)
    for n in range(30):
        pid = os.fork()
        if pid == 0:
            try:
                asyncio.run(Loader(tools).load(link.index))
            finally:
                os._exit(0)
        time.sleep(0.01 * n)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        loader = Loader(tools)
        if n % 2:
            load(loader, link).close()
            assert_whole(loader, link)
        unload(loader, link)
        assert_nothing_is_left(link)
