# SPDX-License-Identifier: BSD-3-Clause
"""The segment with the legacy table: finding it by its key, reading and writing its entries."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from types import TracebackType

import sysv_ipc

from mtlshm.legacy import LegacyError, entry
from mtlshm.legacy.entry import Entry
from mtlshm.strangers import Segment

# int used; then the entries.
_FIRST = 4
# Enough for every build: a libmtl whose RTE_MAX_LCORE (usually 128) is smaller may attach, one with a larger may not.
_ENTRIES = 1024
_MOST_ENTRIES = 4096  # anyone may make the table, and each look goes through all of it

_DESTROYED = 0o1000  # SHM_DEST, linux/shm.h: removed, but somebody is attached


def default_key() -> int:
    """The key that every libmtl computes."""
    return int(sysv_ipc.ftok(os.devnull, 21, silence_warning=True))


def parse_key(text: str) -> int:
    """A System V key such as 0x15000004, decimal or with a prefix as in C. ValueError if the text is none.

    0 is none: it is IPC_PRIVATE, of which there are many.
    """
    with suppress(ValueError):
        if (key := int(text, 0)) and -(1 << 31) <= key < 1 << 32:
            return key
    raise ValueError(f"{text!r} is not a key such as 0x15000004")


class LegacyTable:
    """The segment, attached. Everything but close() is for who holds the lock. `create` makes one if there is none."""

    def __init__(self, key: int, *, create: bool) -> None:
        self.key = key
        with _told(key):
            self._memory = _attach(key, create)
        self._copy = os.memfd_create("legacy", os.MFD_CLOEXEC)
        self.size, odd = divmod(self._memory.size - _FIRST, entry.SIZE)
        if odd or not 0 < self.size <= _MOST_ENTRIES:
            size = self._memory.size
            self.close()
            raise LegacyError(errno.EPROTO, f"legacy table {key:#x}: {size} bytes is no table of libmtl's")

    @property
    def id(self) -> int:
        """The segment's shmid, which is its inode number in memory maps."""
        return int(self._memory.id)

    @property
    def removed(self) -> bool:
        """Whether the table was removed, so that new processes make another."""
        with _told(self.key):  # who made it may have changed its mode
            return bool(self._memory.mode & _DESTROYED)

    def entries(self) -> list[Entry | None]:
        """Each lcore's; None where it is not active."""
        data = self._read(_FIRST, self.size * entry.SIZE)
        return [entry.unpack(data, offset) for offset in range(0, len(data), entry.SIZE)]

    # The order of writing is for who is killed in between: what is not active says nothing; what was active in a dead
    # process's name is, until it is ours, still the dead process's.

    def reserve(self, lcore: int, *, reclaimed: bool = False) -> None:
        """Keep it from legacy processes."""
        offset = _FIRST + lcore * entry.SIZE
        self._write(entry.RECLAIMED if reclaimed else entry.RESERVED, offset)
        self._write(b"\1", offset + entry.ACTIVE)

    def clear(self, lcore: int) -> None:
        """Let legacy processes take it."""
        self._write(b"\0", _FIRST + lcore * entry.SIZE + entry.ACTIVE)

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
        """The segment as memory maps name it. LookupError if our own map cannot be read."""
        return Segment.ours(self.key, self.id)

    def stamp(self) -> tuple[int, int, int]:
        """How many attachments there are; and what else changes when somebody comes or goes."""
        with _told(self.key):
            memory = self._memory
            return int(memory.number_attached), int(memory.last_attach_time), int(memory.last_pid)

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
    """Turns errors of the System V segment into LegacyErrors."""
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
        size = _FIRST + _ENTRIES * entry.SIZE
        with suppress(sysv_ipc.ExistentialError):  # somebody was quicker
            mask = os.umask(0)
            try:
                return sysv_ipc.SharedMemory(key, sysv_ipc.IPC_CREX, mode=0o666, size=size, init_character=b"\0")
            finally:
                os.umask(mask)
