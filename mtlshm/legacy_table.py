# SPDX-License-Identifier: BSD-3-Clause
"""libmtl's legacy table: the System V segment and its lock file, by which MTL processes share lcores with no manager.

Only this module knows their layout and their rules, which are those of every libmtl out there:

  An entry is ACTIVE or not, and an active one names its owner by host name, user and PID, the latter as the owner
  sees itself. Whoever holds the file lock may write any entry. A process that wants an lcore takes the first that is
  not active; before it looks at an active one, it clears it if host name and user are its own and kill(pid, 0) fails.

  Who attaches when nobody else is attached zeroes the table; who detaches last removes it. So the table lasts exactly
  as long as somebody stays attached.

WHAT WE WRITE is a RESERVATION: an active entry that no process takes for its own. Its host name and user are none
that a host or a user has, and its PID is 0, for which kill() never fails.

WHO LIVES is not to be had from the entry, since PID and host name are those of the owner's container. But an owner is
attached for as long as it owns, and attached is what has the segment in its memory map (strangers.py). So each PID
namespace below ours is seen into, and a PID that has been given out again does not deceive. Containers use the same low
PIDs; of those attached with the right one, a container with another host name is not the owner's (our own host may
have been renamed, so there the name is not held against anybody). Where the kernel counts more attachments than we
find, somebody is hidden from us, and then an entry whose owner was not found is not taken for dead.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType

import sysv_ipc

from mtlshm.errors import MtlshmError
from mtlshm.snapshot import printable
from mtlshm.strangers import Attached, Segment, census

DEFAULT_LOCK = Path("/tmp/kahawai_lcore.lock")

# int used; then the entries. Native byte order and alignment, as in any C program on this machine.
_FIRST = 4
_ENTRY = struct.Struct("64s32s64s4xii?3x")
_NAMES = struct.Struct("64s32s64s4xii")  # an entry without `active`
_ACTIVE = _NAMES.size
# Enough for every build: a libmtl whose RTE_MAX_LCORE (usually 128) is smaller may attach, one with a larger may not.
_ENTRIES = 1024
_MOST_ENTRIES = 4096  # anyone may make the table, and each look goes through all of it

_HOSTNAME, _USER = b"[mtlshm]", b"[mtlshmd]"  # of reservations
_RESERVED, _RECLAIMED = b"reserved", b"reclaimed"
_APP_ALLOCATED = 3

_DESTROYED = 0o1000  # SHM_DEST, linux/shm.h: removed, but somebody is attached
_FLOCK = struct.Struct("hhqqi4x")  # struct flock of fcntl(2)
_LOCK_RETRY = 0.01  # seconds
_TRIES = 4  # anyone may replace the lock file while it is opened, as often as he likes


def default_key() -> int:
    """As every libmtl computes it."""
    return int(sysv_ipc.ftok(os.devnull, 21, silence_warning=True))


class LegacyError(MtlshmError):
    """The legacy table cannot be used; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One lcore that is active in the legacy table."""

    hostname: str
    user: str
    comm: str
    pid: int  # as the process sees itself
    type: int  # LcoreType, if it is sound

    @property
    def owner(self) -> tuple[str, str, int]:
        """Names the process among those who hold entries."""
        return self.hostname, self.user, self.pid

    @property
    def reserved(self) -> bool:
        """Is it ours: not to be had by legacy processes?"""
        return self.hostname == RESERVATION.hostname

    @property
    def reclaimed(self) -> bool:
        """Reserved by an operator, who does not want it lent?"""
        return self.reserved and self.comm == _RECLAIMED.decode()


_RESERVATION = _NAMES.pack(_HOSTNAME, _USER, _RESERVED, 0, _APP_ALLOCATED)
RESERVATION = Entry(_HOSTNAME.decode(), _USER.decode(), _RESERVED.decode(), 0, _APP_ALLOCATED)


class LegacyLock:
    """The lock file, kept open: what each libmtl opens, locks and closes for whatever it does with the table.

    It is found anew whenever somebody has replaced it; made, if it shall be. Never closed and opened in between: who
    watches the file would be woken by himself.
    """

    def __init__(self, path: Path, *, create: bool) -> None:
        self.path = path
        self._create = create
        self._fd = -1

    def reopen(self) -> None:
        """Open what is at the path now, if it is another file than before. EAGAIN if it changes all the time."""
        if self._fd >= 0 and self._current():
            return
        try:
            for _ in range(_TRIES):
                fd = self._open()
                self.close()
                self._fd = fd
                if self._current():
                    return
        except OSError as error:
            raise LegacyError(error.errno or errno.EIO, f"lock file {self.path}: {error.strerror}") from error
        raise self._replaced()

    def _replaced(self) -> LegacyError:
        return LegacyError(errno.EAGAIN, f"lock file {self.path}: some process keeps replacing it")

    def _current(self) -> bool:
        with suppress(OSError):  # such as a link in its place, which may lead to a file system that does not answer
            return os.path.samestat(os.fstat(self._fd), os.lstat(self.path))
        return False

    def _open(self) -> int:
        flags = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        for _ in range(_TRIES):
            # Without O_CREAT first: fs.protected_regular forbids that for a file of another user's.
            with suppress(FileNotFoundError):
                try:
                    return os.open(self.path, flags | os.O_RDWR)
                except PermissionError:  # made with a mode that a umask had trimmed; flock() needs no more than this
                    return os.open(self.path, flags | os.O_RDONLY)
            if not self._create:
                raise FileNotFoundError(errno.ENOENT, "there is none, so no legacy process or daemon has run")
            with suppress(FileExistsError):
                fd = os.open(self.path, flags | os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
                os.fchmod(fd, 0o666)  # the umask trims
                return fd
        raise self._replaced()

    def try_take(self) -> bool:
        """Take the lock, unless somebody has it."""
        for _ in range(_TRIES):
            self.reopen()
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            if self._current():
                return True
        raise self._replaced()

    def be_the_only_daemon(self) -> None:
        """Of all those that lend lcores to the table; until the file is closed."""
        lock = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0)
        try:
            fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, lock)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                text = f"lock file {self.path}: a daemon of another segment lends lcores to this legacy table"
                raise LegacyError(errno.EEXIST, text) from None
            if error.errno != errno.EBADF:  # a file that we may only read: another user's, who has to know
                raise

    def give(self) -> None:
        fcntl.flock(self._fd, fcntl.LOCK_UN)

    @contextmanager
    def held(self, timeout: float) -> Iterator[None]:
        """For a block, waiting for it up to `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while not self.try_take():
            if time.monotonic() >= deadline:
                raise LegacyError(errno.EBUSY, f"lock file {self.path}: held by a process that does not let go")
            time.sleep(_LOCK_RETRY)
        try:
            yield
        finally:
            self.give()

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class LegacyTable:
    """The segment, attached. Everything but close() is for who holds the lock. `create` makes one if there is none."""

    def __init__(self, key: int, *, create: bool) -> None:
        self.key = key
        with _told(key):
            self._memory = _attach(key, create)
        self._copy = os.memfd_create("legacy", os.MFD_CLOEXEC)
        self.size, odd = divmod(self._memory.size - _FIRST, _ENTRY.size)
        if odd or not 0 < self.size <= _MOST_ENTRIES:
            size = self._memory.size
            self.close()
            raise LegacyError(errno.EPROTO, f"legacy table {key:#x}: {size} bytes is no table of libmtl's")

    @property
    def id(self) -> int:
        return int(self._memory.id)

    @property
    def removed(self) -> bool:
        """Has somebody removed it, so that newcomers make another?"""
        with _told(self.key):  # who made it may have changed its mode
            return bool(self._memory.mode & _DESTROYED)

    def entries(self) -> list[Entry | None]:
        """Each lcore's; None where it is not active."""
        data = self._read(_FIRST, self.size * _ENTRY.size)
        # Most are ours; unpacking each would take milliseconds.
        return [_entry(data, offset) if data[offset + _ACTIVE] else None for offset in range(0, len(data), _ENTRY.size)]

    # The order of writing is for who is killed in between: what is not active says nothing; what was active in a dead
    # process's name is, until it is ours, still the dead process's.

    def reserve(self, lcore: int, *, reclaimed: bool = False) -> None:
        """Keep it from legacy processes."""
        offset = _FIRST + lcore * _ENTRY.size
        names = _NAMES.pack(_HOSTNAME, _USER, _RECLAIMED, 0, _APP_ALLOCATED) if reclaimed else _RESERVATION
        self._write(names, offset)
        self._write(b"\1", offset + _ACTIVE)

    def clear(self, lcore: int) -> None:
        """Let legacy processes take it."""
        self._write(b"\0", _FIRST + lcore * _ENTRY.size + _ACTIVE)

    # WHOEVER MADE THE SEGMENT may have made it of pages that are not there, such as huge ones: to touch them is a
    # SIGBUS. So the kernel copies, between the segment and a file of our own; it cannot either, and says so.

    def _read(self, offset: int, size: int) -> bytes:
        with memoryview(self._memory) as view:
            self._copied(os.pwritev, view[offset : offset + size])
        return os.pread(self._copy, size, 0)

    def _write(self, data: bytes, offset: int) -> None:
        os.pwrite(self._copy, data, 0)
        with memoryview(self._memory) as view:
            self._copied(os.preadv, view[offset : offset + len(data)])

    def _copied(self, copy: Callable[[int, list[memoryview], int], int], part: memoryview) -> None:
        with part:
            try:
                done = copy(self._copy, [part], 0)
            except OSError as error:
                if error.errno != errno.EFAULT:
                    raise
                done = 0
            if done != len(part):
                text = f"its memory cannot be had, as if of huge pages; remove it: ipcrm -M {self.key:#x}"
                raise LegacyError(errno.EFAULT, f"legacy table {self.key:#x}: {text}")

    # -- who is attached

    @cached_property
    def where(self) -> Segment:
        """As it is found in memory maps. LookupError if ours cannot be seen."""
        return Segment.ours(self.key, self.id)

    def stamp(self) -> tuple[int, int, int]:
        """How many attachments there are; and what else changes when somebody comes or goes."""
        with _told(self.key):
            memory = self._memory
            return int(memory.number_attached), int(memory.last_attach_time), int(memory.last_pid)

    def census(self) -> tuple[tuple[Attached, ...], bool]:
        """Who is attached, and whether that is all of them. It may take seconds."""
        before = self.stamp()
        found = census(self.where, before[0])
        return found.attached, found.mappings == before[0] and self.stamp() == before

    def close(self) -> None:
        """Detach. It is not removed: who finds it with nobody attached zeroes it."""
        if self._memory.attached:
            self._memory.detach()
            os.close(self._copy)

    def __enter__(self) -> LegacyTable:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


@contextmanager
def _told(key: int) -> Iterator[None]:
    """What goes wrong with the segment as LegacyErrors."""
    try:
        yield
    except sysv_ipc.ExistentialError:
        raise LegacyError(errno.ENOENT, f"legacy table {key:#x}: there is none") from None
    except sysv_ipc.PermissionsError:
        raise LegacyError(errno.EACCES, f"legacy table {key:#x}: not permitted to uid {os.geteuid()}") from None
    except (sysv_ipc.Error, OSError) as error:
        raise LegacyError(errno.EIO, f"legacy table {key:#x}: {error}") from error


def _attach(key: int, create: bool) -> sysv_ipc.SharedMemory:
    while True:
        try:
            return sysv_ipc.SharedMemory(key)
        except sysv_ipc.ExistentialError:
            if not create:
                raise
        size = _FIRST + _ENTRIES * _ENTRY.size
        with suppress(sysv_ipc.ExistentialError):  # somebody was quicker
            mask = os.umask(0)
            try:
                return sysv_ipc.SharedMemory(key, sysv_ipc.IPC_CREX, mode=0o666, size=size, init_character=b"\0")
            finally:
                os.umask(mask)


def _entry(data: bytes, offset: int) -> Entry:
    if data.startswith(_RESERVATION, offset):
        return RESERVATION
    hostname, user, comm, pid, kind, _ = _ENTRY.unpack_from(data, offset)
    return Entry(_text(hostname), _text(user), _text(comm), pid, kind)


def _text(chars: bytes) -> str:
    return printable(chars.partition(b"\0")[0].decode(errors="replace"))
