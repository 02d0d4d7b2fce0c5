# SPDX-License-Identifier: BSD-3-Clause
"""Clients of the manager socket share interfaces: real XDP programs and AF_XDP sockets, on a veth pair of the test's.

veth has neither flow rules nor combined channels: where these are needed, a stand-in for ethtool is on PATH, which
keeps rules as a driver does and steers nothing. Real rules that steer are tested in the VM.
"""

from __future__ import annotations

import asyncio
import errno
import mmap
import os
import re
import select
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from threading import Thread

import pytest
from pyroute2 import IPRoute

from lab.networks import NEAR4, QUEUES, Veth, inside, veth
from lab.processes import DEADLINE, UNPRIVILEGED, Daemon, as_user, eventually, run_python
from lab.processes import look as look_at_segment
from lab.xsk import Xsk
from mtlshm import Kind, wire
from mtlshm._core import ffi
from mtlshm.manager_client import Manager
from mtlshm.net import xdp
from mtlshm.net.attached import look
from mtlshm.net.ledger import Ledger

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="not root; not tested: interfaces of clients")

ROOT = Path(__file__).parents[2]
StartDaemon = Callable[..., Daemon]
PORT = 20000


@pytest.fixture
def connect(server: StartDaemon, manager_socket: Path, link: Veth) -> Iterator[Callable[..., Manager]]:
    """Connects to a running daemon: connect() has named the interface."""
    server()
    opened: list[Manager] = []

    def run(*interfaces: int, dialect: wire.Dialect = wire.Dialect.B) -> Manager:
        opened.append(new := Manager(manager_socket, dialect=dialect, timeout=DEADLINE))
        new.register(interfaces or (link.index,))
        return new

    yield run
    for each in opened:
        each.close()


@pytest.fixture
def ledger(tmp_path: Path) -> Callable[[], Ledger]:
    return lambda: Ledger(tmp_path / "state", read_only=True)


def refusal(call: Callable[..., object], *arguments: object) -> int | None:
    with pytest.raises(OSError, match=r".") as refused:
        call(*arguments)
    return refused.value.errno


def programs(link: Veth) -> list[str]:
    return [program.name for program in asyncio.run(look(link.index)).programs]


def flow(link: Veth, queue: int, port: int = PORT) -> wire.Interface:
    return wire.Interface(link.index, queue, 0, 2, IPv4Address(0), IPv4Address("239.1.1.1"), 0, port)


class Watcher:
    """What of a port comes to a socket in the map on each queue, and what to the stack."""

    def __init__(self, link: Veth, manager: Manager, port: int = PORT) -> None:
        self._link, self._port = link, port
        self._udp = link.udp(port)
        self._xsks = [Xsk() for _ in range(QUEUES)]
        descriptor = manager.xsk_map_fd(link.index)
        assert descriptor is not None
        for queue, xsk in enumerate(self._xsks):
            xsk.bind(link.index, queue)
            xsk.enter(descriptor, queue)
        os.close(descriptor)

    def send(self, number: int = 20) -> tuple[int, int]:
        """How many of them came to AF_XDP, and how many to the stack, once all have come."""
        with self._link.far_udp(socket.AF_INET) as far:
            for _ in range(number):
                far.sendto(b"x", (NEAR4, self._port))
        self._by_xdp = self._by_stack = 0
        eventually(lambda: self._look() >= number)
        return self._by_xdp, self._by_stack

    def _look(self) -> int:
        self._by_xdp += sum(len(xsk.receive()) for xsk in self._xsks)
        while True:
            try:
                self._udp.recv(100)
            except BlockingIOError:
                return self._by_xdp + self._by_stack
            self._by_stack += 1

    def __enter__(self) -> Watcher:
        return self

    def __exit__(self, *_: object) -> None:
        self._udp.close()
        for xsk in self._xsks:
            xsk.__exit__()


# --- loaded and unloaded -----------------------------------------------------------------------------------


def test_an_interface_is_loaded_for_its_first_client_and_unloaded_after_the_last(
    connect: Callable[..., Manager], link: Veth
) -> None:
    assert programs(link) == []
    first, second = connect(), connect()
    assert programs(link) == ["mtl_dp_fused"]
    first.close()
    second.heartbeat()
    second.get_queue(link.index)
    assert programs(link) == ["mtl_dp_fused"]
    second.close()
    eventually(lambda: programs(link) == [])


def test_what_is_named_by_nobody_is_not_known(connect: Callable[..., Manager], link: Veth) -> None:
    manager = connect(link.index + 1000, dialect=wire.Dialect.A)
    for index in link.index, link.index + 1000:
        assert refusal(manager.get_queue, index) == errno.ENODEV
        assert refusal(manager.put_queue, index, 1) == errno.ENODEV
        assert refusal(manager.add_filter, index, PORT) == errno.ENODEV
        assert refusal(manager.del_filter, index, PORT) == errno.ENODEV
        assert refusal(manager.del_flow, index, 1) == errno.EINVAL
    assert programs(link) == []


