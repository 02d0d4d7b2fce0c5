# SPDX-License-Identifier: BSD-3-Clause
"""What others may do to the interfaces and maps of a client: nothing."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from lab.interface_clients import PORT, flow, programs
from lab.networks import Veth
from lab.processes import DEADLINE, UNPRIVILEGED, Daemon, eventually, run_python
from lab.processes import look as look_at_segment
from mtlshm import Kind, wire
from mtlshm._core import ffi
from mtlshm.manager_client import Manager
from mtlshm.net.ledger import Ledger

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="not root; not tested: interfaces of clients")


StartDaemon = Callable[..., Daemon]


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
def test_forged_segment_gives_no_access_to_anothers_interface(
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
    link_client: Callable[..., Manager], manager_socket: Path, link: Veth
) -> None:
    """And never another descriptor of the daemon's, which has got the number of the map's since."""
    user = link_client()
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


def test_outsider_cannot_open_state_that_it_could_lock_or_change(
    link_client: Callable[..., Manager], manager_socket: Path, segment: str, tmp_path: Path
) -> None:
    link_client()
    os.chmod(tmp_path.parent, 0o755)
    os.chmod(tmp_path, 0o755)
    names = [segment, manager_socket, tmp_path / "state/serve.lock", tmp_path / "state/change.lock"]
    assert all(Path(name).exists() for name in names)
    assert (tmp_path / "state").stat().st_mode & 0o022 == 0
    assert run_python(OUTSIDER, *names, user=(UNPRIVILEGED, UNPRIVILEGED, [])) == ""
