# SPDX-License-Identifier: BSD-3-Clause
"""Clients of the manager socket share interfaces: real XDP programs and AF_XDP sockets, on a veth pair of the test's.

veth has neither flow rules nor combined channels: where these are needed, a stand-in for ethtool is on PATH, which
keeps rules as a driver does and steers nothing. Real rules that steer are tested in the VM.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
import select
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

import pytest
from pyroute2 import IPRoute

from lab.interface_clients import PORT, Watcher, flow, programs
from lab.networks import QUEUES, Veth, inside, veth
from lab.processes import DEADLINE, UNPRIVILEGED, Daemon, eventually
from lab.processes import look as look_at_segment
from lab.refusals import refusal
from mtlshm import EventKind, Host, Kind, wire
from mtlshm.manager_client import Manager
from mtlshm.net import xdp
from mtlshm.net.attached import look
from mtlshm.net.ledger import Ledger

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="not root; not tested: interfaces of clients")

ROOT = Path(__file__).parents[2]
StartDaemon = Callable[..., Daemon]


# --- loaded and unloaded -----------------------------------------------------------------------------------


def test_program_is_loaded_for_the_first_client_and_unloaded_after_the_last(
    link_client: Callable[..., Manager], link: Veth
) -> None:
    assert programs(link) == []
    first, second = link_client(), link_client()
    assert programs(link) == ["mtl_dp_fused"]
    first.close()
    second.heartbeat()
    second.get_queue(link.index)
    assert programs(link) == ["mtl_dp_fused"]
    second.close()
    eventually(lambda: programs(link) == [])


def test_what_is_done_to_an_interface_is_told_as_events(
    link_client: Callable[..., Manager], link: Veth, segment: str
) -> None:
    first, second = link_client(), link_client()
    queue = first.get_queue(link.index)
    first.put_queue(link.index, queue)
    first.get_queue(link.index)
    first.close()
    second.close()
    with Host(segment) as host:
        eventually(lambda: any("no longer served" in event.text for event in host.events()))
        told = [
            (event.kind, event.label, event.text.split(":")[0])
            for event in host.events()
            if event.kind in (EventKind.XDP, EventKind.NIC)
        ]
    assert told == [
        (EventKind.XDP, link.name, "served"),
        (EventKind.NIC, link.name, f"queue {queue} claimed"),
        (EventKind.NIC, link.name, f"queue {queue} given back"),
        (EventKind.NIC, link.name, f"queue {queue} claimed"),
        (EventKind.NIC, link.name, "all queues and rules taken back"),
        (EventKind.XDP, link.name, "no longer served"),
    ]


def test_interface_nobody_named_is_unknown(link_client: Callable[..., Manager], link: Veth) -> None:
    manager = link_client(link.index + 1000, dialect=wire.Dialect.A)
    for index in link.index, link.index + 1000:
        assert refusal(manager.get_queue, index) == errno.ENODEV
        assert refusal(manager.put_queue, index, 1) == errno.ENODEV
        assert refusal(manager.add_filter, index, PORT) == errno.ENODEV
        assert refusal(manager.del_filter, index, PORT) == errno.ENODEV
        assert refusal(manager.del_flow, index, 1) == errno.EINVAL
    assert programs(link) == []


def test_removed_interface_takes_its_clients_rows_from_the_ledger(
    link_client: Callable[..., Manager], link: Veth, ledger: Callable[[], Ledger]
) -> None:
    manager = link_client()
    manager.get_queue(link.index)
    manager.add_filter(link.index, PORT)
    subprocess.run(["ip", "link", "del", link.name], check=True)
    with ledger() as book:
        eventually(lambda: (book.state().uses, book.state().queues, book.state().ports) == ((), (), ()))
    assert refusal(manager.get_queue, link.index) == errno.ENODEV
    eventually(lambda: list(Path("/sys/fs/bpf/mtlshm").glob("*/*")) == [])
    manager.heartbeat()


def test_removed_interface_is_noticed_after_lost_netlink_messages(
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


def test_rows_of_a_gone_client_are_deleted_once_the_ledger_is_unlocked(
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


def test_detached_program_is_put_back_under_traffic(link_client: Callable[..., Manager], link: Veth) -> None:
    """With the ports, and the sockets that clients made themselves and those that the daemon made."""
    manager, other = link_client(), link_client()
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


def test_detached_program_is_put_back_by_the_next_daemon(
    server: StartDaemon, manager_socket: Path, link: Veth, port_client: Callable[[], subprocess.Popen[str]]
) -> None:
    running = server()
    port_client()
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


def test_kept_program_is_put_back(server: StartDaemon, link: Veth, tmp_path: Path) -> None:
    with Ledger(tmp_path / "state") as ledger:
        ledger.keep(link.index)
    running = server()
    running.await_log("native mode")
    before = ids(link)
    detach(link)
    eventually(lambda: ids(link) == before)


def test_endless_detaching_is_given_up_after_five_repairs(
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


def test_foreign_program_is_left_attached_and_ours_returns_after_it(
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


def test_programs_are_unloaded_even_without_their_pins(link_client: Callable[..., Manager], link: Veth) -> None:
    manager = link_client()
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


def test_a_foreign_program_is_left_alone_and_clients_are_told(link_client: Callable[..., Manager], link: Veth) -> None:
    attach_foreign(link)
    before = programs(link)
    for _ in range(2):
        manager = link_client(dialect=wire.Dialect.A)
        assert refusal(manager.get_queue, link.index) == errno.EBUSY
        manager.close()
    assert programs(link) == before


def test_register_fails_if_an_interface_cannot_be_served(
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


def test_client_that_ends_during_a_failed_load_leaves_nothing(
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


def test_port_is_redirected_until_its_last_client_ends(link_client: Callable[..., Manager], link: Veth) -> None:
    first, second = link_client(), link_client()
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


def test_any_port_can_be_added(link_client: Callable[..., Manager], link: Veth) -> None:
    manager = link_client()
    for port in 0, 1, 65535:
        manager.add_filter(link.index, port)
        manager.del_filter(link.index, port)
        assert refusal(manager.del_filter, link.index, port) == errno.EINVAL


# --- queues and rules --------------------------------------------------------------------------------------


def test_queues_are_given_to_one_owner_each_and_queue_0_to_nobody(
    link_client: Callable[..., Manager], link: Veth
) -> None:
    first, second = link_client(), link_client()
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
def port_client(manager_socket: Path, link: Veth) -> Iterator[Callable[[], subprocess.Popen[str]]]:
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


def test_queues_and_rules_of_a_dead_client_are_free(
    link_client: Callable[..., Manager], port_client: Callable[[], subprocess.Popen[str]], link: Veth
) -> None:
    manager = link_client()
    with Watcher(link, manager) as watcher:
        dying = port_client()
        assert watcher.send() == (20, 0)
        dying.kill()
        eventually(lambda: watcher.send() == (0, 20))
        assert manager.get_queue(link.index) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_restart_keeps_queues_of_the_living_and_frees_those_of_the_dead(
    server: StartDaemon,
    port_client: Callable[[], subprocess.Popen[str]],
    manager_socket: Path,
    link: Veth,
    ledger: Callable[[], Ledger],
    number: int,
) -> None:
    running = server()
    living, dying = port_client(), port_client()
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


def test_rules_lead_to_own_queues_and_are_deleted_with_their_owner(
    rules, link_client: Callable[..., Manager], link: Veth
) -> None:
    first, second = link_client(), link_client()
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
def test_log_names_what_a_moved_interface_keeps(
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


def test_log_names_nothing_kept_by_a_removed_interface(
    rules, server: StartDaemon, manager_socket: Path, link: Veth
) -> None:
    running = server()
    with Manager(manager_socket, timeout=DEADLINE) as manager:
        manager.register((link.index,))
        manager.add_flow(flow(link, manager.get_queue(link.index)))
        subprocess.run(["ip", "link", "del", link.name], check=True)
        running.await_log("and with it all")
        assert "keeps" not in running.log()


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
