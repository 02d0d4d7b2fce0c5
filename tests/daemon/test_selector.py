# SPDX-License-Identifier: BSD-3-Clause
"""What the event loop's selector answers in C, what it leaves to Python, and that neither waits for the other."""

from __future__ import annotations

import errno
import os
import select
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from selectors import EVENT_READ

import pytest
from inotify_simple import INotify, flags

from lab.processes import DEADLINE, Puppet, held, look
from mtlshm import Host, Kind, LcoreType, Process, wire
from mtlshm._core import lib
from mtlshm.daemon.grants import Grants
from mtlshm.daemon.selector import Death, Selector
from mtlshm.manager_client import Manager
from mtlshm.wire import Dialect, Heartbeat, Lcore, Register, Response, Type

CPU = min(os.sched_getaffinity(0))
ID = 7  # of an lcore that has another number


def record(kind: Type, body: wire.Body) -> bytes:
    return wire.encode(kind, body, Dialect.A)


def get(lcore_id: int) -> bytes:
    return record(Type.GET_LCORE, Lcore(lcore_id))


def put(lcore_id: int) -> bytes:
    return record(Type.PUT_LCORE, Lcore(lcore_id))


def response(value: int) -> bytes:
    return wire.encode(Type.RESPONSE, Response(value))


class Lent:
    """A registered session that is lent to a selector, and its client's socket."""

    def __init__(self, host: Host, selector: Selector) -> None:
        self.selector = selector
        self.client, self.socket = socket.socketpair()
        self.client.settimeout(DEADLINE)
        self.socket.setblocking(False)
        who = Process(os.getpid(), 0, 0, 0, os.getuid(), "client", "host", "client")
        self.instance = host.register_proxy(Kind.SOCKET, who)
        self.grants = Grants(host)
        self.grants.allow(self.instance, [(CPU, CPU), (ID, CPU)])
        self.lend()

    def lend(self) -> None:
        self.selector.register(self.socket, EVENT_READ)
        self.selector.lend(self.socket.fileno(), self.grants)

    def ask(self, request: bytes) -> bytes | None:
        """C's answer; None if it has left the request to Python, where it was."""
        self.client.sendall(request)
        told = self.selector.select(0)
        if not told:
            return self.client.recv(wire.SIZE)
        assert [key.fileobj for key, _ in told] == [self.socket]
        assert self.socket.recv(2 * wire.SIZE) == request
        return None


@pytest.fixture
def selector() -> Iterator[Selector]:
    with Selector() as made:
        yield made


@pytest.fixture
def lent(host: Host, selector: Selector) -> Iterator[Lent]:
    made = Lent(host, selector)
    yield made
    made.client.close()
    made.socket.close()


# --- who answers what -------------------------------------------------------------------------------------


def test_c_grants_and_takes_back(lent: Lent, segment: str) -> None:
    assert lent.ask(get(CPU)) == response(0)
    assert [(lcore.number, lcore.type) for lcore in look(segment).lcores] == [(CPU, LcoreType.SCH)]
    assert CPU in lent.grants
    assert lent.ask(get(CPU)) == response(-errno.EBUSY)
    assert lent.ask(put(CPU)) == response(0)
    assert lent.ask(put(CPU)) == response(-errno.EINVAL)
    assert held(segment) == set()


def test_c_notes_an_id_that_is_not_the_cpu(lent: Lent, segment: str) -> None:
    assert lent.ask(get(ID)) == response(0)
    assert [(lcore.id, lcore.number) for lcore in look(segment).lcores] == [(ID, CPU)]
    assert lent.ask(put(ID)) == response(0)


def test_c_answers_heartbeats_before_register(lent: Lent) -> None:
    lent.grants.allow(None, None)
    reply = lent.ask(record(Type.HEARTBEAT, Heartbeat(0xFFFFFFFE)))
    assert reply == wire.encode(Type.HEARTBEAT_ACK, Heartbeat(0xFFFFFFFE))


@pytest.mark.parametrize("lcore_id", [CPU + 1, lib.SESSION_IDS - 1, lib.SESSION_IDS, 65535])
def test_an_id_that_is_not_known_is_left_to_python(lent: Lent, lcore_id: int) -> None:
    assert lent.ask(get(lcore_id)) is None


@pytest.mark.parametrize(
    "request_",
    [
        record(Type.REGISTER, Register(1, 0, "host", (), Dialect.A)),
        record(Type.IF_XSK_MAP_FD, wire.Interface(3)),
        wire.encode(4711, None),
        b"HTTP" + record(Type.HEARTBEAT, Heartbeat(1))[4:],
        get(CPU)[:1],
        get(CPU)[:-1],
    ],
    ids=["register", "map", "unknown", "no_record", "one_byte", "half"],
)
def test_all_else_is_left_to_python(lent: Lent, request_: bytes, segment: str) -> None:
    assert lent.ask(request_) is None
    assert held(segment) == set()


