# SPDX-License-Identifier: BSD-3-Clause
"""An unmodified libmtl gets what was claimed for it: by a parent, or by its own process."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from lab.processes import BIN, DEADLINE, Daemon, eventually, held, look, namespaces
from mtlshm import CpuSet, Host, Instance, Kind, LcoreType
from mtlshm.damage import glance
from mtlshm.manager_client import Manager
from mtlshm.strangers import TOO_LONG, newcomer

# As libmtl does: it registers, and for each scheduler asks for one lcore after the other until one is granted.
LIBMTL = """
import sys
from mtlshm.manager_client import Manager

segment, path, *words = sys.argv[1:]
if words[:1] == ["own"]:  # claimed by the process itself
    from mtlshm import Host
    host = Host(segment)
    me = host.register("direct")
    for word in words[1:]:
        me.claim(int(word))
manager = Manager(path, timeout=600)
manager.register()
print(flush=True)

def scheduler():
    for lcore in range(128):
        try:
            manager.get_lcore(lcore)
        except OSError:
            continue
        return lcore
    return -1

def number(call, *arguments):
    try:
        call(*arguments)
    except OSError as error:
        return -error.errno
    return 0

for line in sys.stdin:
    verb, *lcore = line.split()
    if verb == "scheduler":
        answer = scheduler()
    elif verb == "release":
        answer = number(me.release, int(lcore[0]))
    else:
        answer = number(getattr(manager, verb + "_lcore"), int(lcore[0]))
    print(answer, flush=True)
