# SPDX-License-Identifier: BSD-3-Clause
"""Hands out metrics: to whoever asks at a socket by HTTP, or into a file for node_exporter.

A SLOW SCRAPER STOPS NOBODY. A few are served at a time; others wait in the kernel's short queue, and are refused beyond
it. Nothing blocks: what a scraper does not send or read within seconds ends its connection. However often anybody asks,
everything is measured once a second at most.

With a socket there is no timer while nobody asks. A file is written every 15 seconds, whole or not at all.

HTTP by hand: one request a connection, of which only the first line and Accept count. A server package would bring
threads, or more code than all of the daemon.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from mtlshm.errors import reason
from mtlshm.net.trusted import open_directory

log = logging.getLogger(__name__)

_AT_ONCE = 4  # scrapers
_PATIENCE = 5.0  # seconds for one
_REQUEST = 8192  # bytes
_FRESH = 1.0  # seconds
_WRITE_EVERY = 15.0  # seconds
_AGAIN = 1.0  # seconds, if no descriptor is left
_PATH = "/metrics"


class Outlet(NamedTuple):
    """Where to hand them out."""

    kind: Literal["unix", "tcp", "file"]
    place: str  # a path, or a port of the loopback interface

    def __str__(self) -> str:
        return f"127.0.0.1:{self.place}" if self.kind == "tcp" else self.place


class Source(Protocol):
    """The source of the metrics; see metrics.py. Both methods raise OSError if they have none now."""

    def answer(self, accepted: str) -> tuple[bytes, str]:
        """For an Accept header: the text, and the name of its format."""

    def text(self) -> bytes:
        """In the format of files."""


class Server:
    """Answers at a socket from start() to close(), in the event loop."""

    def __init__(self, outlet: Outlet, source: Source, mode: int, gid: int | None) -> None:
        self._outlet, self._source, self._mode, self._gid = outlet, source, mode, gid
        self._loop = asyncio.get_running_loop()
        self._listener: socket.socket | None = None
        self._inode = 0  # of the socket's file
        self._served: set[asyncio.Task[None]] = set()
        self._again: asyncio.TimerHandle | None = None
        self._last: dict[str, tuple[float, bytes, str]] = {}  # when, and what, by format

    def start(self) -> None:
        """OSError if it cannot listen there."""
        self._listener = self._open()
        self._listener.setblocking(False)
        self._hear()

    def close(self) -> None:
        """Stop, and remove the socket's file if it is still ours."""
        if self._again:
            self._again.cancel()
        for task in self._served:
            task.cancel()
        if self._listener:
            self._loop.remove_reader(self._listener)
            self._listener.close()
            self._listener = None
            if self._inode:
                with suppress(OSError):
                    if os.lstat(self._outlet.place).st_ino == self._inode:
                        os.unlink(self._outlet.place)

    def _open(self) -> socket.socket:
        if self._outlet.kind == "tcp":
            listener = socket.socket(socket.AF_INET)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            where: tuple[str, int] | str = ("127.0.0.1", int(self._outlet.place))
        else:
            # Where others could put something else in its place, its mode would become that of what they like.
            os.close(open_directory(Path(self._outlet.place).parent))
            _remove_dead(self._outlet.place)
            listener, where = socket.socket(socket.AF_UNIX), self._outlet.place
        try:
            listener.bind(where)
            if self._outlet.kind == "unix":  # nobody can connect before listen()
                self._inode = os.lstat(self._outlet.place).st_ino
                if self._gid is not None:
                    os.chown(self._outlet.place, -1, self._gid, follow_symlinks=False)
                os.chmod(self._outlet.place, self._mode)
            listener.listen(_AT_ONCE)
        except BaseException:
            listener.close()
            raise
        return listener

    def _hear(self) -> None:
        if self._listener and len(self._served) < _AT_ONCE:
            self._loop.add_reader(self._listener, self._accept)

    def _accept(self) -> None:
        """One a turn of the event loop."""
        assert self._listener
        try:
            scraper, _ = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError as error:  # no descriptor is left
            log.error("metrics: %s", reason(error))
            self._loop.remove_reader(self._listener)
            self._again = self._loop.call_later(_AGAIN, self._hear)
            return
        scraper.setblocking(False)
        task = self._loop.create_task(self._serve(scraper))
        self._served.add(task)
        task.add_done_callback(self._done)
        if len(self._served) == _AT_ONCE:
            self._loop.remove_reader(self._listener)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._served.discard(task)
        if not task.cancelled() and (error := task.exception()):
            log.error("metrics: %s", error, exc_info=error)
        self._hear()

    async def _serve(self, scraper: socket.socket) -> None:
        with scraper, suppress(OSError, TimeoutError):  # it is gone, or does not read
            async with asyncio.timeout(_PATIENCE):
                request = b""
                while b"\r\n\r\n" not in request and len(request) < _REQUEST:
                    piece = await self._loop.sock_recv(scraper, _REQUEST - len(request))
                    if not piece:
                        return
                    request += piece
                await self._loop.sock_sendall(scraper, self._answer(request))
                scraper.shutdown(socket.SHUT_WR)

    def _answer(self, request: bytes) -> bytes:
        line, _, rest = request.decode("latin-1").partition("\r\n")
        words = line.split(" ")
        if len(words) != 3 or not words[2].startswith("HTTP/") or "\r\n\r\n" not in f"\r\n{rest}":
            return _response("400 Bad Request", b"no HTTP request\n")
        if words[0] not in ("GET", "HEAD"):
            return _response("405 Method Not Allowed", b"only GET and HEAD\n", headers="Allow: GET, HEAD\r\n")
        if words[1].partition("?")[0] != _PATH:
            return _response("404 Not Found", f"only {_PATH} is here\n".encode())
        fields = (header.partition(":") for header in rest.split("\r\n"))
        accepted = next((value.strip() for name, _, value in fields if name.strip().lower() == "accept"), "")
        try:
            body, name = self._fresh("application/openmetrics-text" if "openmetrics-text" in accepted else "")
        except OSError as error:
            log.error("metrics cannot be told: %s", reason(error))
            return _response("503 Service Unavailable", f"{reason(error)}\n".encode())
        return _response("200 OK", body, name, whole=words[0] == "GET")

    def _fresh(self, accepted: str) -> tuple[bytes, str]:
        when, body, name = self._last.get(accepted, (0.0, b"", ""))
        if not name or time.monotonic() - when > _FRESH:
            body, name = self._source.answer(accepted)
            self._last[accepted] = time.monotonic(), body, name
        return body, name


