# SPDX-License-Identifier: BSD-3-Clause
"""Nobody stops the daemon by not reading what it says, and nobody fills its log."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from lab.processes import BIN, DEADLINE, UNPRIVILEGED, as_user, daemon_settings, eventually, needs_root
from mtlshm.daemon.bounded_log import SELDOM, Bounded
from mtlshm.daemon.journal import JournalFormatter
from mtlshm.daemon.log_handler import LogHandler
from mtlshm.manager_client import Manager

Start = Callable[..., "subprocess.Popen[bytes]"]

NO_MORE = 4096  # bytes that a pipe takes; so it is full soon


@pytest.fixture
def start(segment: str, manager_socket: Path, tmp_path: Path) -> Iterator[Start]:
    """Starts a daemon whose standard error is a descriptor of ours."""
    settings = daemon_settings(segment, manager_socket, tmp_path / "state")
    with ExitStack() as stack:

        def run(stderr: int, command: list[str] | None = None) -> subprocess.Popen[bytes]:
            process = subprocess.Popen(
                command or [str(BIN / "mtlshmd")], stdin=subprocess.DEVNULL, stderr=stderr, env=os.environ | settings
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            eventually(lambda: serves(manager_socket))
            return process

        yield run


def serves(path: Path) -> bool:
    try:
        with Manager(path, timeout=DEADLINE) as manager:
            return manager.heartbeat(7) == 7
    except OSError:
        return False


def read_until(fd: int, text: bytes) -> bytes:
    read = b""
    while text not in read:
        piece = os.read(fd, 65536)
        assert piece, read
        read += piece
    return read


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, NO_MORE)
    yield reader, writer
    os.close(reader)
    os.close(writer)


def make_it_talk(process: subprocess.Popen[bytes], path: Path) -> None:
    """More than fits, a line for each signal; and all the while it answers."""
    for _ in range(250):
        process.send_signal(signal.SIGHUP)
        assert serves(path)


def test_a_pipe_that_nobody_reads_stops_nothing(start: Start, pipe: tuple[int, int], manager_socket: Path) -> None:
    reader, writer = pipe
    process = start(writer)
    make_it_talk(process, manager_socket)
    assert not fcntl.fcntl(writer, fcntl.F_GETFL) & os.O_NONBLOCK  # which others have as well
    read = read_until(reader, b"reloaded\n" * 1)
    while read.count(b"reloaded") < 250:  # all that waited comes out
        read += os.read(reader, 65536)
    process.terminate()
    read_until(reader, b"stopping")
    assert process.wait(DEADLINE) == 0


def test_blocked_log_does_not_keep_it_from_stopping(start: Start, pipe: tuple[int, int], manager_socket: Path) -> None:
    process = start(pipe[1])
    make_it_talk(process, manager_socket)
    process.terminate()
    assert process.wait(DEADLINE) == 0


def test_a_terminal_on_which_output_is_halted_stops_nothing(start: Start, manager_socket: Path) -> None:
    master, terminal = pty.openpty()
    try:
        process = start(terminal)
        termios.tcflow(terminal, termios.TCOOFF)
        make_it_talk(process, manager_socket)
        termios.tcflow(terminal, termios.TCOON)
        assert b"configuration reloaded" in read_until(master, b"reloaded")
        termios.tcflow(terminal, termios.TCOOFF)
        process.terminate()
        assert process.wait(DEADLINE) == 0
    finally:
        os.close(master)
        os.close(terminal)


def test_a_socket_that_nobody_reads_stops_nothing(start: Start, manager_socket: Path) -> None:
    """As journald's."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        process = start(theirs.fileno())
        make_it_talk(process, manager_socket)
        assert theirs.getblocking()
        process.terminate()
        assert process.wait(DEADLINE) == 0


@needs_root("a pipe of somebody else's")
def test_a_pipe_that_cannot_be_opened_again_stops_nothing(
    start: Start, pipe: tuple[int, int], segment: str, manager_socket: Path
) -> None:
    os.chown(manager_socket.parent, UNPRIVILEGED, UNPRIVILEGED)
    code = as_user(UNPRIVILEGED, UNPRIVILEGED, []) + "mtlshm.daemon.app.main()"
    process = start(pipe[1], [sys.executable, "-c", code])
    make_it_talk(process, manager_socket)
    process.terminate()
    assert process.wait(DEADLINE) == 0