"""


class Libmtl:
    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen(command, text=True, env=environment, **pipes)
        self._answer()

    def _answer(self) -> str:
        assert self.process.stdout
        answer = self.process.stdout.readline()
        assert answer, "it is gone"
        return answer

    def ask(self, *words: object) -> int:
        print(*words, file=self.process.stdin, flush=True)
        return int(self._answer())

    def scheduler(self) -> int:
        return self.ask("scheduler")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(DEADLINE)


Start = Callable[..., Libmtl]


@pytest.fixture
def libmtl(segment: str, manager_socket: Path) -> Iterator[Start]:
    """Starts processes with a lease, or with none."""
    started: list[Libmtl] = []

    def start(lease: str | None, *words: str, prefix: tuple[str, ...] = (), **variables: str) -> Libmtl:
        environment = ({} if lease is None else {"MTLSHM_LEASE": lease}) | os.environ | variables
        command = [*prefix, sys.executable, "-c", LIBMTL, segment, str(manager_socket), *words]
        started.append(new := Libmtl(command, environment))
        return new

    yield start
    for each in started:
        with each.process:
            each.process.kill()


@pytest.fixture
def cpus() -> list[int]:
    found = sorted(os.sched_getaffinity(0))
    if len(found) < 2:
        pytest.skip("needs two CPUs; not tested otherwise: lcores leased to clients of the socket")
    return found


@pytest.fixture
def parent(host: Host) -> Instance:
    return host.register("parent", parent=0)


def lend(parent: Instance, *cpus: int) -> str:
    for cpu in cpus:
        parent.claim(cpu, LcoreType.LEASE)
    return parent.lease


def home(segment: str, parent: Instance, *cpus: int) -> bool:
    """Is it all with the parent, for tenants, and nobody else there?"""
    table = look(segment)
    words = {(lcore.number, lcore.owner.owner, lcore.type) for lcore in table.lcores}
    clients = any(info.kind == Kind.SOCKET for info in table.instances)
    return words == {(cpu, parent.owner, LcoreType.LEASE) for cpu in cpus} and not clients


@pytest.mark.parametrize("inside", [(), ("pid",)])
def test_schedulers_get_leased_lcores_only(
    daemon: Callable[..., Daemon],
    libmtl: Start,
    segment: str,
    parent: Instance,
    cpus: list[int],
    inside: tuple[str, ...],
) -> None:
    daemon()
    lease = lend(parent, *cpus)
    prefix = namespaces(*inside) if inside else ()
    first, second = libmtl(lease, prefix=prefix), libmtl(lease)
    assert [first.scheduler() for _ in cpus] == cpus
    assert first.scheduler() == second.scheduler() == -1
    assert first.ask("put", cpus[0]) == 0
    assert second.scheduler() == cpus[0]
    first.kill()
    second.kill()
    eventually(lambda: home(segment, parent, *cpus))


def test_processes_under_one_run_share_its_lcores_exactly(
    daemon: Callable[..., Daemon], libmtl: Start, segment: str, cpus: list[int]
) -> None:
    daemon()
    run = (str(BIN / "mtlshm-ctl"), "--segment", segment, "run", "--lcores", str(len(cpus)), "--")
    first = libmtl(None, prefix=run)
    (command,) = psutil.Process(first.process.pid).children()
    second, stranger = libmtl(command.environ()["MTLSHM_LEASE"]), libmtl(None)
    assert [first.scheduler() for _ in cpus] == cpus
    assert first.scheduler() == second.scheduler() == stranger.scheduler() == -1
    assert first.ask("put", cpus[0]) == 0
    assert stranger.scheduler() == -1
    assert second.scheduler() == cpus[0]
    command.kill()
    assert first.process.wait(DEADLINE) == 128 + signal.SIGKILL
    second.kill()
    eventually(lambda: held(segment) == set())


def test_tenant_gets_leased_and_stranger_free_lcores_only(
    daemon: Callable[..., Daemon], libmtl: Start, segment: str, parent: Instance, cpus: list[int]
) -> None:
    daemon()
    one = lend(parent, cpus[1])
    tenant, stranger = libmtl(one), libmtl(None)
    assert tenant.ask("get", cpus[0]) == -errno.EBUSY
    assert stranger.ask("get", cpus[1]) == -errno.EBUSY
    assert (tenant.scheduler(), tenant.scheduler()) == (cpus[1], -1)
    assert (stranger.scheduler(), stranger.scheduler()) == (cpus[0], -1)
    parent.release_all()
    parent.unregister()
    assert tenant.ask("put", cpus[1]) == 0
    eventually(lambda: held(segment) == {cpus[0]})


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_leases_outlast_the_daemon(
    daemon: Callable[..., Daemon],
    libmtl: Start,
    segment: str,
    parent: Instance,
    cpus: list[int],
    number: int,
) -> None:
    running = daemon()
    lease = lend(parent, *cpus)
    dying, living = libmtl(lease), libmtl(lease)
    assert (dying.scheduler(), living.scheduler()) == (cpus[0], cpus[1])
    running.end(number)
    dying.kill()
    daemon()
    third = libmtl(lease)
    eventually(lambda: third.scheduler() == cpus[0])
    assert third.scheduler() == -1
    living.kill()
    third.kill()
    eventually(lambda: home(segment, parent, *cpus))


def test_a_reservation_is_drawn_from_and_left_alone(
    daemon: Callable[..., Daemon],
    libmtl: Start,
    segment: str,
    host: Host,
    cpus: list[int],
    legacy_place: dict[str, str],
) -> None:
    made = host.reserve("test", len(cpus), cpus=cpus)
    assert not made.found
    for number in signal.SIGKILL, signal.SIGTERM:
        running = daemon(environment={"MTLSHMD_LEGACY": "1", **legacy_place})
        client = libmtl(host.lease(made.owner))
        assert [client.scheduler() for _ in [*cpus, 0]] == [*cpus, -1]
        running.end(number)
        client.kill()
    daemon(environment={"MTLSHMD_LEGACY": "1", **legacy_place})
    host.sweep()
    eventually(lambda: not any(info.kind == Kind.SOCKET for info in look(segment).instances))
    found = host.reservation("test")
    assert found
    assert (found.owner, found.lcores) == (made.owner, CpuSet(cpus))
    assert {(lcore.owner.owner, lcore.type) for lcore in look(segment).lcores} == {(made.owner, LcoreType.LEASE)}
    assert glance(segment) == []


# --- leases that are none -----------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["dead", "ended", "other", "nonsense"])
def test_client_with_an_invalid_lease_is_registered_and_gets_nothing(
    daemon: Callable[..., Daemon],
    libmtl: Start,
    segment: str,
    host: Host,
    cpus: list[int],
    tmp_path: Path,
    fault: str,
) -> None:
    running = daemon()
    with Host(tmp_path / "other") as elsewhere:
        match fault:
            case "dead":
                parent = host.register("parent", parent=0)
                lease, said = lend(parent, cpus[1]), "is gone"
                parent.unregister()
            case "ended":
                reservation = host.reserve("test", 1)
                lease, said = host.lease(reservation.owner), "is gone"
                host.end(reservation.owner)
            case "other":
                lease, said = lend(elsewhere.register("parent", parent=0)), "another segment"
            case _:
                lease, said = "1@2\nforged line", "is no lease"
        client = libmtl(lease)
        assert client.ask("get", cpus[0]) == -errno.ESRCH
        assert client.scheduler() == client.scheduler() == -1
    assert held(segment) == set()
    running.await_log(said)
    assert running.log().count("gets no lcore") == 1
    assert "\nforged" not in running.log()
    assert [info.parent for info in look(segment).instances if info.kind == Kind.SOCKET] == [0]


def test_client_keeps_its_lcores_and_gets_no_more_after_its_parents_end(
    daemon: Callable[..., Daemon], libmtl: Start, segment: str, parent: Instance, cpus: list[int]
) -> None:
    running = daemon()
    client = libmtl(lend(parent, *cpus))
    assert client.scheduler() == cpus[0]
    parent.unregister()
    assert client.scheduler() == -1
    assert held(segment) == {cpus[0]}
    assert running.log().count("gets no lcore") == 1


def test_empty_lease_counts_as_no_lease(daemon: Callable[..., Daemon], libmtl: Start, cpus: list[int]) -> None:
    daemon()
    assert libmtl("").scheduler() == cpus[0]


def test_the_first_lease_of_several_counts_wherever_it_is(
    daemon: Callable[..., Daemon], libmtl: Start, parent: Instance, cpus: list[int]
) -> None:
    daemon()
    lease = lend(parent, cpus[0])
    much = {f"MUCH_{n}": "x" * 130_000 for n in range(14)}
    client = libmtl(None, prefix=("env", "-i", *(f"{n}={v}" for n, v in much.items()), f"MTLSHM_LEASE={lease}"))
    assert (client.scheduler(), client.scheduler()) == (cpus[0], -1)


def test_unread_long_environment_is_not_taken_for_no_lease() -> None:
    much = {f"MUCH_{n}": "x" * 100_000 for n in range(4)}
    with subprocess.Popen(["sleep", "3600"], env=much | {"MTLSHM_LEASE": "1@2"}) as process:
        try:
            eventually(lambda: b"MUCH" in Path(f"/proc/{process.pid}/environ").read_bytes())
            assert newcomer(process.pid, "MTLSHM_LEASE").value == "1@2"
            found = newcomer(process.pid, "MTLSHM_LEASE", most=200_000)
            assert (found.value, found.unread) == (None, TOO_LONG)
            assert newcomer(process.pid, "MUCH_0", most=200_000).value == "x" * 256
        finally:
            process.kill()


def test_unreadable_environment_is_not_taken_for_no_lease(
    daemon: Callable[..., Daemon], libmtl: Start, segment: str, parent: Instance, cpus: list[int]
) -> None:
    running = daemon(prefix=namespaces("pid"))
    client = libmtl(lend(parent, cpus[1]))
    assert client.ask("get", cpus[0]) == client.ask("get", cpus[1]) == -errno.EACCES
    assert running.log().count("gets no lcore") == 1
    assert held(segment) == {cpus[1]}


# --- what its own process claimed ---------------------------------------------------------------------


def owners(segment: str) -> dict[int, tuple[Kind | int, LcoreType | int]]:
    return {lcore.number: (lcore.owner.kind, lcore.type) for lcore in look(segment).lcores}


def test_own_claims_are_granted_until_given_back(
    daemon: Callable[..., Daemon], libmtl: Start, segment: str, cpus: list[int]
) -> None:
    daemon()
    client = libmtl(None, "own", str(cpus[1]))
    assert (client.scheduler(), client.scheduler(), client.scheduler()) == (cpus[0], cpus[1], -1)
    assert owners(segment) == dict.fromkeys(cpus[:2], (Kind.SOCKET, LcoreType.SCH))
    itself = next(info for info in look(segment).instances if info.kind == Kind.SHM)
    assert {info.parent for info in look(segment).instances if info.kind == Kind.SOCKET} == {0, itself.owner}
    assert client.ask("release", cpus[1]) == -errno.EPERM
    assert client.ask("put", cpus[1]) == 0
    assert client.ask("put", cpus[1]) == -errno.EINVAL
    assert owners(segment)[cpus[1]] == (Kind.SHM, LcoreType.LEASE)
    assert len([info for info in look(segment).instances if info.kind == Kind.SOCKET]) == 1
    assert client.ask("release", cpus[1]) == 0
    assert held(segment) == {cpus[0]}


@pytest.mark.parametrize("restart", [False, True])
def test_when_it_dies_all_is_home(
    daemon: Callable[..., Daemon],
    libmtl: Start,
    segment: str,
    parent: Instance,
    cpus: list[int],
    restart: bool,
) -> None:
    running = daemon()
    lease = lend(parent, *cpus)
    client = libmtl(lease, "own", str(cpus[0]))
    assert [client.scheduler() for _ in [*cpus, 0]] == [*cpus, -1]
    if restart:
        running.end(signal.SIGKILL)
        daemon()
        sibling = libmtl(lease)
        assert sibling.scheduler() == -1
        sibling.kill()
    client.kill()
    eventually(lambda: home(segment, parent, *cpus))


def test_own_claims_are_granted_despite_an_invalid_lease(
    daemon: Callable[..., Daemon], libmtl: Start, segment: str, parent: Instance, cpus: list[int]
) -> None:
    running = daemon(prefix=namespaces("pid"))  # which sees nobody's environment
    lend(parent, cpus[0])
    client = libmtl(None, "own", str(cpus[1]))
    assert (client.scheduler(), client.scheduler()) == (cpus[1], -1)
    assert running.log().count("gets no lcore") == 1


# --- ill will -------------------------------------------------------------------------------------------

# Connects and hangs in execve(), since a file system of its own does not answer the close of a file. Then it has
# somebody else register for it, and prints the answer.
HANGS = """
import ctypes, os, socket, struct, sys, tempfile
path, request = sys.argv[1], bytes.fromhex(sys.argv[2])
libc = ctypes.CDLL(None, use_errno=True)
place = tempfile.mkdtemp()
device = os.open("/dev/fuse", os.O_RDWR)
options = f"fd={device},rootmode=40000,user_id=0,group_id=0".encode()
if libc.mount(b"test", place.encode(), b"fuse", 0, options):
    raise OSError(ctypes.get_errno(), "mount")
