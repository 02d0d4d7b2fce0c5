# SPDX-License-Identifier: BSD-3-Clause
"""What those who mean harm can do to a daemon: users outside the group with what anyone may make or write, and members
with what they send and write into the segment.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import sysv_ipc

from lab.processes import (
    DEADLINE,
    UNPRIVILEGED,
    Daemon,
    Puppet,
    as_user,
    eventually,
    look,
    namespaces,
    needs_root,
    pid_inside,
)
from mtlshm import Host, Kind, wire
from mtlshm._core import ffi
from mtlshm.daemon import process
from mtlshm.legacy import LegacyError
from mtlshm.legacy.lock import LegacyLock
from mtlshm.legacy.table import LegacyTable
from mtlshm.manager_client import Manager

StartDaemon = Callable[..., Daemon]
StartPuppet = Callable[..., Puppet]
SO_PASSRIGHTS = 83  # asm-generic/socket.h


def descriptors_can_be_refused() -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.setsockopt(socket.SOL_SOCKET, SO_PASSRIGHTS, 0)
        except OSError:
            return False
    return True


def write_record(segment: str, owner: int, field: str, value: bytes) -> None:
    """As who may write the segment can: over a field of struct mtlshm_process, in the record of an owner."""
    offset = ffi.offsetof("struct mtlshm_segment", "instances", owner >> 8 & 0xFFF, "process", field)
    with open(segment, "r+b") as file:
        file.seek(offset)
        file.write(value)


# --- descriptors that clients pass -----------------------------------------------------------------------


@contextmanager
def lingering() -> Iterator[socket.socket]:
    """A connection with unsent data, which whoever closes it last has to wait for."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        with socket.create_connection(listener.getsockname()) as ours:
            other, _ = listener.accept()
            with other:
                ours.setblocking(False)
                with suppress(BlockingIOError):
                    while True:
                        ours.send(bytes(65536))
                ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 3600))
                yield ours


@pytest.mark.skipif(
    not descriptors_can_be_refused(),
    reason="needs Linux 6.16; before it this is not so: that a client cannot stop the daemon by a descriptor",
)
def test_nobody_waits_while_a_descriptor_is_closed_that_a_client_passed(
    daemon: StartDaemon, manager_socket: Path
) -> None:
    daemon()
    with Manager(manager_socket, timeout=DEADLINE) as other, Manager(manager_socket, timeout=DEADLINE) as evil:
        evil.heartbeat()
        with lingering() as connection:
            with suppress(PermissionError):
                socket.send_fds(evil.socket, [b"IMTL"], [connection.fileno()])
                connection.close()  # from now on the daemon's is the last
            assert other.heartbeat(7) == 7


def test_no_descriptor_that_clients_pass_stays_with_the_daemon(daemon: StartDaemon, manager_socket: Path) -> None:
    server = daemon()

    def opened() -> int:
        return len(os.listdir(f"/proc/{server.pid}/fd"))

    with Manager(manager_socket, timeout=DEADLINE) as manager, open(os.devnull) as null:
        manager.register()
        before = opened()
        for seq in range(100):
            with suppress(PermissionError):  # refused by the kernel
                socket.send_fds(manager.socket, [b"IM"], [null.fileno()] * 100)
                manager.socket.send(b"TL" + bytes(114))
                manager.receive()
            assert manager.heartbeat(seq) == seq
        assert opened() == before


# --- what anyone may make, where the daemon looks -----------------------------------------------------------


def lead_astray(lock: Path, to: Path) -> None:
    lock.symlink_to(to)


def make_directory(lock: Path, _: Path) -> None:
    lock.mkdir()


def make_fifo(lock: Path, _: Path) -> None:
    os.mkfifo(lock, 0o666)


def make_socket(lock: Path, _: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(lock))


@pytest.mark.parametrize("make", [lead_astray, make_directory, make_fifo, make_socket])
@pytest.mark.parametrize("there", [True, False])
def test_no_lock_file_misleads_or_stops_it(
    daemon: StartDaemon,
    legacy_place: dict[str, str],
    manager_socket: Path,
    puppet: StartPuppet,
    make: Callable[[Path, Path], None],
    there: bool,
) -> None:
    lock, target = manager_socket.with_name("lock"), manager_socket.with_name("target")
    if there:
        target.touch(mode=0o600)
    make(lock, target)
    server = daemon("--legacy", 1, environment=legacy_place | {"MTLSHM_LEGACY_LOCK": str(lock)})
    assert puppet().claim(5) == 0
    assert target.exists() == there
    assert not there or target.stat().st_mode & 0o777 == 0o600
    assert server.end(signal.SIGTERM) == 0