def test_nothing_can_be_given_back_before_register(lent: Lent) -> None:
    lent.grants.allow(None, None)
    assert lent.ask(put(CPU)) is None


def test_what_is_given_back_leaves_the_others(host: Host) -> None:
    grants = Grants(host)
    for number in 1, 2, 3:
        grants.hold(number, 10 + number)
    assert grants.drop(1) == 11
    assert grants.drop(1) is None
    assert sorted(grants) == [2, 3]
    assert [grants.drop(2), grants.drop(3), len(grants)] == [12, 13, 0]


def test_what_c_answers_is_counted(lent: Lent) -> None:
    def counted() -> list[int]:
        c = lib.session_counts
        return [c.heartbeats, c.granted, c.busy, c.given_back, c.invalid]

    for request, index in (
        (record(Type.HEARTBEAT, Heartbeat(1)), 0),
        (get(CPU), 1),
        (get(CPU), 2),
        (put(CPU), 3),
        (put(CPU), 4),
    ):
        before = counted()
        assert lent.ask(request)
        assert [now - then for now, then in zip(counted(), before, strict=True)] == [n == index for n in range(5)]


def test_what_others_hold_is_left_to_python(lent: Lent, host: Host) -> None:
    with host.register(cpus=[CPU], parent=0) as other:
        other.claim(CPU)
        assert lent.ask(get(CPU)) is None
    assert CPU not in lent.grants


def test_without_a_good_lease_c_grants_nothing_and_takes_back(lent: Lent, segment: str) -> None:
    assert lent.ask(get(CPU)) == response(0)
    lent.grants.allow(lent.instance, None)
    assert lent.ask(put(CPU)) == response(0)
    assert lent.ask(get(CPU)) is None
    assert held(segment) == set()


def test_what_an_operator_took_is_given_back_by_python(lent: Lent, host: Host) -> None:
    assert lent.ask(get(CPU)) == response(0)
    host.evict(CPU, lent.instance.owner)
    assert lent.ask(put(CPU)) is None
    assert lent.grants.drop(CPU) == CPU


def test_a_cpu_that_was_taken_and_granted_anew_is_held_once(lent: Lent, host: Host) -> None:
    assert lent.ask(get(CPU)) == response(0)
    host.evict(CPU, lent.instance.owner)
    assert lent.ask(get(ID)) == response(0)
    assert list(lent.grants) == [ID]


def test_the_end_of_a_client_is_told(lent: Lent) -> None:
    lent.client.close()
    assert [key.fileobj for key, _ in lent.selector.select(0)] == [lent.socket]
    assert lent.socket.recv(1) == b""


# --- deaths -----------------------------------------------------------------------------------------------


