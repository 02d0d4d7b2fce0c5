# SPDX-License-Identifier: BSD-3-Clause
"""Whom C lets in and registers, whom it hands over to Python, and that what they had is gone with them."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path

import pytest

from lab.processes import DEADLINE, UNPRIVILEGED, as_user, eventually, held, look, needs_root
from mtlshm import CpuSet, Host, Kind, LcoreType, wire
from mtlshm._core import lib
from mtlshm.daemon.reception import Newcomer, Reception
from mtlshm.daemon.selector import Selector
from mtlshm.manager_client import Manager
from mtlshm.wire import Dialect, Heartbeat, Lcore, Register, Response, Type

CPU = min(os.sched_getaffinity(0))
OK = wire.encode(Type.RESPONSE, Response(0))


def register(dialect: Dialect = Dialect.A, hostname: str = "host", interfaces: tuple[int, ...] = ()) -> bytes:
    return wire.encode(Type.REGISTER, Register(1, 2, hostname, interfaces, dialect), dialect)


HEARTBEAT = wire.encode(Type.HEARTBEAT, Heartbeat(7))
GET = wire.encode(Type.GET_LCORE, Lcore(CPU))


class Place:
    """Where C lets clients in while run() is under way."""

    def __init__(self, host: Host, path: Path) -> None:
        self.host, self.path = host, path
        self.met: list[Newcomer] = []
        self.knocks = 0

    def run(self, what: Callable[[Reception], Coroutine[None, None, None]], gid: int = 0, may: bool = True) -> None:
        selector = Selector()

        async def work() -> None:
            loop = asyncio.get_running_loop()
            with socket.socket(socket.AF_UNIX) as listener:
                listener.setblocking(False)
                listener.bind(str(self.path))
                self.path.chmod(0o666)
                listener.listen()

                def knock() -> None:
                    self.knocks += 1
                    loop.remove_reader(listener)

                reception = Reception(self.host, gid, may, selector, self.met.append)
                loop.add_reader(listener, knock)
                reception.lend(listener.fileno())
                try:
                    await what(reception)
                finally:
                    loop.remove_reader(listener)
                    reception.close()

        with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selector)) as runner:
            runner.run(work())

    async def ask(self, *requests: bytes, close: bool = True) -> tuple[socket.socket, list[bytes]]:
        """A client and what it is answered; as many replies are awaited as there are requests."""

        def talk() -> tuple[socket.socket, list[bytes]]:
            client = socket.socket(socket.AF_UNIX)
            client.settimeout(DEADLINE)
            client.connect(str(self.path))
            replies = []
            for request in requests:
                client.sendall(request)
                replies.append(client.recv(wire.SIZE, socket.MSG_WAITALL))
            if close:
                client.close()
            return client, replies

        return await asyncio.to_thread(talk)

    async def handed_over(self, request: bytes) -> Newcomer:
        """A client that says this and is Python's then, with all that it said in its socket."""
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(self.path))
        client.sendall(request)
        while not self.met:
            await asyncio.sleep(0)
        (newcomer,) = self.met
        assert newcomer.socket.recv(2 * wire.SIZE) == request
        client.close()
        return newcomer


@pytest.fixture
def place(host: Host) -> Iterator[Place]:
    with tempfile.TemporaryDirectory(prefix="mtlshm-test-") as directory:
        Path(directory).chmod(0o755)
        made = Place(host, Path(directory) / "socket")
        yield made
    for newcomer in made.met:
        newcomer.socket.close()
        if newcomer.peer and newcomer.peer.pidfd is not None:
            os.close(newcomer.peer.pidfd)


def clients(segment: str) -> list[tuple[int, str]]:
    return [(info.pid, info.hostname) for info in look(segment).instances if info.kind == Kind.SOCKET]


async def until(condition: Callable[[], bool]) -> None:
    await asyncio.to_thread(eventually, condition)