def _response(
    status: str, body: bytes, name: str = "text/plain; charset=utf-8", *, headers: str = "", whole: bool = True
) -> bytes:
    headers = f"Content-Type: {name}\r\nContent-Length: {len(body)}\r\n{headers}"
    head = f"HTTP/1.1 {status}\r\n{headers}Connection: close\r\n\r\n"
    return head.encode() + (body if whole else b"")


def _remove_dead(path: str) -> None:
    """A socket that nobody listens at any more. OSError if somebody does, or if it is something else."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise OSError(errno.EEXIST, "something is there that is no socket; name another path, or remove it")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)  # its queue may be full
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except BlockingIOError:
            pass
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


class File:
    """Writes a file now and again from start() to close(), in the event loop."""

    def __init__(self, outlet: Outlet, source: Source) -> None:
        self._path, self._source = Path(outlet.place), source
        self._new = self._path.with_name(f".{self._path.name}.new")  # which node_exporter does not read
        self._loop = asyncio.get_running_loop()
        self._next: asyncio.TimerHandle | None = None
        self._said = ""  # of what failed last
        self._written = False

    def start(self) -> None:
        """Starts writing the file, and tries again after a failure."""
        self._go_on()

    def close(self) -> None:
        """Stop, and remove what would be told for ever."""
        if self._next:
            self._next.cancel()
        if self._written:
            with suppress(OSError):
                self._path.unlink()

    def _go_on(self) -> None:
        self._next = self._loop.call_later(_WRITE_EVERY, self._go_on)
        try:
            self._write(self._source.text())
        except OSError as error:
            if (text := reason(error)) != self._said:
                log.error("metrics are not written to %s: %s; what is there stays as it was", self._path, text)
            self._said = text
        else:
            if self._said:
                log.info("metrics are written to %s again", self._path)
            self._said, self._written = "", True

    def _write(self, text: bytes) -> None:
        with suppress(FileNotFoundError):
            self._new.unlink()  # of one that was killed
        # The directory may be node_exporter's own, who could have put a link there.
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(self._new, flags, 0o644)
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(text)
            self._new.replace(self._path)
        except OSError:
            with suppress(OSError):
                self._new.unlink()
            raise


def export(outlet: Outlet, source: Callable[[], Source], mode: int, gid: int | None) -> Server | File | None:
    """Begin to hand them out. None if that is not possible, which the log says: nobody else shall suffer from it."""
    try:
        made = File(outlet, source()) if outlet.kind == "file" else Server(outlet, source(), mode, gid)
        made.start()
    except ImportError as error:
        log.error("metrics are not served at %s: %s; install the package prometheus_client", outlet, error)
        return None
    except OSError as error:
        ask = f"ss -ltnp sport = :{outlet.place}" if outlet.kind == "tcp" else f"fuser -v {outlet.place}"
        who = f"; see who is there: {ask}" if error.errno == errno.EADDRINUSE else ""
        log.error("metrics are not served at %s: %s%s", outlet, reason(error), who)
        return None
    log.info("serving metrics at %s", outlet)
    return made
