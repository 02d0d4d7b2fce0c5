# SPDX-License-Identifier: BSD-3-Clause
"""Under a service manager with a descriptor store, clients notice nothing of a restart.

The service manager is a stand-in: it keeps what it is sent, and starts the next daemon with it, as sd_notify(3) and
sd_listen_fds(3) say. It is quick, and can be made to fail; tests/vm/test_service.py has a real systemd.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from lab.networks import sandbox, veth
from lab.processes import BIN, DEADLINE, eventually, held, look
from mtlshm import Host, Kind, MtlshmError, wire
from mtlshm.daemon.service import Service
from mtlshm.manager_client import Manager
from mtlshm.net.ledger import Ledger
from mtlshm.wire import Dialect, Heartbeat, Response, Type


class ServiceManager:
    """Starts mtlshmd, and keeps descriptors for it."""

    def __init__(self, environment: dict[str, str], directory: Path) -> None:
        address = directory / "notify"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(address))
        self._socket.settimeout(DEADLINE)
        self._environment = environment | {"NOTIFY_SOCKET": str(address)}
        self.store: dict[str, int] = {}
        self._polled: set[str] = set()
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        for name in self._polled & self.store.keys():  # systemd does so at once, which we cannot see
            poll = select.poll()
            poll.register(self.store[name], 0)  # POLLHUP and POLLERR, which nobody has to ask for
            if poll.poll(0):
                os.close(self.store.pop(name))
        names, fds = list(self.store), list(self.store.values())
        environment = self._environment | {"LISTEN_FDS": str(len(fds)), "LISTEN_FDNAMES": ":".join(names)}
        # The descriptors have to be 3, 4, ...; and only the new process knows its pid.
        code = (
            "import fcntl, os, sys\n"
            "fds = [fcntl.fcntl(int(fd), fcntl.F_DUPFD, 100) for fd in sys.argv[2:]]\n"
            "for number, fd in enumerate(fds, 3): os.dup2(fd, number, inheritable=True)\n"
            "for fd in fds: os.close(fd)\n"
            "os.closerange(3 + len(fds), 100)\n"
            "os.environ['LISTEN_PID'] = str(os.getpid())\n"
            "os.execv(sys.argv[1], [sys.argv[1]])\n"
        )
        command = [sys.executable, "-c", code, str(BIN / "mtlshmd"), *map(str, fds)]
        self.process = subprocess.Popen(command, env=environment, pass_fds=fds, stdin=subprocess.DEVNULL)
        while "READY=1" not in self.hear():
            pass

    def hear(self) -> str:
        """Do as the next message says; returns it."""
        data, descriptors, _, _ = socket.recv_fds(self._socket, 4096, 1)
        words = dict(line.split("=", 1) for line in data.decode().splitlines())
        if "FDSTORE" in words:
            self.store[words["FDNAME"]] = descriptors[0]
            if words.get("FDPOLL") != "0":
                self._polled.add(words["FDNAME"])
        elif "FDSTOREREMOVE" in words:
            os.close(self.store.pop(words["FDNAME"]))
        return data.decode()

    def hear_all(self) -> None:
        """Do as all messages say that have come so far."""
        self._socket.setblocking(False)
        try:
            while True:
                self.hear()
        except BlockingIOError:
            self._socket.settimeout(DEADLINE)

    def set(self, **settings: str) -> None:
        """In the environment of the daemons to come."""
        self._environment |= settings

    def fill(self) -> None:
        """Let nothing more be told to it until it has heard what waits."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
            other.setblocking(False)
            other.connect(self._socket.getsockname())
            with suppress(BlockingIOError):
                while True:
                    other.send(b"STATUS=busy")

    def deaf(self) -> None:
        """From now on, whoever tells it something gets an error."""
        self._socket.close()

    def end(self, number: int) -> None:
        assert self.process
        self.process.send_signal(number)
        self.process.wait(DEADLINE)
        if self._socket.fileno() >= 0:
            self.hear_all()

    def close(self) -> None:
        if self.process and self.process.poll() is None:
            self.end(signal.SIGKILL)
        for fd in self.store.values():
            os.close(fd)
        self._socket.close()