@pytest.fixture
def living() -> Iterator[subprocess.Popen[bytes]]:
    """A process that lives until its standard input is closed."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


@pytest.mark.parametrize("way", ["close", "reset", "process"])
def test_what_a_client_held_is_free_before_its_end_is_told(
    lent: Lent, living: subprocess.Popen[bytes], segment: str, way: str
) -> None:
    assert lent.ask(get(CPU)) == response(0)
    pidfd = os.pidfd_open(living.pid)
    lent.selector.register(pidfd, EVENT_READ)
    lent.selector.lend_process(pidfd, lent.grants)
    if way == "process":
        living.kill()
    else:
        if way == "reset":
            lent.socket.send(b"unread")
        lent.client.close()
    told = lent.selector.select(None)
    assert [key.fileobj for key, _ in told] == [pidfd if way == "process" else lent.socket]
    assert look(segment).instances == ()
    assert len(lent.grants) == 1  # for the log
    lent.selector.unregister(pidfd)
    os.close(pidfd)


def test_the_dead_are_collected_before_they_are_told(
    puppet: Callable[..., Puppet], host: Host, selector: Selector
) -> None:
    victim = puppet()
    assert victim.claim(CPU, 0) == 0
    (owner,) = host.owners()
    pidfd, death = os.pidfd_open(victim.pid), Death(host, owner)
    selector.register(pidfd, EVENT_READ)
    selector.lend_instance(pidfd, death)
    assert not death.met
    victim.kill()
    assert [key.fd for key, _ in selector.select(None)] == [pidfd]
    assert host.owners() == []
    assert death.met
    assert death.freed() == 1
    assert not death.met  # it is told once
    selector.unregister(pidfd)
    os.close(pidfd)


def test_what_inotify_saw_of_a_death_waits_for_the_pidfd(
    living: subprocess.Popen[bytes], selector: Selector, tmp_path: Path
) -> None:
    watched = tmp_path / "file"
    watched.touch()
    pidfd = os.pidfd_open(living.pid)
    with INotify(nonblocking=True) as inotify:
        inotify.add_watch(str(watched), flags.MODIFY)
        selector.register(inotify, EVENT_READ)
        selector.lend_segment(inotify.fileno())
        selector.register(pidfd, EVENT_READ)
        watched.write_text("x")
        assert selector.select(0) == []  # it waits for a moment
        living.kill()
        assert select.select([pidfd], [], [], DEADLINE)[0]
        assert [key.fd for key, _ in selector.select(None)] == [inotify.fileno(), pidfd]
        selector.unregister(pidfd)
        assert inotify.read()

        watched.write_text("y")
        assert [key.fd for key, _ in selector.select(None)] == [inotify.fileno()]  # nobody has died
        assert [key.fd for key, _ in selector.select(None)] == [inotify.fileno()]  # and nobody has read it
        inotify.read()
        assert selector.select(0.01) == []
        selector.unregister(inotify)
    os.close(pidfd)


def test_what_happened_together_is_told_together(selector: Selector, tmp_path: Path) -> None:
    """What inotify says, first: it is told no later than a signal that came after it."""
    (tmp_path / "file").touch()
    ours, theirs = socket.socketpair()
    with ours, theirs, INotify(nonblocking=True) as inotify:
        inotify.add_watch(str(tmp_path / "file"), flags.MODIFY)
        selector.register(inotify, EVENT_READ)
        selector.lend_segment(inotify.fileno())
        selector.register(ours, EVENT_READ)
        (tmp_path / "file").write_text("x")
        theirs.send(b"x")
        assert [key.fd for key, _ in selector.select(None)] == [inotify.fileno(), ours.fileno()]


def test_news_of_what_is_not_watched_any_more_are_not_told(selector: Selector, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with INotify(nonblocking=True) as inotify:
        inotify.add_watch(str(tmp_path / "file"), flags.MODIFY)
        selector.register(inotify, EVENT_READ)
        selector.lend_segment(inotify.fileno())
        (tmp_path / "file").write_text("x")
        assert selector.select(0) == []
        selector.unregister(inotify)
        assert selector.select(0.05) == []


# --- what is lent, and when -------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["unregister", "take_back"])
def test_what_is_not_lent_is_told(lent: Lent, way: str) -> None:
    if way == "unregister":
        lent.selector.unregister(lent.socket)
        lent.selector.register(lent.socket, EVENT_READ)
    else:
        lent.selector.take_back(lent.socket.fileno())
    assert lent.ask(get(CPU)) is None
    lent.selector.lend(lent.socket.fileno(), lent.grants)
    assert lent.ask(get(CPU)) == response(0)


def test_a_number_that_is_used_again_is_not_what_it_was(lent: Lent, segment: str) -> None:
    """Whose descriptor it is now has no part in the session."""
    number = lent.socket.fileno()
    lent.selector.unregister(lent.socket)
    lent.socket.close()
    ours, theirs = socket.socketpair()  # with the lowest numbers that are free
    with ours, theirs:
        again, other = (ours, theirs) if ours.fileno() == number else (theirs, ours)
        assert again.fileno() == number
        lent.selector.register(again, EVENT_READ)
        other.sendall(get(CPU))
        assert [key.fd for key, _ in lent.selector.select(0)] == [number]
        assert held(segment) == set()
        lent.selector.unregister(again)


def test_a_reply_that_finds_no_room_is_handed_over_once(lent: Lent) -> None:
    """Each request has one reply, whoever sends it."""
    heartbeat, sent = record(Type.HEARTBEAT, Heartbeat(5)), 0
    while True:
        lent.client.sendall(heartbeat)
        sent += 1
        if lent.selector.select(0):
            break
    unsent = lent.grants.unsent()
    assert unsent == wire.encode(Type.HEARTBEAT_ACK, Heartbeat(5))
    assert lent.grants.unsent() == b""
    with pytest.raises(BlockingIOError):  # its request is out of the socket
        lent.socket.recv(1)
    for _ in range(sent - 1):
        assert lent.client.recv(wire.SIZE) == unsent
    lent.client.setblocking(False)
    with pytest.raises(BlockingIOError):
        lent.client.recv(1)


def test_a_client_that_is_gone_over_its_reply_is_told(lent: Lent) -> None:
    lent.client.sendall(get(CPU) + put(CPU))
    lent.client.shutdown(socket.SHUT_RD)
    assert [key.fileobj for key, _ in lent.selector.select(1)] == [lent.socket]
    assert lent.grants.over


# --- nobody waits -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", ["time", "event"])
def test_requests_without_end_keep_nobody_waiting(host: Host, selector: Selector, stop: str) -> None:
    busy = [Lent(host, selector) for _ in range(3)]
    over = threading.Event()
    ours, theirs = socket.socketpair()
    selector.register(ours, EVENT_READ)

    def ask_always(client: socket.socket) -> None:
        heartbeat = record(Type.HEARTBEAT, Heartbeat(1)) * 20
        client.sendall(heartbeat)
        while not over.is_set():  # twenty wait at any time
            with suppress(TimeoutError):
                client.sendall(bytes(heartbeat[: len(client.recv(len(heartbeat)))]))

    threads = [threading.Thread(target=ask_always, args=(session.client,)) for session in busy]
    timer = threading.Timer(0.2, theirs.send, [b"x"])
    for session in busy:
        session.client.settimeout(0.1)
    for thread in threads:
        thread.start()
    if stop == "event":
        timer.start()
    told = selector.select(0.2 if stop == "time" else None)
    over.set()
    for thread in threads:
        thread.join()
    assert [key.fileobj for key, _ in told] == ([] if stop == "time" else [ours])
    for each in *(end for session in busy for end in (session.client, session.socket)), ours, theirs:
        each.close()


# --- a daemon ---------------------------------------------------------------------------------------------


def test_a_record_may_begin_with_one_and_end_with_the_other(connect, segment: str) -> None:
    """C has whole records, Python those in pieces; what one of them grants the other takes back."""
    manager = connect()

    def in_pieces(request: bytes) -> bytes:
        cuts = [0, 1, 40, wire.SIZE]
        for seq, (start, end) in enumerate(pairwise(cuts)):
            manager.socket.sendall(request[start:end])
            other.heartbeat(seq)  # by now it has been taken out
        return manager.socket.recv(wire.SIZE, socket.MSG_WAITALL)

    def whole(request: bytes) -> bytes:
        manager.socket.sendall(request)
        return manager.socket.recv(wire.SIZE, socket.MSG_WAITALL)

    other = connect()
    assert whole(get(CPU)) == response(0)  # by Python, which looks up what its ids mean
    for first in in_pieces, whole:
        for second in in_pieces, whole:
            assert first(put(CPU)) == response(0)
            assert held(segment) == set()
            assert second(put(CPU)) == response(-errno.EINVAL)
            assert second(get(CPU)) == response(0)
            assert held(segment) == {CPU}
            assert first(get(CPU)) == response(-errno.EBUSY)


def test_who_does_the_worst_to_it_starves_nobody(connect, manager_socket) -> None:
    """Hang-ups, pieces, bytes out of band, floods, and connections whose numbers are used again at once."""
    good = connect()
    good.get_lcore(CPU)
    over = threading.Event()
    halves = [Manager(manager_socket, timeout=DEADLINE) for _ in range(4)]

    def come_and_go() -> None:
        while not over.is_set():
            with suppress(OSError), Manager(manager_socket, timeout=DEADLINE) as bad:
                bad.socket.sendall(get(CPU) * 3 + record(Type.HEARTBEAT, Heartbeat(1))[:50])

    def hang_up() -> None:
        while not over.is_set():
            with suppress(OSError), Manager(manager_socket, timeout=DEADLINE) as bad:
                bad.heartbeat()
                bad.socket.sendall(put(CPU) * 20)
                bad.socket.shutdown(socket.SHUT_RDWR)

    def speak_out_of_band() -> None:
        while not over.is_set():
            with suppress(OSError), Manager(manager_socket, timeout=DEADLINE) as bad:
                heartbeat = record(Type.HEARTBEAT, Heartbeat(2))
                for at in range(0, wire.SIZE, 10):
                    bad.socket.send(heartbeat[at : at + 9])
                    bad.socket.send(heartbeat[at + 9 : at + 10] or b"?", socket.MSG_OOB)
                bad.receive()

    def never_read() -> None:
        with suppress(OSError), Manager(manager_socket, timeout=0.05) as bad:
            while not over.is_set():
                with suppress(TimeoutError):
                    bad.socket.send(record(Type.HEARTBEAT, Heartbeat(3)) * 10)

    threads = [threading.Thread(target=each) for each in (come_and_go, hang_up, speak_out_of_band, never_read)]
    for thread in threads:
        thread.start()
    for half in halves:
        half.socket.sendall(get(CPU)[:100])
    try:
        for seq in range(300):
            good.put_lcore(CPU)
            good.get_lcore(CPU)
            assert good.heartbeat(seq) == seq
    finally:
        over.set()
        for thread in threads:
            thread.join(DEADLINE)
        for half in halves:
            half.close()
    assert not any(thread.is_alive() for thread in threads)