manager = socket.socket(socket.AF_UNIX)
child = os.fork()
if not child:
    os.close(device)
    libc.prctl(1, 9, 0, 0, 0)
    manager.connect(path)
    os.open(place + "/file", os.O_RDWR | os.O_CLOEXEC)
    os.execv("/bin/sleep", ["sleep", "3600"])
print(child, flush=True)

def attributes(node):
    mode = 0o40755 if node == 1 else 0o100666
    return struct.pack("<6Q10I", node, 0, 0, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)

INIT, LOOKUP, GETATTR, OPEN, FLUSH = 26, 1, 3, 14, 25
while True:
    data = os.read(device, 1 << 20)
    _, kind, unique, node = struct.unpack_from("<IIQQ", data)
    answers = {
        INIT: struct.pack("<4IHHIIHHI28x", 7, 31, 0, 0, 12, 10, 65536, 1, 0, 0, 0),
        LOOKUP: struct.pack("<4QII", 2, 1, 3600, 3600, 0, 0) + attributes(2),
        GETATTR: struct.pack("<QII", 3600, 0, 0) + attributes(node),
        OPEN: struct.pack("<QII", 1, 0, 0),
    }
    if kind == FLUSH:
        break
    if kind in answers:
        os.write(device, struct.pack("<IiQ", 16 + len(answers[kind]), 0, unique) + answers[kind])