@pytest.fixture
def service(segment: str, manager_socket: Path) -> Iterator[ServiceManager]:
    settings = {
        "MTLSHM_PATH": segment,
        "MTLSHMD_CONFIG": "/dev/null",
        "MTLSHMD_LEGACY": "off",
        "MTL_MANAGER_SOCK_PATH": str(manager_socket),
    }
    manager = ServiceManager(os.environ | settings, manager_socket.parent)
    yield manager
    manager.close()


@pytest.fixture
def connect(service: ServiceManager, manager_socket: Path) -> Iterator[Callable[..., Manager]]:
    service.start()
    opened: list[Manager] = []

    def run(dialect: Dialect = Dialect.A) -> Manager:
        opened.append(new := Manager(manager_socket, dialect=dialect, timeout=DEADLINE))
        new.register()
        return new

    yield run
    for each in opened:
        each.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("dialect", Dialect)
def test_own_claims_stay_granted_over_a_restart(service, connect, segment, number, dialect):
    manager, cpu = connect(dialect), min(os.sched_getaffinity(0))
    with Host(segment) as host, host.register("direct", parent=0) as me:
        me.claim(cpu)
        manager.get_lcore(cpu)
        service.end(number)
        service.start()
        with pytest.raises(MtlshmError, match="not held"):
            me.release(cpu)
        manager.put_lcore(cpu)
        assert me.lcores == {cpu}
        manager.get_lcore(cpu)
        manager.close()
        eventually(lambda: me.lcores == {cpu})
    eventually(lambda: not any(info.kind == Kind.SOCKET for info in look(segment).instances))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("dialect", Dialect)
def test_clients_notice_nothing_of_a_restart(service, connect, segment, number, dialect):
    manager = connect(dialect)
    manager.get_lcore(1)
    service.end(number)
    assert held(segment) == {1}
    # Asked while nobody is there to answer, and answered by the next.
    manager.socket.sendall(wire.encode(Type.HEARTBEAT, Heartbeat(9)))
    service.start()
    assert manager.receive() == (204, Response(9))
    with pytest.raises(OSError, match="GET_LCORE"):
        manager.get_lcore(1)
    manager.put_lcore(1)
    manager.get_lcore(0)
    assert held(segment) == {0}
    descriptor = manager.xsk_map_fd(3)
    assert (descriptor is not None) == (dialect is Dialect.A)
    if descriptor is not None:
        os.close(descriptor)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_lcore_ids_mean_the_same_cpus_after_a_restart(service, eal_process, segment, two_cpus, number):
    service.start()
    client = eal_process({1: two_cpus[0], 2: two_cpus[1]})
    assert [client.ask("get", 1), client.ask("get", 2), client.ask("put", 1)] == [0, 0, 0]
    for _ in range(2):
        service.end(number)
        service.start()
        assert client.ask("get", 1) == 0
        assert held(segment) == set(two_cpus)
        assert {lcore.number: lcore.id for lcore in look(segment).lcores} == {two_cpus[0]: 1, two_cpus[1]: 2}
        assert client.ask("put", 1) == 0
    client.process.kill()
    eventually(lambda: held(segment) == set())
    eventually(lambda: service.hear_all() or list(service.store) == ["listener"])


@pytest.mark.parametrize("left", [None, b"", b"[[1]]", b"17"])
def test_renamed_worker_stands_for_no_lcore_id_if_none_was_kept(service, eal_process, segment, two_cpus, left):
    service.start()
    cpu, lcore_id = two_cpus
    client = eal_process({lcore_id: cpu})
    assert client.ask("get", lcore_id) == 0
    assert held(segment) == {cpu}
    assert client.ask("put", lcore_id) == 0
    service.end(signal.SIGKILL)
    (kept,) = (name for name in service.store if name.startswith("lcores-"))
    if left is None:
        os.close(service.store.pop(kept))
    else:
        os.truncate(service.store[kept], 0)
        os.pwrite(service.store[kept], left, 0)
    service.start()
    assert client.ask("get", lcore_id) == -errno.EINVAL
    assert held(segment) == set()