def test_a_legacy_table_of_any_size_does_not_eat_its_memory(
    daemon: StartDaemon, legacy_place: dict[str, str], puppet: StartPuppet
) -> None:
    key = int(legacy_place["MTLSHM_LEGACY_KEY"], 0)
    size = 4 + 176 * (1 << 23)  # 1.4 GiB, none of it written, as sysv_ipc would
    assert ctypes.CDLL(None).shmget(key, ctypes.c_size_t(size), sysv_ipc.IPC_CREX | 0o666) >= 0
    server = daemon("--legacy", 1, environment=legacy_place)
    assert "is no table of libmtl's" in server.log()
    assert puppet().claim(5) == 0


@needs_root("a legacy table of another user's")
def test_a_legacy_table_that_is_closed_to_it_is_said_and_all_else_is_served(
    daemon: StartDaemon, legacy_place: dict[str, str], segment: str, puppet: StartPuppet, manager_socket: Path
) -> None:
    """Who made the table may change its mode. Root is not asked for one."""
    puppet()
    os.chown(segment, UNPRIVILEGED, UNPRIVILEGED)
    lock = manager_socket.with_name("lock")  # in a directory where others may look
    lock.touch()
    lock.chmod(0o666)
    key = int(legacy_place["MTLSHM_LEGACY_KEY"], 0)
    memory = sysv_ipc.SharedMemory(key, sysv_ipc.IPC_CREX, mode=0o666, size=4 + 176 * 128, init_character=b"\0")
    try:
        code = as_user(UNPRIVILEGED, UNPRIVILEGED, []) + "mtlshm.daemon.app.main()"
        command = [sys.executable, "-c", code]
        environment = legacy_place | {"MTLSHM_LEGACY_LOCK": str(lock)}
        server = daemon("--legacy", 1, "--socket", "", command=command, environment=environment)
        memory.mode = 0o600
        os.close(os.open(lock, os.O_RDONLY))
        server.await_log("cannot look after the legacy table")
        assert puppet().claim(5) == 0
        assert server.end(signal.SIGTERM) == 0
    finally:
        memory.detach()


@needs_root("a segment that another user has made")
@pytest.mark.parametrize("member", [True, False])
def test_root_serves_no_table_that_an_outsider_has_made(
    daemon: StartDaemon, puppet: StartPuppet, segment: str, member: bool
) -> None:
    stranger = puppet(ready=False)
    stranger.become(12345, 12345)
    assert stranger.open(1) == 0
    if member:  # then he can give the group
        os.chown(segment, -1, UNPRIVILEGED)
    server = daemon("--socket-group", "nogroup", "--socket", "", ready=member)
    if not member:
        assert server.wait() == 1
        assert "uid 12345" in server.log()


def test_lock_files_that_were_replaced_are_not_watched_any_more(
    daemon: StartDaemon, legacy_place: dict[str, str], tmp_path: Path
) -> None:
    """Though who replaced them has kept them: watches are few, and the system's own are root's as well."""
    server = daemon("--legacy", 1, environment=legacy_place)
    lock = Path(legacy_place["MTLSHM_LEGACY_LOCK"])

    def watches() -> int:
        with suppress(FileNotFoundError):
            return sum(file.read_text().count("inotify wd") for file in Path(f"/proc/{server.pid}/fdinfo").iterdir())
        return 0

    def followed() -> bool:
        with suppress(FileNotFoundError):  # one that was closed this moment
            return any(os.path.samefile(file, lock) for file in Path(f"/proc/{server.pid}/fd").iterdir())
        return False

    before = watches()
    for n in range(10):
        os.link(lock, tmp_path / f"old-{n}")
        (tmp_path / "new").touch()
        os.rename(tmp_path / "new", lock)
        eventually(followed)
    eventually(lambda: watches() == before)


