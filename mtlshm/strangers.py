# SPDX-License-Identifier: BSD-3-Clause
"""Facts about foreign processes, read within limits of bytes and of CPU time.

A process decides how long its files in /proc are, and how long it takes to read them: each mapping prints its path, of
up to 4,096 characters, and there may be 65,530 mappings. So everything here has a limit. A file that is not finished
within its limit counts as not seen. One thing escapes the limits: a kernel that does not return from one read(). So a
process that must not wait lets a child ask (daemon/observer.py). The child runs this file as a program: it reads one
question a line on standard input, and writes one answer a line on standard output, both JSON. It needs only the
standard library, and starts quickly.

FAIR. A process with long files must not use up the time of all others. So first each process is looked at for a short
time, and only then those that need more.
"""

from __future__ import annotations

import errno
import json
import os
import platform
import re
import resource
import select
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cache, cmp_to_key
from io import RawIOBase
from itertools import islice
from typing import Any

_PIECE = 65536  # bytes; the kernel gives a page at a time, or one line that is longer
_QUICK, _THOROUGH = (1 << 20, 0.05), (8 << 20, 0.5)  # bytes and seconds for one process
_MOST = 1024  # processes in one answer
_TASKS = 4  # of them, until one is found that has memory
_KCMP = {"x86_64": 312, "aarch64": 272, "riscv64": 272, "i686": 349, "armv7l": 378, "ppc64le": 354, "s390x": 343}
_KCMP_VM = 1  # linux/kcmp.h
_CLONE_NEWUTS = 0x04000000  # linux/sched.h
_GONE = (FileNotFoundError, ProcessLookupError, PermissionError)  # or not ours to see
_MEMORY = 256 << 20  # bytes, of a process that runs this
_LONGEST = 256  # bytes of a variable
TOO_LONG = "it is too long"


class Unfinished(Exception):
    """There is more than there was time for."""


class _Limit:
    def __init__(self, size: int, until: float) -> None:
        self._left, self._until = size, until

    def spend(self, size: int = 0) -> None:
        self._left -= size
        if self._left < 0 or time.process_time() > self._until:
            raise Unfinished


def memory_map(pid: int) -> Iterator[bytes]:
    """/proc/PID/maps, in whole lines. Unfinished, or OSError."""
    return _pieces(f"/proc/{pid}/maps", _Limit(_THOROUGH[0], time.process_time() + _THOROUGH[1]))


def _pieces(path: str, limit: _Limit) -> Iterator[bytes]:
    """A file in whole lines, many at a time."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        rest = b""
        while piece := os.read(fd, _PIECE):
            limit.spend(len(piece))
            whole, end, rest = (rest + piece).rpartition(b"\n")
            yield whole + end
        yield rest
    finally:
        os.close(fd)


# --- who has a System V segment in its memory ------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Attached:
    """A process that has the segment in its memory."""

    pid: int
    inner_pid: int  # as it sees itself
    same_host: bool  # in our UTS namespace
    hostname: str | None  # there; None if we may not know
    pidfd_inode: int
    start_ticks: int


@dataclass(frozen=True, slots=True)
class Census:
    """Who is attached, as far as it was found out."""

    attached: tuple[Attached, ...] = ()
    mappings: int = 0  # how many attachments these are; if the kernel counts no more, they are all
    unfinished: tuple[int, ...] = ()  # PIDs of those for whom there was not enough time


@dataclass(frozen=True, slots=True)
class Segment:
    """A System V segment, as /proc/PID/maps has it. Anyone may have a file of that name and inode number, but not on
    that device, which is the kernel's own."""

    name: str
    device: str
    inode: int

    @classmethod
    def ours(cls, key: int, identifier: int) -> Segment:
        """One that we have attached. LookupError if that cannot be seen."""
        name = f"/SYSV{key & 0xFFFFFFFF:08x}"
        with suppress(*_GONE), open("/proc/self/maps", "rb") as maps:
            for line in maps:
                if name.encode() in line and int((fields := line.split(None, 5))[4]) == identifier:
                    return cls(name, fields[3].decode(), identifier)
        raise LookupError(f"System V segment {key:#x} is not to be seen in /proc/self/maps")

    def attachments(self, maps: bytes) -> int:
        """In whole lines of /proc/PID/maps."""
        if (name := self.name.encode()) not in maps:  # as it is in few
            return 0
        device, inode = self.device.encode(), b"%d" % self.inode
        rows = (line.split(None, 5) for line in maps.splitlines() if name in line)
        return sum(row[3] == device and row[4] == inode for row in rows)