@pytest.mark.skipif(os.geteuid() != 0, reason="not root; not tested: interfaces of clients over a restart")
def test_clients_notice_nothing_of_a_restart_at_their_interfaces(service, manager_socket, tmp_path):
    service.set(MTLSHMD_XDP="fused", MTLSHMD_STATE=str(tmp_path / "state"))
    with sandbox(), veth() as link:
        service.start()
        with Manager(manager_socket, timeout=DEADLINE) as manager:
            manager.register((link.index,))
            first = manager.get_queue(link.index)
            service.end(signal.SIGTERM)
            # Waits for the next daemon, which has to find out about the interface first.
            manager.socket.sendall(wire.encode(Type.IF_GET_QUEUE, wire.Interface(link.index)))
            service.start()
            assert manager.receive() == (202, Response(first + 1))
        service.end(signal.SIGTERM)


@pytest.mark.skipif(os.geteuid() != 0, reason="not root; not tested: a request that takes its time at a stop")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_slow_request_is_answered_by_this_daemon_or_the_next(service, stand_in, manager_socket, tmp_path, number):
    place = {name: os.environ[name] for name in ("PATH", "MTLSHM_ETHTOOL_STAND_IN")}
    service.set(MTLSHMD_XDP="fused", MTLSHMD_STATE=str(tmp_path / "state"), **place)
    with sandbox(), veth() as link:
        stand_in.set(link.name, combined=4, delay=0.5)
        service.start()
        with Manager(manager_socket, timeout=DEADLINE) as manager:
            manager.register((link.index,))
            flow = wire.Interface(link.index, 1, 0, 2, destination_port=20000)
            manager.socket.sendall(wire.encode(Type.IF_ADD_FLOW, flow) + wire.encode(Type.HEARTBEAT, Heartbeat(7)))
            with Ledger(tmp_path / "state", read_only=True) as ledger:
                eventually(ledger.flows)
            service.end(number)
            service.start()
            assert manager.receive() == (203, Response(1))
            assert manager.receive() == (204, Response(7))
            assert list(stand_in.rules(link.name)) == [1]
        eventually(lambda: stand_in.rules(link.name) == {})
        service.end(signal.SIGTERM)


@pytest.mark.skipif(os.geteuid() != 0, reason="not root; not tested: who comes while a daemon finishes its work")
def test_newcomer_during_finish_waits_for_the_next_daemon(service, stand_in, manager_socket, tmp_path):
    place = {name: os.environ[name] for name in ("PATH", "MTLSHM_ETHTOOL_STAND_IN")}
    service.set(MTLSHMD_XDP="fused", MTLSHMD_STATE=str(tmp_path / "state"), **place)
    with sandbox(), veth() as link:
        stand_in.set(link.name, combined=4, delay=1)
        service.start()
        with Manager(manager_socket, timeout=DEADLINE) as busy, ExitStack() as stack:
            busy.register((link.index,))
            flow = wire.Interface(link.index, 1, 0, 2, destination_port=20000)
            busy.socket.sendall(wire.encode(Type.IF_ADD_FLOW, flow))
            with Ledger(tmp_path / "state", read_only=True) as ledger:
                eventually(ledger.flows)
            service.process.send_signal(signal.SIGTERM)
            while "STOPPING=1" not in service.hear():
                pass
            late = stack.enter_context(Manager(manager_socket, timeout=DEADLINE))
            assert busy.receive() == (203, Response(1))
            service.process.wait(DEADLINE)
            service.hear_all()
            service.start()
            assert late.heartbeat(3) == 3
        service.end(signal.SIGTERM)


def test_new_clients_wait_for_the_next_daemon(service, connect, manager_socket):
    connect()
    service.end(signal.SIGTERM)
    with Manager(manager_socket, timeout=DEADLINE) as early:
        early.socket.sendall(wire.encode(Type.HEARTBEAT, Heartbeat(3)))
        service.start()
        assert early.receive() == (204, Response(3))


