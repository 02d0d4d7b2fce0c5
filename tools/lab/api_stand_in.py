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
from urllib.parse import parse_qs

from mtlshm.dra.naming import DRIVER

SLICES = "/apis/resource.k8s.io/v1/resourceslices"
NODES = "/api/v1/nodes/"
CLAIMS = "/apis/resource.k8s.io/v1/namespaces/{namespace}/resourceclaims/{name}"
Fault = Callable[["Handler"], None]


class ApiServer(ThreadingHTTPServer):
    """Listens at a port of its own."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.objects: dict[str, Any] = {}  # by path
        self.faults: deque[Fault] = deque()  # of the next requests for claims
        self.slice_faults: deque[Fault] = deque()  # of the next for all else
        self.dropped: set[str] = set()  # fields of devices that it does not know
        self.slices: dict[str, Any] = {}  # by name
        self.writes: list[str] = []  # methods, of slices
        self.token: str | None = None  # None: everybody may do everything
        self.ended = threading.Event()  # who hangs, hangs until then
        self.scheme = "http"
        self._changed = threading.Condition()
        self._events: list[dict[str, Any]] = []

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

    def delete_slices(self) -> None:
        """As kubelet does when it starts."""
        for name in list(self.slices):
            self.change("DELETED", self.slices[name])

    def change(self, kind: str, made: dict[str, Any]) -> dict[str, Any]:
        """Of a slice: ADDED, MODIFIED or DELETED. Tells all who watch."""
        with self._changed:
            made = json.loads(json.dumps(made))
            name = made["metadata"]["name"]
            for device in made["spec"]["devices"]:
                for field in self.dropped:
                    device.pop(field, None)
            made["metadata"]["resourceVersion"] = str(len(self._events) + 1)
            if kind == "DELETED":
                self.slices.pop(name)
            else:
                self.slices[name] = made
            self._events.append({"type": kind, "object": made})
            self._changed.notify_all()
            return made

    def list_slices(self) -> dict[str, Any]:
        with self._changed:
            return {"metadata": {"resourceVersion": str(len(self._events))}, "items": list(self.slices.values())}

    def event_after(self, version: int) -> dict[str, Any] | None:
        """Waits for it; None if we end first."""
        with self._changed:
            while not self.ended.is_set():
                if version < len(self._events):
                    return self._events[version]
                self._changed.wait(0.1)
        return None


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    server: ApiServer

    def do_GET(self) -> None:
        self._serve("GET")

    def do_POST(self) -> None:
        self._serve("POST")

    def do_PUT(self) -> None:
        self._serve("PUT")

    def do_DELETE(self) -> None:
        self._serve("DELETE")

    def _serve(self, method: str) -> None:
        path, _, query = self.path.partition("?")
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"] or 0)) or b"null")
        faults = self.server.faults if "/resourceclaims/" in path else self.server.slice_faults
        if faults:
            faults.popleft()(self)
        elif self.server.token is not None and self.headers["Authorization"] != f"Bearer {self.server.token}":
            self.fail(401, "Unauthorized")
        elif path.startswith(SLICES):
            self._serve_slices(method, path.removeprefix(SLICES).strip("/"), query, body)
        elif path.startswith(NODES):
            self.reply(200, {"metadata": {"name": path.removeprefix(NODES), "uid": "uid-of-the-node"}})
        elif path not in self.server.objects:
            self.fail(404, f'"{path}" not found')
        else:
            self.reply(200, self.server.objects[path])

    def _serve_slices(self, method: str, name: str, query: str, body: Any) -> None:
        if method == "GET":
            asked = parse_qs(query)
            assert asked["fieldSelector"] == [f"spec.driver={DRIVER},spec.nodeName=node-1"], asked
            if "watch" in asked:
                self._watch(int(asked["resourceVersion"][0]))
            else:
                self.reply(200, self.server.list_slices())
            return
        self.server.writes.append(method)
        there = self.server.slices.get(name or body["metadata"]["name"])
        if method == "POST" and there is None:
            self.reply(201, self.server.change("ADDED", body))
        elif there is None or method == "POST":
            self.fail(409 if there else 404, name)
        elif method == "DELETE":
            self.reply(200, self.server.change("DELETED", there))
        elif body["metadata"]["resourceVersion"] != there["metadata"]["resourceVersion"]:
            self.fail(409, "the object has been modified")
        else:
            self.reply(200, self.server.change("MODIFIED", body))

    def _watch(self, version: int) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        while event := self.server.event_after(version):
            version += 1
            line = json.dumps(event).encode() + b"\n"
            for part in (line[:10], line[10:]):  # it says nothing about where parts end
                self.wfile.write(b"%x\r\n%b\r\n" % (len(part), part))
        self.close_connection = True

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