def census(
    of: Segment,
    count: int,
    *,
    first: Iterable[int] = (),
    inner: Iterable[int] | None = None,
    whole: bool = True,
    without: Iterable[int] = (),
    seconds: float = 2.0,
    at: Callable[[int], object] = lambda pid: None,
) -> Census:
    """Who has it in its memory, of which the kernel counts `count`.

    Those with the PIDs `first` are looked at before all others; unless it shall be `whole`, the others are not looked
    at if all of the first have it. With `inner`, the answer names only the first and those whose own PID is one of
    these. `at` is told of each before it is looked at, and of 0 at the end.
    """
    looking = _Looking(of, count, set(without), time.process_time() + seconds, at)
    wanted = {pid for pid in first if pid > 0}
    looking.through(sorted(wanted), _QUICK)
    if whole or not wanted or not all(looking.has(pid) for pid in wanted):
        looking.through((int(name) for name in os.listdir("/proc") if name.isdecimal()), _QUICK)
        looking.through(list(looking.unfinished), _THOROUGH)
    at(0)
    return looking.result(wanted, None if inner is None else set(inner))


class _Looking:
    def __init__(self, of: Segment, count: int, without: set[int], until: float, at: Callable[[int], object]) -> None:
        self._segment, self._count, self._without, self._until, self._at = of, count, without, until, at
        self._done: set[int] = set()
        self._found: dict[int, tuple[Attached, int]] = {}  # with the number of its attachments
        self.unfinished: dict[int, None] = {}

    def through(self, pids: Iterable[int], each: tuple[int, float]) -> None:
        """Until time is up, or all are found."""
        for pid in pids:
            now = time.process_time()
            if now > self._until or self._complete():
                return
            if pid in self._done or pid in self._without:
                continue
            self._at(pid)
            try:
                found = self._look_at(pid, _Limit(each[0], min(now + each[1], self._until)))
            except Unfinished:
                self.unfinished[pid] = None
                continue
            except OSError:  # such as no descriptor left: that is no answer
                continue
            self._done.add(pid)
            self.unfinished.pop(pid, None)
            if found:
                self._found[pid] = found

    def has(self, pid: int) -> bool:
        """Is the process that has that PID here and for itself attached?"""
        found = self._found.get(pid)
        return found is not None and found[0].same_host and found[0].inner_pid == pid

    def result(self, first: set[int], inner: set[int] | None) -> Census:
        attached = [
            process
            for process, _ in self._found.values()
            if inner is None or process.pid in first or process.inner_pid in inner
        ]
        names = _hostnames([process.pid for process in attached if not process.same_host])
        named = (replace(process, hostname=names.get(process.pid, process.hostname)) for process in attached)
        return Census(tuple(named)[:_MOST], self._mappings() if len(attached) <= _MOST else -1, tuple(self.unfinished))

    def _complete(self) -> bool:
        enough = sum(number for _, number in self._found.values()) >= self._count
        return enough and self._mappings() >= self._count

    def _mappings(self) -> int:
        """Of all that were found; those who share their memory, as after clone(CLONE_VM), have the same ones."""
        pids = sorted(self._found, key=cmp_to_key(_compare_memory))
        distinct = [pid for n, pid in enumerate(pids) if n == 0 or _compare_memory(pids[n - 1], pid) != 0]
        return sum(self._found[pid][1] for pid in distinct)

    def _look_at(self, pid: int, limit: _Limit) -> tuple[Attached, int] | None:
        try:
            pidfd = os.pidfd_open(pid)
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
                raise
            return None  # gone, or a thread: anyone can write its number into an entry
        try:
            task, count = self._attachments(pid, limit)
            if count and _same_namespace(task, "ipc"):
                same_host = _same_namespace(task, "uts")
                found = Attached(
                    pid,
                    inner_pid(pidfd),
                    same_host,
                    os.uname().nodename if same_host else None,
                    os.fstat(pidfd).st_ino,
                    start_ticks(pid),
                )
                alive = not select.select([pidfd], [], [], 0)[0]  # else all that may have been read of a newcomer
                return (found, count) if alive else None
        except _GONE:
            pass
        finally:
            os.close(pidfd)
        return None

    def _attachments(self, pid: int, limit: _Limit) -> tuple[str, int]:
        tasks = [f"/proc/{pid}"]
        for task in tasks:
            count, empty = 0, True
            for maps in _pieces(f"{task}/maps", limit):
                count += self._segment.attachments(maps)
                empty = empty and not maps
            if not empty:
                return task, count
            if len(tasks) == 1:  # the main thread has ended: the others still have the memory
                with os.scandir(f"/proc/{pid}/task") as entries:
                    tasks += [entry.path for entry in islice(entries, _TASKS)]
        return tasks[0], 0