class Unlucky(LegacyLock):
    """Its file is replaced by somebody each time between the opening and the look at what stands there now."""

    def _open(self) -> int:
        fd = super()._open()
        if self.replaced < 100:
            self.replaced += 1
            new = self.path.with_name("new")
            new.touch()
            new.rename(self.path)
        return fd

    replaced = 0


def test_endless_replacing_of_the_lock_file_costs_few_opens(tmp_path: Path) -> None:
    lock = Unlucky(tmp_path / "lock", create=True)
    try:
        with pytest.raises(LegacyError, match="keeps replacing it"):
            lock.try_take()
        assert lock.replaced < 100
    finally:
        lock.close()


def test_endless_opening_of_the_lock_file_costs_few_looks(daemon: StartDaemon, legacy_place: dict[str, str]) -> None:
    """Each look reads the table, and costs the same system calls; there are to be fewer than fit one after another."""
    server = daemon("--legacy", 0, environment=legacy_place)

    def reads() -> int:
        return int(Path(f"/proc/{server.pid}/io").read_text().split("syscr: ")[1].split()[0])

    open_and_close(legacy_place)
    at_rest, before = time.monotonic(), reads()
    for _ in range(100_000):
        open_and_close(legacy_place)
    assert reads() - before < 20 + 4 * (time.monotonic() - at_rest) / 0.020


@needs_root("a user data base of the test's own")
def test_it_looks_up_no_users_that_others_name(
    daemon: StartDaemon, legacy_place: dict[str, str], legacy: StartPuppet, tmp_path: Path
) -> None:
    """Who answers that may be far away, and slow."""
    (tmp_path / "nss.c").write_text(
        "#include <nss.h>\n#include <pwd.h>\n#include <fcntl.h>\n"
        "enum nss_status _nss_tell_getpwnam_r(const char *name, struct passwd *user, char *b, size_t size, int *e)\n"
        f'{{ open("{tmp_path}/asked", O_CREAT | O_WRONLY, 0600); return NSS_STATUS_NOTFOUND; }}\n'
    )
    library = tmp_path / "libnss_tell.so.2"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, tmp_path / "nss.c"], check=True)
    (tmp_path / "nsswitch").write_text("passwd: files tell\ngroup: files\n")
    script = 'mount --bind "$0" /etc/nsswitch.conf && exec "$@"'
    prefix = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", script)
    settings = legacy_place | {"LD_LIBRARY_PATH": str(tmp_path)}
    server = daemon("--legacy", 1, environment=settings, prefix=(*prefix, str(tmp_path / "nsswitch")))
    legacy()
    write_entries(legacy_place, [("elsewhere", 1000)])
    server.await_log("is not seen from here")
    assert not (tmp_path / "asked").exists()


def write_entries(legacy_place: dict[str, str], names: list[tuple[str, int]]) -> None:
    """As anyone can, over the first entries of the legacy table: host names and PIDs. Then wake who looks."""
    key = legacy_place["MTLSHM_LEGACY_KEY"]
    memory = sysv_ipc.SharedMemory(int(key, 0))
    for lcore, (hostname, pid) in enumerate(names):
        entry = struct.pack("64s32s64s4xii?", hostname.encode(), b"nobody knows", b"entry", pid, 3, True)
        memory.write(entry, 4 + 176 * lcore)
    memory.detach()
    open_and_close(legacy_place)


def open_and_close(legacy_place: dict[str, str]) -> None:
    """The lock file, as each libmtl does."""
    os.close(os.open(legacy_place["MTLSHM_LEGACY_LOCK"], os.O_RDONLY))


def test_an_entry_that_names_a_thread_does_not_stop_it(
    daemon: StartDaemon, legacy_place: dict[str, str], legacy: StartPuppet, manager_socket: Path
) -> None:
    """Of one who is attached: a thread is no process, but looks like one in /proc."""
    server = daemon("--legacy", 1, environment=legacy_place)
    memory = sysv_ipc.SharedMemory(int(legacy_place["MTLSHM_LEGACY_KEY"], 0))
    ended = threading.Event()
    thread = threading.Thread(target=ended.wait)
    thread.start()
    try:
        assert thread.native_id
        write_entries(legacy_place, [(os.uname().nodename, thread.native_id)])
        with Manager(manager_socket, timeout=DEADLINE) as manager:
            assert manager.heartbeat(7) == 7
        assert legacy().claim(0) >= 0
        assert server.end(signal.SIGTERM) == 0
    finally:
        ended.set()
        thread.join()
        memory.detach()


