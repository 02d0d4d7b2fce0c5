# SPDX-License-Identifier: BSD-3-Clause
"""Metrics are handed out at a socket, at a port or in a file; and whatever a scraper does, all others are served."""

from __future__ import annotations

import os
import re
import signal
import socket
from contextlib import closing
from pathlib import Path

import pytest

from lab.processes import DEADLINE, UNPRIVILEGED, namespaces, needs_root
from lab.scraper import GET, ask, connect, samples, scrape, value
from mtlshm.manager_client import Manager

MANY = 20


@pytest.fixture
def place(manager_socket: Path) -> Path:
    return manager_socket.with_name("metrics.sock")


@pytest.fixture
def port() -> int:
    """One that nobody uses just now."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def serves_libmtl(path: Path) -> None:
    with Manager(path, timeout=DEADLINE) as client:
        client.register()
        client.get_lcore(0)
        client.put_lcore(0)


def test_at_a_socket_which_is_removed_at_the_end(daemon, place):
    server = daemon("--metrics", f"unix:{place}", "--socket-mode", "0600")
    assert samples(scrape(place))
    assert os.stat(place).st_mode & 0o777 == 0o600
    assert server.end(signal.SIGTERM) == 0
    assert not place.exists()


def test_at_a_port_of_this_host_only(daemon, port):
    daemon("--metrics", f"tcp:{port}")
    assert samples(scrape(port))
    with socket.socket() as elsewhere, pytest.raises(ConnectionRefusedError):
        elsewhere.connect(("127.0.0.2", port))  # as any other address of this host


def test_in_a_file_which_is_removed_at_the_end(daemon, tmp_path):
    file = tmp_path / "mtlshm.prom"
    server = daemon("--metrics", f"file:{file}")
    found = samples(file.read_text())
    assert value(found, "mtlshm_instances", kind="daemon", state="alive") == 1
    assert file.stat().st_mode & 0o777 == 0o644
    assert server.end(signal.SIGTERM) == 0
    assert not list(tmp_path.glob("*mtlshm.prom*"))


def test_from_the_settings_file(daemon, place, tmp_path):
    settings = tmp_path / "mtlshmd.toml"
    settings.write_text(f'metrics = "unix:{place}"\n')
    daemon(environment={"MTLSHMD_CONFIG": str(settings)})
    assert samples(scrape(place))


@pytest.mark.parametrize(
    "text", ["9464", "tcp:", "tcp:0", "tcp:65536", "tcp:x", "unix:here", "file:/x/y.txt", "http://x", "tcp:٣"]
)
def test_what_cannot_be_is_named(daemon, tmp_path, text):
    settings = tmp_path / "mtlshmd.toml"
    settings.write_text(f'metrics = "{text}"\n')
    for way in ({"arguments": ("--metrics", text)}, {"environment": {"MTLSHMD_CONFIG": str(settings)}}):
        server = daemon(*way.pop("arguments", ()), ready=False, **way)
        assert server.wait() == 2
        assert repr(text) in server.log()
    assert str(settings) in server.log()


# --- what fails, while the rest goes on ------------------------------------------------------------------


def test_a_port_in_use_is_said_and_all_others_are_served(daemon, manager_socket):
    with socket.create_server(("127.0.0.1", 0)) as other:
        number = other.getsockname()[1]
        server = daemon("--metrics", f"tcp:{number}")
        assert f"metrics are not served at 127.0.0.1:{number}: Address already in use" in server.log()
        assert f"ss -ltnp sport = :{number}" in server.log()
        serves_libmtl(manager_socket)


def test_a_socket_that_somebody_serves_is_left_to_it(daemon, place, manager_socket):
    with closing(socket.socket(socket.AF_UNIX)) as other:
        other.bind(str(place))
        other.listen()
        server = daemon("--metrics", f"unix:{place}")
        assert f"metrics are not served at {place}: Address already in use; see who is there: fuser" in server.log()
        serves_libmtl(manager_socket)
        assert server.end(signal.SIGTERM) == 0
        assert place.exists()


def test_a_socket_that_a_killed_daemon_left_is_replaced(daemon, place):
    daemon("--metrics", f"unix:{place}").kill()
    assert place.exists()
    daemon("--metrics", f"unix:{place}")
    assert samples(scrape(place))


def test_a_file_in_the_place_of_the_socket_is_left_alone(daemon, place, manager_socket):
    place.write_text("mine")
    server = daemon("--metrics", f"unix:{place}")
    assert "something is there that is no socket" in server.log()
    serves_libmtl(manager_socket)
    assert place.read_text() == "mine"


@needs_root("sockets in directories of others")
def test_in_a_directory_that_others_may_write_there_is_no_socket(daemon, place, manager_socket):
    """Or root would give away what they put in its place."""
    theirs = place.with_name("theirs")
    theirs.mkdir()
    os.chown(theirs, UNPRIVILEGED, 0)
    server = daemon("--metrics", f"unix:{theirs}/metrics.sock")
    assert f"metrics are not served at {theirs}/metrics.sock: {theirs} belongs to uid {UNPRIVILEGED}" in server.log()
    serves_libmtl(manager_socket)


def test_links_in_the_place_of_a_file_are_not_followed(daemon, tmp_path):
    (tmp_path / "precious").write_text("mine")
    for name in "mtlshm.prom", ".mtlshm.prom.new":
        (tmp_path / name).symlink_to(tmp_path / "precious")
    daemon("--metrics", f"file:{tmp_path}/mtlshm.prom")
    assert samples((tmp_path / "mtlshm.prom").read_text())
    assert (tmp_path / "precious").read_text() == "mine"


def test_a_full_disk_is_said_and_all_others_are_served(daemon, tmp_path, manager_socket):
    full = tmp_path / "full"
    full.mkdir()
    script = f'mount -t tmpfs -o size=4k tmpfs {full} && head -c 4096 /dev/zero > {full}/much && exec "$@"'
    prefix = (*namespaces("mount"), "sh", "-c", script, "sh")
    server = daemon("--metrics", f"file:{full}/mtlshm.prom", prefix=prefix)
    assert re.search(r"metrics are not written to .*/mtlshm.prom: No space left on device", server.log())
    serves_libmtl(manager_socket)
    there = Path(f"/proc/{server.pid}/root{full}")
    assert [file.name for file in there.iterdir()] == ["much"]


def test_a_missing_directory_is_said(daemon, tmp_path):
    server = daemon("--metrics", f"file:{tmp_path}/none/mtlshm.prom")
    assert "No such file or directory" in server.log()


def test_without_the_package_it_says_which(daemon, place, manager_socket, tmp_path):
    (tmp_path / "prometheus_client").mkdir()
    (tmp_path / "prometheus_client/__init__.py").write_text("raise ModuleNotFoundError('none here')\n")
    server = daemon("--metrics", f"unix:{place}", environment={"PYTHONPATH": str(tmp_path)})
    assert "none here; install the package prometheus_client" in server.log()
    serves_libmtl(manager_socket)


# --- scrapers --------------------------------------------------------------------------------------------


def test_those_who_say_nothing_stop_nobody(daemon, place, manager_socket):
    """Some are served and wait, some wait in the kernel's queue, and the others are told to come again."""
    daemon("--metrics", f"unix:{place}")
    silent: list[socket.socket] = []
    try:
        for _ in range(MANY):
            each = socket.socket(socket.AF_UNIX)
            each.setblocking(False)
            silent.append(each)
            try:
                each.connect(str(place))
            except BlockingIOError:  # the queue is full
                break
        else:
            pytest.fail("the daemon takes as many as come")
        serves_libmtl(manager_socket)
        assert samples(scrape(place))  # in its turn, when the first have been given up
    finally:
        for each in silent:
            each.close()


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"\r\n\r\n", "400"),
        (b"\0\xff" * 5000, "400"),
        (b"GET /metrics\r\n\r\n", "400"),
        (b"POST /metrics HTTP/1.1\r\n\r\n", "405"),
        (b"GET /../etc/passwd HTTP/1.1\r\n\r\n", "404"),
        (b"GET /metrics HTTP/1.1\r\nX: " + b"x" * 9000 + b"\r\n\r\n", "400"),
        (b"GET /metrics?name[]=x HTTP/1.0\r\nAccept: \xff\r\n\r\n", "200"),
        (b"HEAD /metrics HTTP/1.1\r\n\r\n", "200"),
    ],
)
def test_whatever_comes_is_answered(daemon, place, request_, status):
    daemon("--metrics", f"unix:{place}")
    head, body = ask(place, request_[:8192])
    assert head.startswith(f"HTTP/1.1 {status} ")
    length = int(re.search(r"Content-Length: (\d+)", head)[1])
    assert len(body.encode()) == (0 if request_.startswith(b"HEAD") else length)
    assert samples(scrape(place))


def test_a_request_may_come_in_pieces_and_its_client_go_away(daemon, place):
    daemon("--metrics", f"unix:{place}")
    with connect(place) as gone:
        gone.sendall(GET[:10])
    with connect(place) as slow:
        for byte in GET % b"x":
            slow.sendall(bytes([byte]))
        assert slow.recv(15) == b"HTTP/1.1 200 OK"
    assert samples(scrape(place))