def test_an_interface_that_goes_takes_with_it_what_its_clients_had(
    connect: Callable[..., Manager], link: Veth, ledger: Callable[[], Ledger]
) -> None:
    manager = connect()
    manager.get_queue(link.index)
    manager.add_filter(link.index, PORT)
    subprocess.run(["ip", "link", "del", link.name], check=True)
    with ledger() as book:
        eventually(lambda: (book.state().uses, book.state().queues, book.state().ports) == ((), (), ()))
    assert refusal(manager.get_queue, link.index) == errno.ENODEV
    eventually(lambda: list(Path("/sys/fs/bpf/mtlshm").glob("*/*")) == [])
    manager.heartbeat()


def test_an_interface_that_goes_amid_more_news_than_anyone_can_hear_is_noticed(
    server: StartDaemon, manager_socket: Path, link: Veth, ledger: Callable[[], Ledger]
) -> None:
    running = server()
    with Manager(manager_socket, timeout=DEADLINE) as manager, IPRoute() as route:
        manager.register((link.index,))
        running.send(signal.SIGSTOP)
        for mtu in range(1000, 2500):  # each is told to everyone who listens; nobody listens
            route.link("set", index=link.index, mtu=mtu)
        subprocess.run(["ip", "link", "del", link.name], check=True)
        running.resume()
        with ledger() as book:
            eventually(lambda: book.state().uses == ())
        with veth("another") as another:
            manager.register((another.index,))
            manager.get_queue(another.index)
            subprocess.run(["ip", "link", "del", another.name], check=True)
            with ledger() as book:
                eventually(lambda: book.state().uses == ())


@pytest.mark.parametrize("index", [0, 2**31, 2**32 - 1])
def test_an_index_that_no_interface_can_have_is_not_there(
    server: StartDaemon, manager_socket: Path, link: Veth, ledger: Callable[[], Ledger], index: int
) -> None:
    running = server()
    with Manager(manager_socket, timeout=DEADLINE) as manager:
        assert refusal(manager.register, (index, link.index)) == errno.ENODEV
        manager.register((link.index,))
        assert refusal(manager.get_queue, index) == errno.ENODEV
        assert refusal(manager.open_xsk, wire.OpenXsk(index or 2**31, "", 2048, 64, 64, 64, 64, 0)) == errno.ENODEV
        manager.get_queue(link.index)
        with ledger() as book:
            assert [use.ifindex for use in book.state().uses] == [link.index]
        running.end(signal.SIGKILL)
    server()
    with Manager(manager_socket, timeout=DEADLINE) as manager:
        manager.register((link.index,))
        manager.get_queue(link.index)


def test_what_cannot_be_crossed_out_now_is_crossed_out_later(
    server: StartDaemon, manager_socket: Path, link: Veth, ledger: Callable[[], Ledger], tmp_path: Path
) -> None:
    running = server()
    with ExitStack() as held:
        with Manager(manager_socket, timeout=DEADLINE) as manager:
            manager.register((link.index,))
            manager.get_queue(link.index)
            administrator = sqlite3.connect(tmp_path / "state/ledger", isolation_level=None)
            held.callback(administrator.close)
            administrator.execute("BEGIN IMMEDIATE")
        eventually(lambda: "keeps it locked" in running.log())
        administrator.execute("ROLLBACK")
    with ledger() as book:
        eventually(lambda: (book.state().owners, book.state().uses, book.state().queues) == ((), (), ()))
    eventually(lambda: programs(link) == [])


def detach(link: Veth) -> None:
    """As DPDK's AF_XDP driver does when it closes: by netlink, whoever's program it is."""
    with IPRoute() as route:
        route.link("set", index=link.index, xdp_fd=-1)


def attach_foreign(link: Veth) -> None:
    subprocess.run(["xdp-loader", "load", "-m", "skb", link.name, xdp.find_object("xdpfilt_alw_udp.o")], check=True)


def ids(link: Veth) -> list[int]:
    return [program.id for program in asyncio.run(look(link.index)).programs]


def test_what_somebody_detaches_is_put_back_under_traffic(connect: Callable[..., Manager], link: Veth) -> None:
    """With the ports, and the sockets that clients made themselves and those that the daemon made."""
    manager, other = connect(), connect()
    manager.add_filter(link.index, PORT)
    with Watcher(link, manager) as watcher:
        assert watcher.send() == (20, 0)
        before = ids(link)
        for _ in range(3):
            detach(link)
            eventually(lambda: watcher.send() == (20, 0))  # until then they come to the stack
            assert ids(link) == before
        assert other.get_queue(link.index) == 1
        other.add_filter(link.index, PORT + 1)
        manager.del_filter(link.index, PORT)
        assert watcher.send() == (0, 20)


def test_what_somebody_detaches_while_no_daemon_runs_is_put_back_by_the_next(
    server: StartDaemon, manager_socket: Path, link: Veth, client: Callable[[], subprocess.Popen[str]]
) -> None:
    running = server()
    client()
    with Manager(manager_socket, timeout=DEADLINE) as manager:
        manager.register((link.index,))
        watcher = Watcher(link, manager)
    with watcher:
        assert watcher.send() == (20, 0)
        running.end(signal.SIGKILL)
        detach(link)
        assert watcher.send() == (0, 20)
        server()
        eventually(lambda: watcher.send() == (20, 0))


