# SPDX-License-Identifier: BSD-3-Clause
"""fleet, from a STAND-IN for Prometheus: it answers the two queries, and fails as a real one does."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import pytest


class Prometheus(ThreadingHTTPServer):
    daemon_threads = True
    now: list = []  # noqa: RUF012 - replaced, never changed
    known: list = []  # noqa: RUF012
    body: bytes | None = None
    status = 200


class Handler(BaseHTTPRequestHandler):
    server: Prometheus

    def do_GET(self):
        asked = urlsplit(self.path)
        assert asked.path == "/api/v1/query"
        (query,) = parse_qs(asked.query)["query"]
        result = self.server.now if "mtlshm_lcores" in query else self.server.known
        answer = {"status": "success", "data": {"resultType": "vector", "result": result}}
        body = json.dumps(answer).encode() if self.server.body is None else self.server.body
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format, *args):
        pass


@pytest.fixture
def prometheus() -> Iterator[Prometheus]:
    server = Prometheus(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def fleet(ctl, prometheus):
    url = f"http://127.0.0.1:{prometheus.server_address[1]}"
    return lambda *words: ctl("fleet", "--prometheus", url, *words)


def lcores(host, **states):
    return [{"metric": {"instance": host, "state": state}, "value": [0, str(n)]} for state, n in states.items()]


def known(*hosts):
    return [{"metric": {"instance": host}, "value": [0, "1"]} for host in hosts]


def test_a_silent_host_is_named_and_never_shown_as_free(fleet, prometheus):
    prometheus.known = known("node-1", "node-2", "node-3")
    prometheus.now = lcores("node-1", free=6, held=2, dead=0) + lcores("node-3", free=0, held=4, reserved=4)
    summary, _, title, *rows = fleet().stdout.splitlines()
    assert summary == "2 hosts answer: 6 free, 6 held, 4 reserved, 0 lent, 0 dead; 1 silent: node-2"
    assert title.split() == ["host", "free", "held", "reserved", "lent", "dead"]
    assert [row.split() for row in rows] == [
        ["node-1", "6", "2", "0", "0", "0"],
        ["node-2", "?", "?", "?", "?", "?", "silent"],
        ["node-3", "0", "4", "4", "0", "0"],
    ]
    hosts = {each["host"]: each for each in json.loads(fleet("--json").stdout)["hosts"]}
    assert hosts["node-1"]["lcores"] == {"free": 6, "held": 2, "reserved": 0, "lent": 0, "dead": 0}
    assert hosts["node-2"] == {"host": "node-2", "answers": False, "lcores": None}


def test_no_host_is_said(fleet):
    done = fleet()
    assert (done.returncode, done.stdout.startswith("0 hosts answer: 0 free")) == (0, True)
    assert "have Prometheus scrape it" in done.stdout


def test_a_thousand_hosts_and_names_that_are_no_text(fleet, prometheus):
    names = [f"node-{number}" for number in range(999)] + ["\x1b[31mred\n"]
    prometheus.known = known(*names)
    prometheus.now = [each for name in names for each in lcores(name, free=1, held=1)]
    done = fleet()
    assert done.stdout.startswith("1000 hosts answer: 1000 free, 1000 held")
    assert "\x1b" not in done.stdout


@pytest.mark.parametrize(
    ("status", "body", "why"),
    [
        (503, b"", "503 Service Unavailable"),
        (200, b"<html>", "its answer is no vector"),
        (200, b'{"status": "success", "data": {"resultType": "matrix", "result": []}}', "its answer is no vector"),
        (
            200,
            b'{"status":"success","data":{"resultType":"vector","result":[{"metric":{},"value":[0,"x"]}]}}',
            "no vec",
        ),
        (
            200,
            b'{"status":"success","data":{"resultType":"vector","result":[{"metric":{},"value":[0,"Inf"]}]}}',
            "no v",
        ),
    ],
)
def test_what_is_no_prometheus_is_one_line(fleet, prometheus, status, body, why):
    prometheus.status, prometheus.body = status, body
    done = fleet()
    assert done.returncode == 1
    assert why in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "nonsense", "http://[", "ftp://127.0.0.1:1/"])
def test_no_prometheus_is_one_line(ctl, url):
    done = ctl("fleet", "--prometheus", url)
    assert done.returncode == 1
    assert done.stderr.startswith(f"mtlshm-ctl: Prometheus at {url}: ")
    assert done.stderr.count("\n") == 1