def _compare_memory(one: int, other: int) -> int:
    """-1, 0 or 1: an order of address spaces, by which only equal ones are equal, if the kernel tells it."""
    number = _KCMP.get(platform.machine())
    order = _libc().syscall(number, one, other, _KCMP_VM, 0, 0) if number else -1
    return {0: 0, 1: -1, 2: 1}.get(order, (one > other) - (one < other))


def inner_pid(pidfd: int) -> int:
    """The PID in the innermost namespace, from a file that is short, unlike /proc/PID/status."""
    with open(f"/proc/self/fdinfo/{pidfd}") as file:
        return next((int(line.split()[-1]) for line in file if line.startswith("NSpid:")), 0)


def start_ticks(pid: int) -> int:
    """When a process started, in clock ticks since boot."""  # not /proc/PID/stat, which adds up all threads
    return int(_stat(f"/proc/{pid}/task/{pid}")[22 - 1])


def _stat(task: str) -> list[bytes]:
    """The fields of proc(5) stat, of which the second may hold spaces."""
    with open(f"{task}/stat", "rb") as file:
        before, _, after = file.read().rpartition(b")")
    return [*before.split(b" ", 1), *after.split()]


def _same_namespace(task: str, name: str) -> bool:
    return os.stat(f"{task}/ns/{name}").st_ino == os.stat(f"/proc/self/ns/{name}").st_ino


def _hostnames(pids: list[int]) -> dict[int, str]:
    """Each one's in its UTS namespace, without those that we may not know. A thread looks, since whoever enters may
    have no way back; one for all, as anyone can make as many as he likes."""
    found: dict[int, str] = {}

    def look() -> None:
        for pid in pids:
            with suppress(OSError):  # gone, or not ours to see
                namespace = os.open(f"/proc/{pid}/ns/uts", os.O_RDONLY | os.O_CLOEXEC)
                try:
                    if _libc().setns(namespace, _CLONE_NEWUTS) == 0:
                        found[pid] = os.fsencode(os.uname().nodename).decode(errors="replace")
                finally:
                    os.close(namespace)

    if pids:
        import threading

        thread = threading.Thread(target=look)
        with suppress(RuntimeError):  # there can be no more threads on this host just now
            thread.start()
            thread.join()
    return found


@cache
def _libc() -> Any:
    import ctypes

    return ctypes.CDLL(None)


# --- the threads of a process ----------------------------------------------------------------------------------


def threads(pid: int, most: int, *, named: str, without: Iterable[int] = ()) -> list[tuple[str, list[int]]] | None:
    """Names and CPUs of those of its threads whose name matches `named`, in the order of their creation.

    None if there are more threads than `most`, or if not all can be seen.
    """
    found: list[tuple[str, list[int]]] = []
    pattern = re.compile(named)
    limit = _Limit(0, time.process_time() + _THOROUGH[1])
    try:
        if pid in without:
            raise Unfinished
        with os.scandir(f"/proc/{pid}/task") as entries:
            for number, entry in enumerate(entries):
                limit.spend()
                if number >= most:
                    raise Unfinished
                with suppress(FileNotFoundError, ProcessLookupError):  # it has ended
                    name = _comm(entry.path)
                    if pattern.match(name):
                        cpus = sorted(os.sched_getaffinity(int(entry.name)))
                        if _comm(entry.path) == name:  # else the number may be another's now
                            found.append((name, cpus))
    except (Unfinished, OSError):
        return None
    return found


