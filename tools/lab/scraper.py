# SPDX-License-Identifier: BSD-3-Clause
"""A scraper of metrics, with the parsers of Prometheus's own library."""

from __future__ import annotations

import socket
from pathlib import Path

from prometheus_client import parser
from prometheus_client.openmetrics import parser as openmetrics_parser

from lab.processes import DEADLINE

OPENMETRICS = "application/openmetrics-text"
GET = b"GET /metrics HTTP/1.1\r\nHost: here\r\nAccept: %s\r\n\r\n"

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def connect(where: Path | int) -> socket.socket:
    """To a socket's file, or a port."""
    scraper = socket.socket(socket.AF_UNIX if isinstance(where, Path) else socket.AF_INET)
    # First: with a time-out, connect() to a socket's file does not wait for room in the queue.
    scraper.connect(str(where) if isinstance(where, Path) else ("127.0.0.1", where))
    scraper.settimeout(DEADLINE)
    return scraper


def ask(where: Path | int, request: bytes) -> tuple[str, str]:
    """The head and the body of what comes back."""
    with connect(where) as scraper:
        scraper.sendall(request)
        answer = b""
        while piece := scraper.recv(65536):
            answer += piece
    head, _, body = answer.decode().partition("\r\n\r\n")
    return head, body


def scrape(where: Path | int, accept: str = OPENMETRICS) -> str:
    """What is served."""
    head, body = ask(where, GET % accept.encode())
    assert head.startswith("HTTP/1.1 200 OK\r\n"), head
    return body


def samples(text: str) -> Samples:
    """By name and labels. Raises ValueError if it is in no format."""
    parse = openmetrics_parser if text.endswith("# EOF\n") else parser
    found = [sample for family in parse.text_string_to_metric_families(text) for sample in family.samples]
    values = {(sample.name, frozenset(sample.labels.items())): float(sample.value) for sample in found}
    assert len(values) == len(found), "a series is there twice"
    return values


def value(found: Samples, name: str, **labels: str) -> float | None:
    """Of one series."""
    return found.get((name, frozenset(labels.items())))
