# SPDX-License-Identifier: BSD-3-Clause
"""A STAND-IN for the Kubernetes API server: a few objects over HTTP, and the ways in which a real one fails.

It knows no schema and no rules; what it is told to keep, it hands out.
"""

from __future__ import annotations

import json
import ssl
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from mtlshm.dra.naming import DRIVER

CLAIMS = "/apis/resource.k8s.io/v1/namespaces/{namespace}/resourceclaims/{name}"
Fault = Callable[["Handler"], None]


class ApiServer(ThreadingHTTPServer):
    """Listens at a port of its own."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.objects: dict[str, Any] = {}  # by path
        self.faults: deque[Fault] = deque()  # of the next requests
        self.token: str | None = None  # None: everybody may do everything
        self.ended = threading.Event()  # who hangs, hangs until then
        self.scheme = "http"

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.server_address[1]}"

    def speak_tls(self, certificate: Path, key: Path) -> None:
        """From now on."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
        self.scheme = "https"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that do not trust us or are killed are what tests are about."""


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    server: ApiServer

    def do_GET(self) -> None:
        if self.server.faults:
            self.server.faults.popleft()(self)
        elif self.server.token is not None and self.headers["Authorization"] != f"Bearer {self.server.token}":
            self.fail(401, "Unauthorized")
        elif self.path not in self.server.objects:
            self.fail(404, f'"{self.path}" not found')
        else:
            self.reply(200, self.server.objects[self.path])

    def reply(self, status: int, answer: Any) -> None:
        """In JSON."""
        self.send(status, json.dumps(answer).encode())

    def fail(self, status: int, message: str) -> None:
        self.reply(status, {"kind": "Status", "status": "Failure", "code": status, "message": message})

    def send(self, status: int, body: bytes, size: int | None = None) -> None:
        """`size` is what the header says, if that is not true."""
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if size is None else size))
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""


def failing(status: int, message: str = "it is so") -> Fault:
    return lambda handler: handler.fail(status, message)


def half(handler: Handler) -> None:
    """Of what was asked for."""
    body = json.dumps(handler.server.objects.get(handler.path, {})).encode()
    handler.send(200, body[: len(body) // 2], len(body))


def no_http(handler: Handler) -> None:
    handler.wfile.write(b"\0\xff this is no HTTP\r\n\r\n")
    handler.close_connection = True


def no_json(handler: Handler) -> None:
    handler.send(200, b"[" * 100000)


def hang(handler: Handler) -> None:
    handler.server.ended.wait()
    handler.close_connection = True


@contextmanager
def api_server() -> Iterator[ApiServer]:
    """One that serves."""
    server = ApiServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server
    finally:
        server.ended.set()
        server.shutdown()
        thread.join()
        server.server_close()


def claim(
    uid: str, node: str, *shares: tuple[str, object], namespace: str = "studio", name: str = "", **allocation: Any
) -> tuple[str, dict[str, Any]]:
    """Path and object of a ResourceClaim that is allocated: `shares` are devices with numbers of lcores."""
    name = name or f"claim-of-{uid}"
    results = [
        {
            "request": f"request-{number}",
            "driver": DRIVER,
            "pool": node,
            "device": device,
            "shareID": f"share-{number}",
            "consumedCapacity": {"lcores": str(count)},
        }
        for number, (device, count) in enumerate(shares)
    ]
    made = {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceClaim",
        "metadata": {"name": name, "namespace": namespace, "uid": uid},
        "status": {"allocation": {"devices": {"results": results, **allocation}}},
    }
    return CLAIMS.format(namespace=namespace, name=name), made
