# SPDX-License-Identifier: BSD-3-Clause
"""The Kubernetes API: one request, one connection, one answer in JSON.

A driver asks rarely, so no connection is kept, and nothing has to notice that one has died. The token is read for each
request: kubelet replaces the file long before the old token ends.

The answer comes from another machine, over a network. It has a deadline and a limit, and is no answer before it is
whole.
"""

from __future__ import annotations

import asyncio
import json
import os
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
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
        return await self._ask("GET", path)

    async def _ask(self, method: str, path: str) -> dict[str, Any]:
        try:
            async with self._room, asyncio.timeout(_DEADLINE), self._connected() as (reader, writer):
                status, body = await self._exchange(method, path, reader, writer)
        except TimeoutError:
            raise ApiError(f"API server {self._url}: no answer in {_DEADLINE:.0f} seconds") from None
        except (h11.RemoteProtocolError, EOFError) as error:
            raise ApiError(f"API server {self._url}: half an answer, or none in HTTP ({error})") from None
        except OSError as error:  # of TLS, too
            # asyncio puts the address, which is in the URL, in place of the system's text.
            why = os.strerror(error.errno) if isinstance(error, ConnectionError) and error.errno else about(error)
            raise ApiError(f"API server {self._url}: {why}") from None
        try:
            answer = json.loads(body)
        except (ValueError, RecursionError):
            answer = None
        if status != HTTPStatus.OK:
            raise ApiError(self._words(method, path, status, answer), status)
        if not isinstance(answer, dict):
            raise ApiError(f"API server {self._url}: the answer to {method} {path} is no object in JSON")
        return answer

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        tls, host, port = self._place
        context = ssl.create_default_context(cafile=self._account / "ca.crt") if tls else None
        reader, writer = await asyncio.open_connection(host, port, ssl=context)
        try:
            yield reader, writer
        finally:
            writer.transport.abort()  # nothing that anybody waits for is left to be sent

    async def _exchange(
        self, method: str, path: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> tuple[int, bytes]:
        _, host, port = self._place
        headers = [
            ("Host", f"[{host}]:{port}" if ":" in host else f"{host}:{port}"),
            ("Accept", "application/json"),
            ("Connection", "close"),
        ]
        if self._place.tls:  # never in plain sight
            headers.append(("Authorization", f"Bearer {(self._account / 'token').read_text().strip()}"))
        connection = h11.Connection(h11.CLIENT)
        writer.write(connection.send(h11.Request(method=method, target=path, headers=headers)) or b"")
        writer.write(connection.send(h11.EndOfMessage()) or b"")
        await writer.drain()
        status, body = 0, bytearray()
        while True:
            match connection.next_event():
                case h11.NEED_DATA:
                    connection.receive_data(await reader.read(_READ))
                case h11.Response(status_code=status):
                    pass
                case h11.Data(data=data):
                    body += data
                    if len(body) > _MOST:
                        raise EOFError(f"more than {_MOST >> 20} MiB")
                case h11.EndOfMessage():
                    return status, bytes(body)
                case h11.ConnectionClosed():
                    raise EOFError("it closed the connection")

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
