# SPDX-License-Identifier: BSD-3-Clause
"""The Kubernetes API: one request, one connection, one answer in JSON.

A driver asks rarely, so no connection is kept but that of a watch. The token is read for each
request: kubelet replaces the file long before the old token ends.

The answer comes from another machine, over a network. It has a deadline and a limit, and is no answer before it is
whole.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import h11

from mtlshm.errors import about
from mtlshm.snapshot import printable

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_DEADLINE = 15.0  # seconds; kubelet gives us 45 for all
_MOST = 4 << 20  # bytes; etcd keeps no object of more than 1.5 MiB
_AT_ONCE = 8  # requests
_READ = 65536
_KEEPALIVE = {socket.TCP_KEEPIDLE: 60, socket.TCP_KEEPINTVL: 15, socket.TCP_KEEPCNT: 4}
_LONGEST_WORDS = 300  # characters of what the server says of an error


class ApiError(Exception):
    """The API server did not do it. The text says why; `status` is that of HTTP, 0 if there was no answer."""

    def __init__(self, text: str, status: int = 0) -> None:
        super().__init__(text)
        self.status = status


class _Place(NamedTuple):
    tls: bool
    host: str
    port: int


class Api:
    """That of one server, as one account. ValueError if `url` names none."""

    def __init__(self, url: str, account: Path = ACCOUNT) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url!r} is not such as https://10.0.0.1:6443")
        tls = parts.scheme == "https"
        self._place = _Place(tls, parts.hostname, parts.port or (443 if tls else 80))
        self._url, self._account = url, account
        self._room = asyncio.Semaphore(_AT_ONCE)

    async def get(self, path: str) -> dict[str, Any]:
        """The object at a path. ApiError if that cannot be had."""
        return await self.ask("GET", path)

    async def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """What the server answers. ApiError if it does not do what it is asked to."""
        with self._failures():
            async with self._room, asyncio.timeout(_DEADLINE), self._answered(method, path, body) as (status, parts):
                text = bytearray()
                async for part in parts:
                    text += part
                    if len(text) > _MOST:
                        raise EOFError(f"more than {_MOST >> 20} MiB")
        return self._object(method, path, status, bytes(text))

    async def watch(self, path: str) -> AsyncGenerator[dict[str, Any], None]:
        """Events, as they come, until the server ends it. ApiError if that fails."""
        with self._failures():
            async with self._answered("GET", path, None, _DEADLINE) as (status, parts):
                text = bytearray()
                async for part in parts:
                    text += part
                    while status == HTTPStatus.OK and (end := text.find(b"\n")) >= 0:
                        yield self._object("GET", path, status, bytes(text[:end]))
                        del text[: end + 1]
                    if len(text) > _MOST:
                        raise EOFError(f"more than {_MOST >> 20} MiB")
        if status != HTTPStatus.OK:
            self._object("GET", path, status, bytes(text))

    @contextmanager
    def _failures(self) -> Iterator[None]:
        """What goes wrong on the way, as ApiError."""
        try:
            yield
        except TimeoutError:
            raise ApiError(f"API server {self._url}: no answer in {_DEADLINE:.0f} seconds") from None
        except (h11.RemoteProtocolError, EOFError) as error:
            raise ApiError(f"API server {self._url}: half an answer, or none in HTTP ({error})") from None
        except OSError as error:  # of TLS, too
            # asyncio puts the address, which is in the URL, in place of the system's text.
            why = os.strerror(error.errno) if isinstance(error, ConnectionError) and error.errno else about(error)
            raise ApiError(f"API server {self._url}: {why}") from None

    @asynccontextmanager
    async def _answered(
        self, method: str, path: str, body: Mapping[str, Any] | None, deadline: float | None = None
    ) -> AsyncIterator[tuple[int, AsyncIterator[bytes]]]:
        """The answer's status and its parts. `deadline` is for the status only."""
        tls, host, port = self._place
        context = ssl.create_default_context(cafile=self._account / "ca.crt") if tls else None
        async with asyncio.timeout(deadline):
            reader, writer = await asyncio.open_connection(host, port, ssl=context)
        try:
            # A watch says nothing for hours. The kernel finds out whether the server is still there.
            connected: socket.socket = writer.get_extra_info("socket")
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in _KEEPALIVE.items():
                connected.setsockopt(socket.IPPROTO_TCP, option, value)
            connection = h11.Connection(h11.CLIENT)
            async with asyncio.timeout(deadline):
                writer.write(self._request(connection, method, path, body))
                await writer.drain()
                response = await _next(connection, reader)
            if not isinstance(response, h11.Response):
                raise EOFError("it closed the connection")
            yield response.status_code, _parts(connection, reader)
        finally:
            writer.transport.abort()  # nothing that anybody waits for is left to be sent

    def _request(self, connection: h11.Connection, method: str, path: str, body: Mapping[str, Any] | None) -> bytes:
        _, host, port = self._place
        headers = [
            ("Host", f"[{host}]:{port}" if ":" in host else f"{host}:{port}"),
            ("Accept", "application/json"),
            ("Connection", "close"),
        ]
        if self._place.tls:  # never in plain sight
            headers.append(("Authorization", f"Bearer {(self._account / 'token').read_text().strip()}"))
        data = b"" if body is None else json.dumps(body).encode()
        if body is not None:
            headers += [("Content-Type", "application/json"), ("Content-Length", str(len(data)))]
        events: list[h11.Event] = [h11.Request(method=method, target=path, headers=headers)]
        events += [h11.Data(data=data)] if data else []
        return b"".join(connection.send(event) or b"" for event in [*events, h11.EndOfMessage()])

    def _object(self, method: str, path: str, status: int, text: bytes) -> dict[str, Any]:
        try:
            answer = json.loads(text)
        except (ValueError, RecursionError):
            answer = None
        if status not in (HTTPStatus.OK, HTTPStatus.CREATED):
            raise ApiError(self._words(method, path, status, answer), status)
        if not isinstance(answer, dict):
            raise ApiError(f"API server {self._url}: the answer to {method} {path} is no object in JSON")
        return answer

    def _words(self, method: str, path: str, status: int, answer: Any) -> str:
        said = answer.get("message") if isinstance(answer, dict) else None
        said = f": {printable(str(said)[:_LONGEST_WORDS])}" if said else ""
        text = f"API server {self._url}: {method} {path}: {status}{said}"
        match status:
            case HTTPStatus.UNAUTHORIZED:
                return f"{text}; it does not take the token in {self._account}"
            case HTTPStatus.FORBIDDEN:
                return f"{text}; apply the RBAC of contrib/kubernetes"
        return text


async def _next(connection: h11.Connection, reader: asyncio.StreamReader) -> Any:
    while (event := connection.next_event()) is h11.NEED_DATA or isinstance(event, h11.InformationalResponse):
        if event is h11.NEED_DATA:
            connection.receive_data(await reader.read(_READ))
    return event


async def _parts(connection: h11.Connection, reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while True:
        match await _next(connection, reader):
            case h11.Data(data=data):
                yield bytes(data)
            case h11.EndOfMessage():
                return
            case _:
                raise EOFError("it closed the connection")