def test_direct_claim_and_grant_of_one_lcore_survive_a_restart(service, connect, segment):
    cpu = min(os.sched_getaffinity(0))
    manager = connect()
    with Host(segment) as host, host.register("direct") as me:
        me.claim(cpu)
        manager.get_lcore(cpu)
        service.end(signal.SIGKILL)
        service.start()
        manager.put_lcore(cpu)
        assert me.lcores == {cpu}
        manager.get_lcore(cpu)


def test_a_connection_that_ends_leaves_the_store(service, connect, segment):
    manager = connect()
    manager.get_lcore(1)
    service.hear_all()
    assert len(service.store) == 2  # and the listener
    manager.close()
    eventually(lambda: held(segment) == set())
    service.hear()
    assert list(service.store) == ["listener"]


def test_one_that_ended_meanwhile_is_given_up_though_its_process_lives(service, connect, segment):
    manager = connect()
    manager.get_lcore(1)
    service.end(signal.SIGKILL)
    manager.close()
    service.start()
    eventually(lambda: held(segment) == set())
    eventually(lambda: service.hear_all() or list(service.store) == ["listener"])


def test_store_forgets_a_connection_that_spoke_both_dialects(service, connect, segment):
    manager = connect(Dialect.A)
    manager.get_lcore(1)
    again = wire.Register(os.getpid(), os.getuid(), "vm", (), Dialect.B)
    assert manager.exchange(wire.encode(Type.REGISTER, again, Dialect.B)) == (201, Response(0))
    manager.close()
    eventually(lambda: held(segment) == set())
    service.hear_all()
    assert list(service.store) == ["listener"]


