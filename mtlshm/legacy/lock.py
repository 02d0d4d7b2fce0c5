# SPDX-License-Identifier: BSD-3-Clause
"""The file that locks the legacy table."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mtlshm.legacy import LegacyError

DEFAULT_LOCK = Path("/tmp/kahawai_lcore.lock")

_FLOCK = struct.Struct("hhqqi4x")  # struct flock of fcntl(2)
_LOCK_RETRY = 0.01  # seconds
_TRIES = 4  # anyone may replace the lock file while it is opened, as often as he likes


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
        """Makes sure that no other daemon lends lcores to the table, until the file is closed."""
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
        """Drop the lock; the file stays open."""
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
        """Close the file, which drops the lock. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