# --- whom C registers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", list(Dialect))
def test_a_client_may_come_ask_and_go_without_python(place: Place, segment: str, dialect: Dialect) -> None:
    async def come(_: Reception) -> None:
        await place.ask(register())
        await until(lambda: clients(segment) == [])
        before, registered = os.listdir("/proc/self/fd"), lib.session_counts.registered
        client, replies = await place.ask(HEARTBEAT, register(dialect), register(dialect), close=False)
        assert replies == [wire.encode(Type.HEARTBEAT_ACK, Heartbeat(7)), OK, OK]
        assert lib.session_counts.registered == registered + 2
        (info,) = [info for info in look(segment).instances if info.kind == Kind.SOCKET]
        comm = Path("/proc/self/comm").read_text().strip()
        assert (info.pid, info.uid, info.hostname, info.comm, info.label) == (
            *(os.getpid(), os.geteuid(), "host"),
            *(comm, comm),
        )
        pidfd = os.pidfd_open(os.getpid())
        assert info.pidfd_inode == os.fstat(pidfd).st_ino
        os.close(pidfd)
        client.close()
        await until(lambda: clients(segment) == [])
        assert len(os.listdir("/proc/self/fd")) == len(before)

    place.run(come)
    assert (place.met, place.knocks) == ([], 0)


def test_a_client_whose_pidfd_says_nothing_is_handed_over_unseen(place: Place) -> None:
    """As before Linux 6.9, where all have the same inode."""

    async def come(reception: Reception) -> None:
        pidfd = os.pidfd_open(os.getpid())
        reception.c.no_pidfs = os.fstat(pidfd).st_ino
        os.close(pidfd)
        assert (await place.handed_over(register())).peer is None

    place.run(come)


@pytest.mark.parametrize("dialect", list(Dialect))
def test_a_registered_client_is_handed_over_with_its_instance(place: Place, segment: str, dialect: Dialect) -> None:
    async def come(_: Reception) -> None:
        client, _replies = await place.ask(register(dialect), close=False)
        client.sendall(GET)
        while not place.met:
            await asyncio.sleep(0)
        client.close()

    place.run(come)
    (newcomer,) = place.met
    assert newcomer.socket.recv(2 * wire.SIZE) == GET
    assert newcomer.instance is not None
    assert newcomer.dialect is dialect
    assert newcomer.peer is not None
    assert newcomer.peer[:2] == (os.getpid(), os.geteuid())
    assert [info.owner for info in look(segment).instances] == [newcomer.instance.owner]
    newcomer.instance.unregister()