def test_many_containers_and_many_entries_do_not_stop_it(
    daemon: StartDaemon, legacy_place: dict[str, str], legacy: StartPuppet, manager_socket: Path
) -> None:
    """Each entry could be that of any process with its PID, if that one's host has its name."""
    daemon("--legacy", 1, environment=legacy_place)
    for _ in range(64):
        assert pid_inside(legacy(prefix=namespaces("pid", "uts"))) == 1
    write_entries(legacy_place, [(f"host{n}", 1) for n in range(1024)])
    with Manager(manager_socket, timeout=DEADLINE) as manager:
        assert manager.heartbeat(7) == 7


def test_a_process_with_much_in_its_memory_does_not_stop_it(
    daemon: StartDaemon, legacy_place: dict[str, str], manager_socket: Path
) -> None:
    """What a process has in its memory tells whether it is attached, and the kernel takes long to say it."""
    daemon("--legacy", 1, environment=legacy_place)
    program = (
        "import ctypes, mmap\npages = 60000\nmemory = mmap.mmap(-1, 4096 * pages)\n"
        "address = ctypes.addressof(ctypes.c_char.from_buffer(memory))\n"
        "for page in range(0, pages, 2):\n"
        "    ctypes.CDLL(None).mprotect(ctypes.c_void_p(address + 4096 * page), 4096, mmap.PROT_READ)\n"
        "print(flush=True)\ninput()\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        write_entries(legacy_place, [(os.uname().nodename, process.pid)] * 1024)
        with Manager(manager_socket, timeout=DEADLINE) as manager:
            assert manager.heartbeat(7) == 7
        process.communicate(b"\n")


def test_a_memory_map_of_any_length_neither_stops_it_nor_eats_its_memory(
    daemon: StartDaemon, legacy_place: dict[str, str], legacy: StartPuppet, manager_socket: Path, long_maps: int
) -> None:
    server = daemon("--legacy", 0, environment=legacy_place)

    def peak() -> int:
        status = Path(f"/proc/{server.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0])

    process = legacy()
    before = peak()
    write_entries(legacy_place, [(os.uname().nodename, long_maps), ("elsewhere", 1)])
    with Manager(manager_socket, timeout=DEADLINE) as manager:
        assert manager.heartbeat(7) == 7
    eventually(lambda: process.reserved(1))
    assert peak() - before < 8192


def test_processes_that_share_their_memory_hide_nobody(
    daemon: StartDaemon, legacy_place: dict[str, str], legacy: StartPuppet
) -> None:
    """The kernel counts one attachment for them."""
    server = daemon("--legacy", 0, environment=legacy_place)
    process = legacy()
    other = process.share_memory()
    try:
        write_entries(legacy_place, [("elsewhere", 1)])
        eventually(lambda: process.reserved(0))
        assert "not seen" not in server.log()
    finally:
        os.kill(other, signal.SIGKILL)


SHM_HUGETLB, SHM_NORESERVE = 0o4000, 0o10000  # linux/shm.h


@needs_root("a legacy table of huge pages")
def test_legacy_table_without_memory_is_logged_and_others_are_served(
    daemon: StartDaemon, legacy_place: dict[str, str], puppet: StartPuppet
) -> None:
    if "HugePages_Free:        0" not in Path("/proc/meminfo").read_text():
        pytest.skip("huge pages are free here; not tested: a legacy table of huge pages that are not there")
    key = int(legacy_place["MTLSHM_LEGACY_KEY"], 0)
    kind = SHM_HUGETLB | SHM_NORESERVE | sysv_ipc.IPC_CREX | 0o666
    assert ctypes.CDLL(None).shmget(key, ctypes.c_size_t(4 + 176 * 128), kind) >= 0
    server = daemon("--legacy", 1, environment=legacy_place)
    assert "memory cannot be had" in server.log()
    assert puppet().claim(5) == 0
    assert server.end(signal.SIGTERM) == 0


def test_many_processes_in_the_legacy_table_keep_nobody_from_registering(
    daemon: StartDaemon, legacy_place: dict[str, str], legacy: StartPuppet, puppet: StartPuppet, segment: str
) -> None:
    """Each has a record of ours."""
    server = daemon("--legacy", 1, environment=legacy_place)
    parent = legacy()
    children = [parent.fork_child() for _ in range(300)]
    try:
        write_entries(legacy_place, [(os.uname().nodename, child) for child in children])
        server.await_log("cannot tell whose")
        for _ in range(2):
            write_entries(legacy_place, [])
            puppet()
        assert server.log().count("cannot tell whose") == 1
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
    eventually(lambda: not any(info.kind == Kind.LEGACY for info in look(segment).instances))


# --- what anyone may say of himself ------------------------------------------------------------------------


def test_no_name_forges_a_line_of_the_log(legacy_place: dict[str, str], tmp_path: Path) -> None:
    lie = "x\n2026-01-01 ERROR\x1b[2J"
    program = f"import ctypes\nctypes.CDLL(None).prctl(15, {lie.encode()!r}, 0, 0, 0)\nprint(flush=True)\ninput()\n"
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as liar:
        assert liar.stdout
        liar.stdout.readline()
        pidfd = os.pidfd_open(liar.pid)
        who = process.identify(pidfd, liar.pid, 0, "host", 0)
        os.close(pidfd)
        liar.communicate(b"\n")
    assert who.comm.startswith("x\N{REPLACEMENT CHARACTER}2026")
    assert who.label.isprintable()

    memory = sysv_ipc.SharedMemory(int(legacy_place["MTLSHM_LEGACY_KEY"], 0), sysv_ipc.IPC_CREX, size=4 + 176)
    name = lie.encode()
    memory.write(struct.pack("=i64s32s64s4xii?", 0, name, name, name, 1, 0, True))
    with LegacyTable(memory.key, create=False) as table:
        (entry,) = table.entries()
    memory.detach()
    assert entry
    assert (entry.hostname + entry.user + entry.comm).isprintable()


# --- what members may write into the segment -----------------------------------------------------------------


def test_it_starts_whatever_number_a_client_has_in_the_table(
    daemon: StartDaemon, manager_socket: Path, segment: str, legacy_place: dict[str, str]
) -> None:
    """The number of a thread: a forged one, or that of a dead client which the kernel has given out again."""
    first = daemon()
    ended = threading.Event()
    thread = threading.Thread(target=ended.wait, args=(DEADLINE,))
    thread.start()
    try:
        with Manager(manager_socket, timeout=DEADLINE) as manager:
            manager.register()
            manager.get_lcore(1)
            (client,) = [info for info in look(segment).instances if info.lcores]
            assert thread.native_id
            write_record(segment, client.owner, "pid", struct.pack("i", thread.native_id))
            first.kill()
        daemon("--legacy", 0, environment=legacy_place)
        with Host(segment) as host, host.register() as me:
            me.claim(1)  # it is nobody's: that process does not exist
    finally:
        ended.set()
        thread.join()


@needs_root("a privileged daemon, and a client of another user")
def test_forged_pids_in_the_table_get_no_signal(daemon: StartDaemon, puppet: StartPuppet, segment: str) -> None:
    server = daemon()
    victim = puppet(path=segment + ".other")
    try:
        liar = puppet()
        write_record(segment, liar.owner(), "pid", struct.pack("i", victim.pid))
        liar.kill()
        assert victim.running()
        server.end(signal.SIGTERM)
        assert victim.running()
    finally:
        os.unlink(segment + ".other")


# --- the log ---------------------------------------------------------------------------------------------


def test_log_is_bounded_and_counts_omissions(daemon: StartDaemon, manager_socket: Path) -> None:
    server = daemon()

    def lines() -> list[str]:
        return [line for line in server.log().splitlines() if "speaks something else" in line]

    for _ in range(1000):
        with Manager(manager_socket, timeout=DEADLINE) as evil:
            evil.socket.sendall(bytes(wire.SIZE))
            assert evil.socket.recv(1) == b""
    assert 30 <= len(lines()) < 1000
    assert lines()[29].endswith("(more like this one are left out for 60 s)")
    server.end(signal.SIGTERM)
    assert "what living instances hold stays theirs" in server.log()  # which is another kind of line