def _comm(task: str) -> str:
    fd = os.open(f"{task}/comm", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 64).removesuffix(b"\n").decode(errors="replace")
    finally:
        os.close(fd)


# --- a process that registers ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Newcomer:
    """What is asked of it once."""

    start_ticks: int  # 0: unknown
    value: str | None = None  # of the variable; None: there is none
    unread: str = ""  # why not all of its environment could be read


def newcomer(pid: int, variable: str, *, most: int = _THOROUGH[0], without: Iterable[int] = ()) -> Newcomer:
    """When it started, and a variable of the environment that it was started with. Of several, the first counts, as for
    getenv(3)."""
    started = 0
    try:
        if pid in without:
            raise Unfinished
        started = start_ticks(pid)
        return Newcomer(started, _variable(pid, variable.encode(), most))
    except Unfinished:
        return Newcomer(started, unread=TOO_LONG)
    except OSError as error:
        return Newcomer(started, unread=os.strerror(error.errno or errno.EIO))


def _variable(pid: int, name: bytes, most: int) -> str | None:
    limit = _Limit(most, time.process_time() + _THOROUGH[1])
    with os.scandir(f"/proc/{pid}/task") as entries:  # the main thread may have ended: the others still have the memory
        tasks = [f"/proc/{pid}/task/{pid}", *(entry.path for entry in islice(entries, _TASKS))]
    for task in tasks:
        begin, end = (int(field) for field in _stat(task)[50 - 1 : 51])  # env_start, env_end
        with open(f"{task}/environ", "rb", buffering=0) as file:
            value, read = _search(file, b"\0" + name + b"=", limit)
        if value is None and read < end - begin:
            raise OSError(errno.EFAULT, "")  # a page of it is not there, or is a file's
        if value is not None or begin:
            return None if value is None else value.decode(errors="replace")
    raise OSError(errno.ESRCH, "")  # it has no memory any more


def _search(file: RawIOBase, wanted: bytes, limit: _Limit) -> tuple[bytes | None, int]:
    """What follows the first `wanted`, up to a NUL, and how much was read until then."""
    rest, length = b"\0", 0
    while piece := file.read(_PIECE):
        limit.spend(len(piece))
        length += len(piece)
        _, found, value = (rest + piece).partition(wanted)
        if found and (b"\0" in value or len(value) > _LONGEST):
            return value.partition(b"\0")[0][:_LONGEST], length
        rest = found + value if found else (rest + piece)[1 - len(wanted) :]
    return (rest.removeprefix(wanted) if rest.startswith(wanted) else None), length


# --- as a program ---------------------------------------------------------------------------------------------


def _answer(question: dict[str, Any], at: Callable[[int], object]) -> Any:
    what = question.pop("what")
    if what == "census":
        return asdict(census(Segment(**question.pop("of")), at=at, **question))
    if what == "newcomer":
        at(question["pid"])
        answer = newcomer(**question)
        at(0)
        return asdict(answer) | {"unfinished": [question["pid"]] * (answer.unread == TOO_LONG)}
    if what == "threads":
        at(question["pid"])
        found = threads(**question)
        at(0)
        return {"threads": found, "unfinished": [question["pid"]] if found is None else []}
    raise ValueError(what)


def _main() -> None:
    """Until standard input ends, or whoever started us does; an empty line says that we are ready.

    The argument is a descriptor, of a file that tells the PID that is being looked at.
    """
    place = int(sys.argv[1])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: whoever started us decides
    _libc().prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    def at(pid: int) -> None:
        os.pwrite(place, pid.to_bytes(4, "little"), 0)

    print(flush=True)
    for line in sys.stdin:
        print(json.dumps(_answer(json.loads(line), at)), flush=True)


if __name__ == "__main__":
    _main()
