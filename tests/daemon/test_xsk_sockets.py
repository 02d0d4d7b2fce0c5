# SPDX-License-Identifier: BSD-3-Clause
"""A client without capabilities gets AF_XDP sockets from the daemon."""

from __future__ import annotations

import errno
import mmap
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from threading import Thread

import pytest

from lab.interface_clients import PORT, programs
from lab.networks import NEAR4, Veth
from lab.processes import DEADLINE, UNPRIVILEGED, Daemon, as_user, eventually
from lab.refusals import refusal
from mtlshm import wire
from mtlshm.manager_client import Manager

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="not root; not tested: interfaces of clients")


ROOT = Path(__file__).parents[2]


StartDaemon = Callable[..., Daemon]


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
def test_unprivileged_client_of_another_network_namespace_receives_by_af_xdp(
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


def test_each_socket_has_a_queue_of_its_own(link_client: Callable[..., Manager], link: Veth) -> None:
    layout = (2048, 64, 64, 64, 64, 64)
    first, second = (
        link_client(),
        link_client(link.index + 1000, dialect=wire.Dialect.A),
    )  # which has not named the interface
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
    link_client: Callable[..., Manager], link: Veth, layout: tuple[int, ...], number: int
) -> None:
    manager = link_client()
    assert refusal(manager.open_xsk, wire.OpenXsk(link.index, "", *layout)) == number
    assert manager.get_queue(link.index) == 1


def test_umem_kept_by_a_client_counts_against_its_limit(server: StartDaemon, manager_socket: Path, link: Veth) -> None:
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


def test_a_queue_that_is_still_bound_is_passed_by(link_client: Callable[..., Manager], link: Veth) -> None:
    """Who got a socket may keep it after its connection has ended; nobody can take it away."""
    layout = (2048, 64, 64, 64, 64, 0)
    first, second = link_client(), link_client()
    _, kept, memory = first.open_xsk(wire.OpenXsk(link.index, "", *layout))
    first.close()
    eventually(lambda: second.get_queue(link.index) == 1 or second.put_queue(link.index, 2))
    second.put_queue(link.index, 1)
    xsk, *descriptors = second.open_xsk(wire.OpenXsk(link.index, "", *layout))
    assert xsk.value == 2
    for descriptor in (kept, memory, *descriptors):
        os.close(descriptor)


def openers(daemon: Daemon) -> list[int]:
    """The process that opens sockets for it, if it runs."""
    return _children(daemon.pid)


def its_children(daemon: Daemon) -> list[int]:
    """The processes that each open one."""
    return [pid for opener in openers(daemon) for pid in _children(opener)]


def _children(parent: int) -> list[int]:
    with suppress(OSError):
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        return [int(pid) for pid in children if b"net/xsk.py" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    return []


@contextmanager
def stopped_opener(
    daemon: Daemon, manager: Manager, interface: int, who: Callable[[Daemon], list[int]] = openers
) -> Iterator[tuple[Thread, list[int], int]]:
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
        while len(answers) == before and not (found := who(daemon)):
            pass
        if found:
            with suppress(ProcessLookupError):
                os.kill(found[0], signal.SIGSTOP)
            if len(answers) == before and who(daemon) == found:
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
            assert not its_children(running)
            assert openers(running) == [opener]
        later.join()


@pytest.mark.parametrize("who", [openers, its_children])
def test_an_opener_that_is_killed_costs_one_answer_and_no_queue(
    server: StartDaemon, manager_socket: Path, link: Veth, who: Callable[[Daemon], list[int]]
) -> None:
    running = server()
    with Manager(manager_socket, timeout=DEADLINE) as manager:
        manager.register((link.index,))
        with stopped_opener(running, manager, link.index, who) as (asking, answers, opener):
            os.kill(opener, signal.SIGKILL)
            asking.join()
            assert answers[-1] == -errno.EIO
        assert manager.get_queue(link.index) == 1
        manager.put_queue(link.index, 1)
        answer, *descriptors = manager.open_xsk(wire.OpenXsk(link.index, "", 2048, 64, 64, 64, 64, 0))
        assert answer.value > 0
        for descriptor in descriptors:
            os.close(descriptor)
        eventually(lambda: not its_children(running))


def test_an_interface_that_is_not_there_has_no_sockets(link_client: Callable[..., Manager], link: Veth) -> None:
    manager = link_client()
    for index, name in ((link.index + 1000, ""), (0, "nowhere"), (0, "")):
        assert refusal(manager.open_xsk, wire.OpenXsk(index, name, 2048, 64, 64, 64, 64, 0)) == errno.ENODEV