def test_without_a_reader_it_goes_on(start: Start, manager_socket: Path) -> None:
    reader, writer = os.pipe()
    process = start(writer)
    os.close(reader)
    os.close(writer)
    make_it_talk(process, manager_socket)
    process.terminate()
    assert process.wait(DEADLINE) == 0


# --- the journal ----------------------------------------------------------------------------------------


def lines_for(stderr: socket.socket, reader: socket.socket, start: Start, stream: str, path: Path) -> list[str]:
    """What it says, with a $JOURNAL_STREAM, of a start, a reload and its end."""
    os.environ["JOURNAL_STREAM"] = stream
    try:
        process = start(stderr.fileno())
    finally:
        del os.environ["JOURNAL_STREAM"]
    process.send_signal(signal.SIGHUP)
    process.terminate()
    assert process.wait(DEADLINE) == 0
    stderr.close()
    return read_until(reader.fileno(), b"stopping; what living instances hold stays theirs\n").decode().splitlines()


def test_the_journal_gets_priorities_and_no_time(start: Start, manager_socket: Path) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        status = os.fstat(theirs.fileno())
        lines = lines_for(theirs, ours, start, f"{status.st_dev}:{status.st_ino}", manager_socket)
    assert any(line.startswith("<6>ready: ") for line in lines)
    assert all(re.match(r"<[346]>(?!\d{4}-)(?!INFO|WARNING|ERROR)", line) for line in lines), lines


def test_others_get_time_and_level_also_below_a_journal(start: Start, manager_socket: Path) -> None:
    """The variable is inherited by all that a service or a login starts."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        lines = lines_for(theirs, ours, start, "8:12345", manager_socket)
    assert all(re.match(r"\d{4}-\d\d-\d\d \S+ (INFO|WARNING|ERROR) ", line) for line in lines), lines


def test_each_line_of_a_message_has_its_priority() -> None:
    record = logging.LogRecord("mtlshmd", logging.ERROR, __file__, 1, "one\n%s", ("two",), None)
    assert JournalFormatter().format(record) == "<3>one\n<3>two"


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    """One of the test's own."""
    made = logging.Logger("test", logging.DEBUG)
    yield made
    for handler in made.handlers:
        handler.close()


def overfill(logger: logging.Logger) -> None:
    for number in range(3000):
        logger.info("line %d of those of which some are dropped", number)


def check_gap(text: str) -> None:
    """Each line is there whole, but for those in one gap, whose number is said there."""
    lines = text.splitlines()
    (gap,) = [number for number, line in enumerate(lines) if "dropped here" in line]
    assert [line.split()[1] for line in lines[:gap]] == [str(number) for number in range(gap)]
    dropped = int(lines[gap].split()[4])
    assert 0 < dropped < 3000
    assert gap + dropped == 3000


def test_dropped_lines_are_counted_in_the_next_line(logger: logging.Logger, pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    logger.addHandler(LogHandler(writer))
    overfill(logger)
    read = b""
    os.set_blocking(reader, False)
    while b"after" not in read:
        with suppress(BlockingIOError):
            read += os.read(reader, 65536)
        logger.handlers[0].flush()
        if b"dropped here" in read:
            logger.info("after")
    check_gap(read.decode())


def test_it_is_said_when_the_reader_comes_back_without_another_line(
    logger: logging.Logger, pipe: tuple[int, int]
) -> None:
    reader, writer = pipe

    async def run() -> str:
        logger.addHandler(LogHandler(writer))
        overfill(logger)
        return (await asyncio.to_thread(read_until, reader, b"dropped here)\n")).decode()

    check_gap(asyncio.run(run()))


# --- who fills it ---------------------------------------------------------------------------------------


def test_repeated_message_is_logged_once_a_minute(logger: logging.Logger) -> None:
    now = 0.0
    out: list[tuple[float, str]] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            out.append((now, record.getMessage()))

    handler = Keep()
    handler.addFilter(Bounded(lambda: now))
    logger.addHandler(handler)

    def flood(minutes: int) -> None:
        nonlocal now
        for _ in range(minutes * 600):
            now += 0.1
            logger.warning("again")

    flood(4)
    assert len([1 for then, _ in out if then < 60]) == 30
    assert 2 <= len([1 for then, _ in out if then > 60]) <= 4
    assert "left out" in out[-1][1]
    now += 1000
    flood(1)  # it was quiet in between, or nearly so
    now += 1000
    out.clear()
    for _ in range(5):
        now += 61
        logger.warning("seldom", extra=SELDOM)
        logger.warning("seldom", extra=SELDOM)
    assert len(out) == 10