def test_what_dies_is_gone_though_its_child_keeps_the_socket(place: Place, segment: str) -> None:
    code = (
        "import os, sys\nfrom mtlshm.manager_client import Manager\n"
        "manager = Manager(sys.argv[1])\nmanager.register()\n"
        "os.set_inheritable(manager.socket.fileno(), True)\nprint(flush=True)\n"
        "if os.fork(): sys.stdin.read(1)\nelse: sys.stdin.read()\nos._exit(0)"
    )

    async def come(_: Reception) -> None:
        with subprocess.Popen(
            [sys.executable, "-c", code, str(place.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as process:
            assert process.stdin
            assert process.stdout
            assert await asyncio.to_thread(process.stdout.readline)
            assert len(clients(segment)) == 1
            process.kill()
            await until(lambda: clients(segment) == [])
            process.stdin.close()  # its child ends

    place.run(come)
    assert place.met == []


# --- whom it hands over -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "request_",
    [
        register(interfaces=(3,)),
        register()[:-1],
        register(hostname="h\u00f4st"),
        register(hostname="a\nb"),
        wire.encode(4711, None),
        b"HTTP" + register()[4:],
        GET,
    ],
    ids=["interfaces", "half", "letters", "line feed", "unknown", "no record", "get"],
)
def test_what_needs_thought_is_left_in_the_socket(place: Place, segment: str, request_: bytes) -> None:
    async def come(_: Reception) -> None:
        newcomer = await place.handed_over(request_)
        assert (newcomer.instance, newcomer.dialect) == (None, None)
        assert newcomer.peer is not None
        assert newcomer.peer.pid == os.getpid()

    place.run(come)
    assert clients(segment) == []


def test_while_something_is_leased_python_registers(place: Place) -> None:
    async def come(_: Reception) -> None:
        with place.host.register(cpus=[CPU]) as parent:
            parent.claim(CPU, LcoreType.LEASE)
            assert (await place.handed_over(register())).instance is None

    place.run(come)


def test_while_somebody_is_a_tenant_python_registers(place: Place) -> None:
    async def come(_: Reception) -> None:
        with place.host.register() as parent, place.host.register(parent=parent.owner):
            assert (await place.handed_over(register())).instance is None

    place.run(come)


def test_where_connections_are_kept_python_registers(place: Place) -> None:
    async def come(_: Reception) -> None:
        assert (await place.handed_over(register())).instance is None

    place.run(come, may=False)


@needs_root("clients that are not of the group")
@pytest.mark.parametrize(
    ("gid", "groups", "admitted"),
    [(4242, [], True), (4243, [7, 4242], True), (4243, [7], False)],
    ids=["group", "supplementary", "stranger"],
)
def test_strangers_are_handed_over_unseen(place: Place, gid: int, groups: list[int], admitted: bool) -> None:
    code = as_user(UNPRIVILEGED, gid, groups) + (
        "import socket, sys\nfrom mtlshm import wire\ns = socket.socket(socket.AF_UNIX)\ns.connect(sys.argv[1])\n"
        "print(flush=True)\nsys.stdin.read()"
    )

    async def come(_: Reception) -> None:
        with subprocess.Popen(
            [sys.executable, "-c", code, str(place.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as process:
            assert process.stdout
            assert await asyncio.to_thread(process.stdout.readline)
            while not (place.met or admitted):
                await asyncio.sleep(0)
            await place.ask(HEARTBEAT)  # by now it is known
            assert [newcomer.peer for newcomer in place.met] == ([] if admitted else [None])
            process.kill()

    place.run(come, gid=4242)


def test_all_are_handed_over_in_the_end(place: Place, segment: str) -> None:
    async def come(reception: Reception) -> None:
        asked = [await place.ask(register(), close=False), await place.ask(HEARTBEAT, close=False)]
        reception.empty()
        assert [newcomer.instance is not None for newcomer in place.met] == [True, False]
        for client, _ in asked:
            client.close()

    place.run(come)
    for newcomer in place.met:
        if newcomer.instance:
            newcomer.instance.unregister()
    assert clients(segment) == []


# --- a daemon ---------------------------------------------------------------------------------------------


LEASED = """
import os, sys
from mtlshm.manager_client import Manager
manager = Manager(sys.argv[1])
manager.register()
print(flush=True)
sys.stdin.readline()
manager.get_lcore(int(sys.argv[2]))
print(flush=True)
sys.stdin.read()
"""


def test_a_lease_is_found_before_the_first_lcore(
    daemon: Callable[..., object], manager_socket: Path, host: Host, segment: str
) -> None:
    """Though nothing was leased when the client registered."""
    daemon()
    with host.register(cpus=CpuSet([CPU])) as parent:
        command = [sys.executable, "-c", LEASED, str(manager_socket), str(CPU)]
        with subprocess.Popen(
            command,
            env=os.environ | {"MTLSHM_LEASE": parent.lease},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as client:
            assert client.stdin
            assert client.stdout
            assert client.stdout.readline()
            assert len(clients(segment)) == 1
            parent.claim(CPU, LcoreType.LEASE)
            client.stdin.write(b"\n")
            client.stdin.flush()
            assert client.stdout.readline()
            (tenant,) = [info for info in look(segment).instances if info.kind == Kind.SOCKET]
            assert tenant.parent == parent.owner
            assert CPU in tenant.lcores
            client.kill()
        eventually(lambda: clients(segment) == [])
        assert held(segment) == {CPU}  # it came home


def test_a_client_that_registered_may_go_on_with_all_else(connect: Callable[..., Manager], segment: str) -> None:
    first, second = connect(), connect(dialect=Dialect.B)
    first.get_lcore(CPU)
    assert held(segment) == {CPU}
    second.register()
    first.put_lcore(CPU)
    second.get_lcore(CPU)
    first.close()
    second.close()
    eventually(lambda: clients(segment) == [] and held(segment) == set())