def test_what_is_kept_is_put_back_too(server: StartDaemon, link: Veth, tmp_path: Path) -> None:
    with Ledger(tmp_path / "state") as ledger:
        ledger.keep(link.index)
    running = server()
    running.await_log("native mode")
    before = ids(link)
    detach(link)
    eventually(lambda: ids(link) == before)


def test_who_detaches_the_programs_without_end_is_not_fought_without_end(
    server: StartDaemon, manager_socket: Path, link: Veth
) -> None:
    running = server()
    with Manager(manager_socket, timeout=DEADLINE) as manager:
        manager.register((link.index,))
        while "again and again" not in running.log():
            detach(link)
            eventually(lambda: ids(link) or "again and again" in running.log())
        assert running.log().count("putting them back") == 5
        assert refusal(manager.get_queue, link.index) == errno.ENETDOWN


def test_a_program_that_takes_the_place_of_ours_stays_and_ours_comes_back_when_it_goes(
    server: StartDaemon, manager_socket: Path, link: Veth
) -> None:
    running = server()
    with Manager(manager_socket, timeout=DEADLINE) as manager:
        manager.register((link.index,))
        manager.add_filter(link.index, PORT)
        with Watcher(link, manager) as watcher:
            before = ids(link)
            running.send(signal.SIGSTOP)
            detach(link)
            attach_foreign(link)
            running.resume()
            eventually(lambda: "somebody else's XDP program" in running.log())
            assert refusal(manager.get_queue, link.index) == errno.EBUSY
            assert programs(link) != ["mtl_dp_fused"]
            subprocess.run(["xdp-loader", "unload", link.name, "--all"], check=True)
            eventually(lambda: watcher.send() == (20, 0))
            assert ids(link) == before
            manager.get_queue(link.index)


def test_what_was_loaded_is_unloaded_even_if_its_pins_are_lost(connect: Callable[..., Manager], link: Veth) -> None:
    manager = connect()
    subprocess.run(["umount", "/sys/fs/bpf"], check=True)
    subprocess.run(["mount", "-t", "bpf", "-o", "mode=0700", "bpf", "/sys/fs/bpf"], check=True)
    assert programs(link) == ["mtl_dp_fused"]
    manager.close()
    eventually(lambda: programs(link) == [])


def test_pins_that_others_can_write_are_not_used_and_clients_are_told(
    server: StartDaemon, manager_socket: Path, link: Veth, tmp_path: Path
) -> None:
    """Else root would remove what a link in there leads to."""
    pins = Path("/sys/fs/bpf/mtlshm")
    pins.mkdir(mode=0o755)
    namespace = os.stat("/proc/thread-self/ns/net").st_ino
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "ports").touch()
    (pins / f"{namespace}-{link.index}").symlink_to(victim)
    os.chown(pins, UNPRIVILEGED, 0)
    subprocess.run(["xdp-loader", "load", link.name, xdp.find_object("mtl_dp_fused.o")], check=True)
    before = ids(link)
    running = server()
    with Manager(manager_socket, timeout=DEADLINE) as manager:
        assert refusal(manager.register, (link.index,)) == errno.ENODEV
        assert f"{pins} belongs to uid {UNPRIVILEGED}" in running.log()
    assert (victim / "ports").exists()
    assert ids(link) == before


def test_a_foreign_program_is_left_alone_and_clients_are_told(connect: Callable[..., Manager], link: Veth) -> None:
    attach_foreign(link)
    before = programs(link)
    for _ in range(2):
        manager = connect(dialect=wire.Dialect.A)
        assert refusal(manager.get_queue, link.index) == errno.EBUSY
        manager.close()
    assert programs(link) == before


def test_who_names_an_interface_that_cannot_be_served_is_not_registered_if_it_understands_that(
    server: StartDaemon, manager_socket: Path, link: Veth, segment: str, ledger: Callable[[], Ledger]
) -> None:
    """It lives on unregistered, and may try again. One of dialect A would take lcores from another table, unseen."""
    running = server()
    with Manager(manager_socket, timeout=DEADLINE) as manager:
        for _ in range(2):
            assert refusal(manager.register, (link.index, link.index + 1000)) == errno.ENODEV
            assert refusal(manager.get_lcore, 1) == errno.EPERM
            assert refusal(manager.get_queue, link.index) == errno.EPERM
            assert [info for info in look_at_segment(segment).instances if info.kind == Kind.SOCKET] == []
        with ledger() as book:
            eventually(lambda: (book.state().owners, book.state().uses) == ((), ()))
        manager.register((link.index,))
        manager.get_lcore(1)
        assert refusal(manager.register, (link.index + 1000,)) == errno.ENODEV
        assert refusal(manager.get_lcore, 1) == errno.EBUSY  # it is registered as before
        assert manager.get_queue(link.index) == 1
    assert f"is not registered, as not all of interfaces {link.index}, {link.index + 1000} are" in running.log()
    with Manager(manager_socket, dialect=wire.Dialect.A, timeout=DEADLINE) as manager:
        manager.register((link.index, link.index + 1000))
        eventually(lambda: manager.get_queue(link.index) == 1 or manager.put_queue(link.index, 2))
        eventually(lambda: not [lcore for lcore in look_at_segment(segment).lcores if lcore.number == 1])
        manager.get_lcore(1)
    assert "is registered, though not all of interfaces" in running.log()