print(flush=True)
manager.sendall(request)
print(int.from_bytes(manager.recv(118, socket.MSG_WAITALL)[12:16], "big", signed=True), flush=True)
sys.stdin.read()
"""


def can_mount_fuse() -> bool:
    return os.geteuid() == 0 and os.access("/dev/fuse", os.W_OK)


@pytest.mark.skipif(not can_mount_fuse(), reason="needs root and FUSE; not tested otherwise: clients that hang in exec")
def test_a_client_that_hangs_in_exec_stops_nobody(
    daemon: Callable[..., Daemon], manager_socket: Path, segment: str, cpus: list[int], parent: Instance
) -> None:
    daemon()
    lend(parent, cpus[1])
    with Manager(manager_socket, timeout=DEADLINE) as other:
        other.register()
        request: Any = bytes.fromhex("494d544c 00000065 6a000000".replace(" ", "")) + bytes(106)
        command = ["unshare", "--mount", sys.executable, "-c", HANGS, str(manager_socket), request.hex()]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with subprocess.Popen(command, text=True, **pipes) as process:
            assert process.stdout
            child = int(process.stdout.readline())
            try:
                assert process.stdout.readline() == "\n"
                other.get_lcore(cpus[0])
                other.heartbeat()
                with Manager(manager_socket, timeout=DEADLINE) as newcomer:
                    newcomer.register()
                assert int(process.stdout.readline()) == 0
            finally:
                with suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
                process.kill()
    eventually(lambda: home(segment, parent, cpus[1]))