def test_one_that_died_meanwhile_is_collected(service, connect, segment, manager_socket):
    connect()
    code = (
        "import sys\nfrom mtlshm.manager_client import Manager\n"
        "manager = Manager(sys.argv[1])\nmanager.register()\nmanager.get_lcore(1)\nprint('up', flush=True)\n"
        "sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", code, str(manager_socket)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as client:
        assert client.stdout
        client.stdout.readline()
        service.end(signal.SIGKILL)
        client.kill()
        client.wait()
    service.start()
    eventually(lambda: held(segment) == set())


def test_clients_do_not_suffer_if_the_service_manager_does_not_listen(service, connect, segment):
    service.deaf()
    manager = connect()
    manager.get_lcore(1)
    manager.close()
    eventually(lambda: held(segment) == set())


def test_clients_do_not_wait_for_a_service_manager_that_does_not_read(service, connect, segment):
    first, passing = connect(), connect()
    service.hear_all()
    before = set(service.store)
    service.fill()
    manager = connect(Dialect.B)
    manager.get_lcore(1)
    passing.close()
    connect().close()
    first.get_lcore(0)
    eventually(lambda: len(look(segment).instances) == 3)  # with the daemon
    eventually(lambda: service.hear_all() or (len(service.store) == 3 and set(service.store) != before))
    service.end(signal.SIGKILL)
    service.start()
    assert manager.heartbeat(5) == first.heartbeat(5) == 5
    manager.put_lcore(1)
    service.fill()
    last = connect()
    assert service.process.poll() is None
    service.process.terminate()
    eventually(lambda: service.hear_all() or service.process.poll() is not None)
    service.hear_all()
    service.start()
    assert last.heartbeat(6) == 6


def test_foreign_descriptor_in_the_store_is_closed(service, connect, segment):
    connect()
    service.end(signal.SIGTERM)
    ours, theirs = socket.socketpair()
    with theirs:
        service.store["client-123-A"] = ours.detach()
        service.store["client-nonsense"] = os.open(os.devnull, os.O_RDONLY)
        service.start()
        assert theirs.recv(1) == b""


def test_settings_of_the_socket_change_with_a_restart(service, connect, segment, manager_socket):
    manager = connect()
    manager.get_lcore(1)
    service.end(signal.SIGTERM)
    with Manager(manager_socket, timeout=DEADLINE) as early:
        early.socket.sendall(wire.encode(Type.HEARTBEAT, Heartbeat(3)))
        elsewhere = manager_socket.with_name("elsewhere.sock")
        service.set(MTL_MANAGER_SOCK_PATH=str(elsewhere), MTLSHMD_SOCKET_MODE="0606")
        service.start()
        assert early.receive() == (204, Response(3))
    with Manager(elsewhere, timeout=DEADLINE) as late:
        late.register()
    assert elsewhere.stat().st_mode & 0o777 == 0o606
    with pytest.raises(ConnectionRefusedError):
        Manager(manager_socket)
    manager.put_lcore(1)
    assert held(segment) == set()
    service.end(signal.SIGTERM)
    service.set(MTLSHMD_SOCKET_MODE="0600")
    service.start()
    assert elsewhere.stat().st_mode & 0o777 == 0o600
    Manager(elsewhere, timeout=DEADLINE).close()


def test_a_socket_that_was_removed_is_there_again_after_a_restart(service, connect, manager_socket):
    connect()
    manager_socket.unlink()
    service.end(signal.SIGTERM)
    service.start()
    Manager(manager_socket, timeout=DEADLINE).close()


def test_taken_path_is_taken_back_after_its_owners_end(service, connect, manager_socket):
    manager = connect()
    service.end(signal.SIGTERM)
    manager_socket.unlink()
    with socket.socket(socket.AF_UNIX) as thief:
        thief.bind(str(manager_socket))
        thief.listen()
        service.start()
        assert manager.heartbeat(5) == 5
        service.hear_all()
        assert set(service.store) >= {"listener"}
        with pytest.raises(TimeoutError), Manager(manager_socket, timeout=0.1) as late:
            late.heartbeat()

    def is_served() -> bool:
        with suppress(OSError), Manager(manager_socket, timeout=DEADLINE) as late:
            return late.heartbeat(3) == 3
        return False

    eventually(is_served)
    service.end(signal.SIGTERM)
    service.start()
    assert is_served()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_clients_are_told_when_the_socket_is_no_longer_served(service, connect, tmp_path, number):
    manager = connect()
    service.end(number)
    (tmp_path / "config").write_text('socket = ""\n')
    service.set(MTLSHMD_CONFIG=str(tmp_path / "config"), MTL_MANAGER_SOCK_PATH="")  # as if it were not set
    service.start()
    assert manager.socket.recv(1) == b""
    service.hear_all()
    assert not service.store


# --- the watchdog --------------------------------------------------------------------------------------


def await_beat(service: ServiceManager, status: str) -> None:
    """Until it says so of what it serves."""
    while f"WATCHDOG=1\nSTATUS={status}" not in service.hear():
        pass


def test_the_watchdog_hears_that_the_loop_goes_round_and_what_is_served(service, connect, segment, manager_socket):
    service.end(signal.SIGTERM)
    service.set(WATCHDOG_USEC="400000")
    service.start()
    await_beat(service, "0 clients, 0 lcores held")
    manager = Manager(manager_socket, timeout=DEADLINE)
    manager.register()
    manager.get_lcore(1)
    await_beat(service, "1 client, 1 lcore held")
    with Host(segment) as host, host.register("direct", parent=0) as me:
        me.claim(0)
        await_beat(service, "2 clients, 2 lcores held")
    manager.close()
    await_beat(service, "0 clients, 0 lcores held")


def test_beats_that_nobody_hears_do_not_pile_up(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.setblocking(False)

        def heard() -> list[str]:
            messages = []
            with suppress(BlockingIOError):
                while True:
                    messages.append(listener.recv(4096).decode())
            return messages

        service = Service({"NOTIFY_SOCKET": str(tmp_path / "notify")})
        for number in range(5000):
            service.beat(f"WATCHDOG=1\nSTATUS={number}")
        assert 0 < len(heard()) < 5000
        service.beat("STATUS=again")
        service.close()
        assert heard() == ["STATUS=again"]


def test_without_a_watchdog_nothing_is_told_again_and_again(service, connect):
    """It would wake an idle daemon."""
    manager = connect()
    manager.get_lcore(1)
    service.end(signal.SIGTERM)
    heard = []
    original = service.hear

    def hear() -> str:
        heard.append(original())
        return heard[-1]

    service.hear = hear
    service.start()
    service.end(signal.SIGTERM)
    assert "READY=1\nSTATUS=1 client, 1 lcore held" in heard
    assert not any("WATCHDOG" in text for text in heard)