def test_who_ends_while_its_interface_is_tried_in_vain_leaves_nothing(
    server: StartDaemon, manager_socket: Path, link: Veth, segment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here xdp-loader takes its time, and fails."""
    program = tmp_path / "bin/xdp-loader"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/begun; sleep 1; exit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    running = server()
    with Manager(manager_socket, timeout=DEADLINE) as manager:
        body = wire.Register(os.getpid(), 0, "here", (link.index,), wire.Dialect.B)
        manager.socket.sendall(wire.encode(wire.Type.REGISTER, body))
        eventually((tmp_path / "begun").exists)
    running.await_log("is not registered")
    eventually(lambda: [info for info in look_at_segment(segment).instances if info.kind == Kind.SOCKET] == [])
    with Ledger(tmp_path / "state", read_only=True) as book:
        eventually(lambda: (book.state().owners, book.state().uses) == ((), ()))


# --- ports -------------------------------------------------------------------------------------------------


def test_packets_of_a_port_that_is_added_come_to_af_xdp_until_the_last_who_wants_it_has_ended(
    connect: Callable[..., Manager], link: Veth
) -> None:
    first, second = connect(), connect()
    with Watcher(link, first) as watcher:
        assert watcher.send() == (0, 20)
        first.add_filter(link.index, PORT)
        first.add_filter(link.index, PORT)
        second.add_filter(link.index, PORT)
        assert watcher.send() == (20, 0)
        first.del_filter(link.index, PORT)
        second.del_filter(link.index, PORT)
        assert refusal(second.del_filter, link.index, PORT) == errno.EINVAL
        assert watcher.send() == (20, 0)
        first.close()
        eventually(lambda: watcher.send() == (0, 20))


def test_any_port_can_be_added(connect: Callable[..., Manager], link: Veth) -> None:
    manager = connect()
    for port in 0, 1, 65535:
        manager.add_filter(link.index, port)
        manager.del_filter(link.index, port)
        assert refusal(manager.del_filter, link.index, port) == errno.EINVAL


# --- queues and rules --------------------------------------------------------------------------------------


def test_queues_are_given_to_one_owner_each_and_queue_0_to_nobody(connect: Callable[..., Manager], link: Veth) -> None:
    first, second = connect(), connect()
    got = [first.get_queue(link.index), second.get_queue(link.index), first.get_queue(link.index)]
    assert sorted(got) == list(range(1, QUEUES))
    assert refusal(second.get_queue, link.index) == errno.ENOSPC
    assert refusal(second.put_queue, link.index, got[0]) == errno.EINVAL
    assert refusal(second.put_queue, link.index, 0) == errno.EINVAL
    first.put_queue(link.index, got[0])
    assert second.get_queue(link.index) == got[0]


CLIENT = """
import sys
from mtlshm.manager_client import Manager
manager = Manager(sys.argv[1])
manager.register((int(sys.argv[2]),))
print(manager.get_queue(int(sys.argv[2])), flush=True)
manager.add_filter(int(sys.argv[2]), int(sys.argv[3]))
print(flush=True)
sys.stdin.read()
"""


@pytest.fixture
def client(manager_socket: Path, link: Veth) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Starts processes that have a queue and the port."""
    started: list[subprocess.Popen[str]] = []

    def start() -> subprocess.Popen[str]:
        command = [sys.executable, "-c", CLIENT, str(manager_socket), str(link.index), str(PORT)]
        started.append(new := subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        assert new.stdout
        assert new.stdout.readline(), "it got no queue"
        assert new.stdout.readline(), "it could not add the port"
        return new

    yield start
    for each in started:
        with each:
            each.kill()


def test_what_a_dead_client_had_is_free(
    connect: Callable[..., Manager], client: Callable[[], subprocess.Popen[str]], link: Veth
) -> None:
    manager = connect()
    with Watcher(link, manager) as watcher:
        dying = client()
        assert watcher.send() == (20, 0)
        dying.kill()
        eventually(lambda: watcher.send() == (0, 20))
        assert manager.get_queue(link.index) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_restart_takes_nothing_from_the_living_and_frees_what_the_dead_had(
    server: StartDaemon,
    client: Callable[[], subprocess.Popen[str]],
    manager_socket: Path,
    link: Veth,
    ledger: Callable[[], Ledger],
    number: int,
) -> None:
    running = server()
    living, dying = client(), client()
    with Manager(manager_socket, timeout=DEADLINE) as before:
        before.register((link.index,))
        watcher = Watcher(link, before)
    with watcher, ledger() as book:
        eventually(lambda: len(book.owners()) == 2)
        running.end(number)
        assert watcher.send() == (20, 0)
        dying.kill()
        dying.wait()
        running = server()
        assert watcher.send() == (20, 0)
        with Manager(manager_socket, timeout=DEADLINE) as after:
            after.register((link.index,))
            assert after.get_queue(link.index) == 2
        living.kill()
        eventually(lambda: watcher.send() == (0, 20))
    eventually(lambda: programs(link) == [])


@pytest.fixture
def rules(stand_in, link: Veth):
    """Gives the interface a driver with flow rules, in the stand-in."""
    stand_in.set(link.name, combined=QUEUES)
    return lambda: stand_in.rules(link.name)


def test_rules_lead_to_queues_of_ones_own_and_are_deleted_with_their_owner(
    rules, connect: Callable[..., Manager], link: Veth
) -> None:
    first, second = connect(), connect()
    queue = first.get_queue(link.index)
    location = first.add_flow(flow(link, queue))
    assert location in rules()
    assert refusal(second.add_flow, flow(link, queue)) == errno.EBUSY
    assert refusal(second.del_flow, link.index, location) == errno.EINVAL
    other = second.add_flow(flow(link, queue + 1, PORT + 1))  # nobody's: as DPDK's own driver does
    assert first.get_queue(link.index) == queue + 2
    second.del_flow(link.index, other)
    first.close()
    eventually(lambda: rules() == {})


@pytest.mark.parametrize("seen", [True, False])
def test_of_an_interface_that_is_moved_away_it_is_said_what_it_keeps_and_how_to_remove_it(
    rules, server: StartDaemon, manager_socket: Path, link: Veth, ledger: Callable[[], Ledger], seen: bool
) -> None:
    """That a NIC keeps its rules then is seen in tests/vm."""
    running = server()
    with Manager(manager_socket, timeout=DEADLINE) as manager, IPRoute() as route:
        manager.register((link.index,))
        for port in (PORT, PORT + 1):
            manager.add_flow(flow(link, manager.get_queue(link.index), port))
        if not seen:
            running.end(signal.SIGKILL)
        route.link("set", index=link.index, net_ns_fd=link.far)
        with inside(link.far):
            there = replace(link, index=socket.if_nametoindex(link.name))
        if seen:
            nsid = route.get_netnsid(fd=link.far)["nsid"]
            place = f"as interface {there.index} of the network namespace with nsid {nsid} (ip netns list-id)"
        else:
            running = server()
            place = "if it was moved to another network namespace"
        deletions = "; ".join(f"ethtool -N DEVICE delete {location}" for location in rules())
        running.await_log(f"interface {link.index} keeps flow rules of ours {place}; to delete them there: {deletions}")
        with ledger() as book:
            eventually(lambda: (book.state().uses, book.state().flows) == ((), ()))
    if seen:
        running.await_log("to detach them there")
        (command,) = re.findall(r"to detach them there: (.*)", running.log())
        with inside(link.far):
            assert programs(there) == ["mtl_dp_fused"]
            subprocess.run(command.replace("DEVICE", link.name), shell=True, check=True)
            assert programs(there) == []


def test_of_an_interface_that_is_removed_nothing_is_said_to_be_kept(
    rules, server: StartDaemon, manager_socket: Path, link: Veth
) -> None:
    running = server()
    with Manager(manager_socket, timeout=DEADLINE) as manager:
        manager.register((link.index,))
        manager.add_flow(flow(link, manager.get_queue(link.index)))
        subprocess.run(["ip", "link", "del", link.name], check=True)
        running.await_log("and with it all")
        assert "keeps" not in running.log()


# --- who may not -------------------------------------------------------------------------------------------

MEMBER = """
import sys, mtlshm.manager_client
ifindex, *numbers = map(int, sys.argv[2:])
with mtlshm.manager_client.Manager(sys.argv[1]) as manager:
    manager.register((ifindex,))
    for attempt in (manager.put_queue, manager.del_flow, manager.del_filter):
        for number in numbers:
            try:
                attempt(ifindex, number)
                print(attempt.__name__, number)
            except OSError:
                pass
"""


@pytest.mark.parametrize("forged", [False, True])
def test_a_member_of_the_group_cannot_touch_what_another_has_whatever_it_writes_into_the_segment(
    daemon: StartDaemon,
    link: Veth,
    manager_socket: Path,
    segment: str,
    rules,
    ledger: Callable[[], Ledger],
    forged: bool,
) -> None:
    daemon("--socket-group", "nogroup", environment={"MTLSHMD_XDP": "auto"})
    with Manager(manager_socket, timeout=DEADLINE) as victim, ExitStack() as stack:
        victim.register((link.index,))
        queue = victim.get_queue(link.index)
        location = victim.add_flow(flow(link, queue))
        victim.add_filter(link.index, PORT)
        book = stack.enter_context(ledger())
        before = book.queues(), book.flows(), book.ports(link.index)
        assert all(before)
        member = (12345, 12345, [UNPRIVILEGED])
        if forged:  # its record is free: the next client gets the same one, and so the same owner
            (owner,) = [info.owner for info in look_at_segment(segment).instances if info.kind == Kind.SOCKET]
            offset = ffi.offsetof("struct mtlshm_segment", "instances", owner >> 8 & 0xFFF, "control")
            with open(segment, "r+b") as file:
                file.seek(offset)
                file.write(b"\0")
        assert run_python(MEMBER, manager_socket, link.index, queue, location, PORT, user=member) == ""
        eventually(lambda: len(book.owners()) == 1)  # the member's end is dealt with
        assert (book.queues(), book.flows(), book.ports(link.index)) == before
        assert list(rules()) == [location]


OUTSIDER = """
import sys, socket
for name in sys.argv[1:]:
    try:
        if name.endswith(".sock"):
            socket.socket(socket.AF_UNIX).connect(name)
        else:
            open(name)
        print(name)
    except PermissionError:
        pass
"""


def test_a_map_that_waits_to_be_read_is_that_map_whatever_becomes_of_it(
    connect: Callable[..., Manager], manager_socket: Path, link: Veth
) -> None:
    """And never another descriptor of the daemon's, which has got the number of the map's since."""
    user = connect()
    with Manager(manager_socket, dialect=wire.Dialect.A, timeout=DEADLINE) as slow:
        slow.register()
        request = wire.encode(wire.Type.IF_XSK_MAP_FD, wire.Interface(link.index))
        slow.socket.setblocking(False)
        asked = 0
        while select.select([], [slow.socket], [], 0.3)[1]:  # until the daemon waits for it to read
            with suppress(BlockingIOError):
                asked += slow.socket.send(request)
        slow.socket.settimeout(DEADLINE)
        user.close()
        eventually(lambda: programs(link) == [])
        with ExitStack() as others:
            for _ in range(20):
                others.enter_context(Manager(manager_socket, timeout=DEADLINE)).register()
            got = set()
            for _ in range(asked // wire.SIZE):
                _, descriptors, _, _ = socket.recv_fds(slow.socket, 1, 1)
                got.add(os.readlink(f"/proc/self/fd/{descriptors[0]}"))
                os.close(descriptors[0])
    assert got == {"anon_inode:bpf-map", os.devnull}


def test_who_is_not_in_the_group_cannot_open_what_he_could_lock_or_change(
    connect: Callable[..., Manager], manager_socket: Path, segment: str, tmp_path: Path
) -> None:
    connect()
    os.chmod(tmp_path.parent, 0o755)
    os.chmod(tmp_path, 0o755)
    names = [segment, manager_socket, tmp_path / "state/serve.lock", tmp_path / "state/change.lock"]
    assert all(Path(name).exists() for name in names)
    assert (tmp_path / "state").stat().st_mode & 0o022 == 0
    assert run_python(OUTSIDER, *names, user=(UNPRIVILEGED, UNPRIVILEGED, [])) == ""


# --- sockets for clients without capabilities --------------------------------------------------------------


@pytest.fixture
def examples(manager_socket: Path) -> dict[str, list[str]]:
    """Commands for one who is nobody, has no capability and is in a network namespace with no interface."""
    program = manager_socket.parent / "xsk_receive"  # where he may read
    shutil.copy(ROOT / "build/tools/examples/xsk_receive", program)
    nobody = (f"--reuid={UNPRIVILEGED}", f"--regid={UNPRIVILEGED}", "--clear-groups", "--bounding-set=-all")
    code = as_user(UNPRIVILEGED, UNPRIVILEGED, [])
    imports = "import ctypes, mmap, select, socket, struct, sys\nimport mtlshm.manager_client, mtlshm.wire\n"
    source = (ROOT / "tools/examples/xsk_receive.py").read_text()
    return {
        "C": ["unshare", "--net", "setpriv", *nobody, "--no-new-privs", str(program)],
        "Python": ["unshare", "--net", sys.executable, "-c", imports + code + source],
    }


@pytest.mark.parametrize("language", ["C", "Python"])
def test_one_with_no_capability_receives_by_af_xdp_from_another_network_namespace(
    daemon: StartDaemon, manager_socket: Path, link: Veth, examples: dict[str, list[str]], language: str, tmp_path: Path
) -> None:
    daemon("--socket-group", "nogroup", environment={"MTLSHMD_XDP": "auto"})
    command = [*examples[language], link.name, str(PORT), "50"]
    environment = os.environ | {"MTL_MANAGER_SOCK_PATH": str(manager_socket)}
    said = tmp_path / "said"
    deadline = time.monotonic() + DEADLINE
    with (
        said.open("w") as errors,
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True) as receiver,
    ):
        try:
            eventually(lambda: "ready" in said.read_text() or receiver.poll() is not None)
            assert receiver.poll() is None, said.read_text()
            status = Path(f"/proc/{receiver.pid}/status").read_text()
            assert "CapEff:\t0000000000000000" in status
            assert f"Uid:\t{UNPRIVILEGED}" in status
            with link.udp(PORT):
                while receiver.poll() is None:
                    with link.far_udp(socket.AF_INET) as far:  # of many, some meet the queue
                        far.sendto(b"x", (NEAR4, PORT))
                    assert time.monotonic() < deadline, said.read_text()
            assert receiver.stdout
            assert int(receiver.stdout.read()) >= 50
        finally:
            receiver.kill()
    eventually(lambda: programs(link) == [])


def test_each_socket_has_a_queue_of_its_own(connect: Callable[..., Manager], link: Veth) -> None:
    layout = (2048, 64, 64, 64, 64, 64)
    first, second = connect(), connect(link.index + 1000, dialect=wire.Dialect.A)  # which has not named the interface
    opened = [each.open_xsk(wire.OpenXsk(0, link.name, *layout)) for each in (first, second)]
    assert [xsk.value for xsk, _, _ in opened] == [1, 2]
    assert opened[0][0].ifindex == link.index
    assert refusal(second.put_queue, link.index, 1) == errno.EINVAL
    for _, *descriptors in opened:
        for descriptor in descriptors:
            os.close(descriptor)
    first.close()
    eventually(lambda: second.get_queue(link.index) == 1 or second.put_queue(link.index, 3))


@pytest.mark.parametrize(
    ("layout", "number"),
    [
        ((2048, 1 << 20, 64, 64, 64, 0), errno.E2BIG),
        ((2000, 64, 64, 64, 64, 0), errno.EINVAL),
        ((2048, 0, 64, 64, 64, 0), errno.EINVAL),
        ((2048, 64, 63, 64, 64, 0), errno.EINVAL),
        ((2048, 64, 64, 64, 0, 0), errno.EINVAL),
        ((2048, 64, 1 << 31, 64, 64, 0), errno.EINVAL),
        ((2**32 - 1, 2**32 - 1, 64, 64, 64, 0), errno.EINVAL),
    ],
)
def test_a_socket_too_large_or_senseless_is_refused_and_takes_no_queue(
    connect: Callable[..., Manager], link: Veth, layout: tuple[int, ...], number: int
) -> None:
    manager = connect()
    assert refusal(manager.open_xsk, wire.OpenXsk(link.index, "", *layout)) == number
    assert manager.get_queue(link.index) == 1


def test_who_keeps_the_memory_of_sockets_gets_no_more_than_for_his_queues(
    server: StartDaemon, manager_socket: Path, link: Veth
) -> None:
    """Whoever of his processes asks: what one got, another may keep."""
    server("--umem-limit", 1)
    request = wire.OpenXsk(link.index, "", 2048, 512, 64, 64, 64, 0)
    with ExitStack() as stack:
        memories = []
        for _ in range(2):
            with Manager(manager_socket, timeout=DEADLINE) as manager:
                manager.register((link.index,))
                if memories:
                    assert refusal(manager.open_xsk, request) == errno.EAGAIN
                    memories.pop().close()
                _, xsk, umem = manager.open_xsk(request)
                os.close(xsk)
                memories.append(stack.enter_context(mmap.mmap(umem, 0)))
                os.close(umem)


def test_a_queue_that_is_still_bound_is_passed_by(connect: Callable[..., Manager], link: Veth) -> None:
    """Who got a socket may keep it after its connection has ended; nobody can take it away."""
    layout = (2048, 64, 64, 64, 64, 0)
    first, second = connect(), connect()
    _, kept, memory = first.open_xsk(wire.OpenXsk(link.index, "", *layout))
    first.close()
    eventually(lambda: second.get_queue(link.index) == 1 or second.put_queue(link.index, 2))
    second.put_queue(link.index, 1)
    xsk, *descriptors = second.open_xsk(wire.OpenXsk(link.index, "", *layout))
    assert xsk.value == 2
    for descriptor in (kept, memory, *descriptors):
        os.close(descriptor)


@contextmanager
def stopped_opener(daemon: Daemon, manager: Manager, interface: int) -> Iterator[tuple[Thread, list[int], int]]:
    """The process that opens a large socket for a client, stopped before it is done; and what the client is told."""
    request = wire.OpenXsk(interface, "", 4096, 16384, 64, 64, 64, 0)
    answers: list[int] = []

    def ask() -> None:
        try:
            answer, *descriptors = manager.open_xsk(request)
        except OSError as error:
            answers.append(-(error.errno or 0))
            return
        for descriptor in descriptors:
            os.close(descriptor)
        answers.append(answer.value)

    deadline = time.monotonic() + DEADLINE
    while True:
        assert time.monotonic() < deadline, "it was always done before it could be stopped"
        before = len(answers)
        asking = Thread(target=ask)
        asking.start()
        while len(answers) == before and not (found := openers(daemon)):
            pass
        if found:
            with suppress(ProcessLookupError):
                os.kill(found[0], signal.SIGSTOP)
            if len(answers) == before and openers(daemon) == found:
                break
            with suppress(ProcessLookupError):
                os.kill(found[0], signal.SIGCONT)
        asking.join()
        if answers[-1] > 0:
            manager.put_queue(interface, answers[-1])
    try:
        yield asking, answers, found[0]
    finally:
        with suppress(ProcessLookupError):
            os.kill(found[0], signal.SIGCONT)
        asking.join()


def openers(daemon: Daemon) -> list[int]:
    """The processes that open sockets for it."""
    children = Path(f"/proc/{daemon.pid}/task/{daemon.pid}/children").read_text().split()
    with suppress(OSError):
        return [int(pid) for pid in children if b"net/xsk.py" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    return []


def test_while_a_socket_is_opened_for_one_all_others_are_served(
    server: StartDaemon, manager_socket: Path, link: Veth
) -> None:
    running = server()
    with Manager(manager_socket, timeout=DEADLINE) as first, Manager(manager_socket, timeout=DEADLINE) as second:
        for manager in (first, second):
            manager.register((link.index,))
        with stopped_opener(running, first, link.index) as (asking, answers, _):
            told = len(answers)
            assert second.get_queue(link.index) > 0
            second.add_filter(link.index, PORT)
            assert second.heartbeat(7) == 7
            assert len(answers) == told
        asking.join()
        assert answers[-1] > 0


def test_a_user_has_one_socket_opened_at_a_time(server: StartDaemon, manager_socket: Path, link: Veth) -> None:
    running = server()
    with Manager(manager_socket, timeout=DEADLINE) as first, Manager(manager_socket, timeout=DEADLINE) as second:
        for manager in (first, second):
            manager.register((link.index,))
        with stopped_opener(running, first, link.index) as (_, _, opener):
            later = Thread(target=second.open_xsk, args=(wire.OpenXsk(link.index, "", 2048, 64, 64, 64, 64, 0),))
            later.start()
            with Manager(manager_socket, timeout=DEADLINE) as third:
                third.register((link.index,))  # after which the request has been read as well
                third.heartbeat()
            assert openers(running) == [opener]
        later.join()


def test_an_opener_that_is_killed_costs_one_answer_and_no_queue(
    server: StartDaemon, manager_socket: Path, link: Veth
) -> None:
    running = server()
    with Manager(manager_socket, timeout=DEADLINE) as manager:
        manager.register((link.index,))
        with stopped_opener(running, manager, link.index) as (asking, answers, opener):
            os.kill(opener, signal.SIGKILL)
            asking.join()
            assert answers[-1] == -errno.EIO
        assert manager.get_queue(link.index) == 1
        manager.put_queue(link.index, 1)
        answer, *descriptors = manager.open_xsk(wire.OpenXsk(link.index, "", 2048, 64, 64, 64, 64, 0))
        assert answer.value > 0
        for descriptor in descriptors:
            os.close(descriptor)
        eventually(lambda: not openers(running))


def test_an_interface_that_is_not_there_has_no_sockets(connect: Callable[..., Manager], link: Veth) -> None:
    manager = connect()
    for index, name in ((link.index + 1000, ""), (0, "nowhere"), (0, "")):
        assert refusal(manager.open_xsk, wire.OpenXsk(index, name, 2048, 64, 64, 64, 64, 0)) == errno.ENODEV


# --- where there is nothing to serve -----------------------------------------------------------------------


def test_switched_off_no_interface_is_known_and_lcores_are_served(
    daemon: StartDaemon, manager_socket: Path, link: Veth
) -> None:
    daemon("--xdp", "off")
    with Manager(manager_socket, dialect=wire.Dialect.A, timeout=DEADLINE) as manager:
        manager.register((link.index,))
        assert refusal(manager.get_queue, link.index) == errno.ENODEV
        manager.get_lcore(1)
    assert programs(link) == []


def test_lcores_do_not_wait_for_interfaces(
    server: StartDaemon, manager_socket: Path, link: Veth, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here xdp-loader hangs."""
    program = tmp_path / "bin/xdp-loader"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    server()
    with Manager(manager_socket, timeout=DEADLINE) as stuck, Manager(manager_socket, timeout=DEADLINE) as other:
        body = wire.Register(os.getpid(), 0, "here", (link.index,), wire.Dialect.A)
        stuck.socket.sendall(wire.encode(wire.Type.REGISTER, body, wire.Dialect.A))
        other.register()
        for _ in range(20):
            other.get_lcore(1)
            other.put_lcore(1)
        assert stuck.receive() == (201, wire.Response(0))
        assert refusal(stuck.get_queue, link.index) == errno.ETIMEDOUT


def answers_before(waiting: Manager, other: Manager) -> int:
    """How often the other gets an lcore before the one who waits is answered; enough of them are enough."""
    for answers in range(20):
        if select.select([waiting.socket], [], [], 0)[0]:
            return answers
        other.get_lcore(1)
        other.put_lcore(1)
    return 20


@pytest.mark.parametrize("lock", ["goes", "stays"])
@pytest.mark.parametrize("when", ["from the start", "before the first names one", "later"])
def test_lcores_do_not_wait_for_the_ledger(
    server: StartDaemon, manager_socket: Path, link: Veth, tmp_path: Path, when: str, lock: str
) -> None:
    """Here somebody keeps it locked."""
    if when == "from the start":
        Ledger(tmp_path / "state").close()
    else:
        server()
    with ExitStack() as held:

        def connect() -> Manager:
            return held.enter_context(Manager(manager_socket, timeout=DEADLINE))

        if when == "before the first names one":
            Ledger(tmp_path / "state").close()
        elif when == "later":
            connect().register((link.index,))
        somebody = held.enter_context(closing(sqlite3.connect(tmp_path / "state/ledger", isolation_level=None)))
        somebody.execute("BEGIN IMMEDIATE")
        if when == "from the start":
            server()
        waiting, other = connect(), connect()
        other.register()
        body = wire.Register(os.getpid(), 0, "here", (link.index,), wire.Dialect.B)
        waiting.socket.sendall(wire.encode(wire.Type.REGISTER, body))
        assert answers_before(waiting, other) == 20
        if lock == "goes":
            somebody.execute("ROLLBACK")
            assert waiting.receive() == (201, wire.Response(0))
            waiting.get_queue(link.index)
        else:
            assert waiting.receive() == (201, wire.Response(-errno.ENODEV))
            assert refusal(waiting.get_queue, link.index) == errno.EPERM
            somebody.execute("ROLLBACK")
            waiting.register((link.index,))
            waiting.get_queue(link.index)
