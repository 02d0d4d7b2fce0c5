# SPDX-License-Identifier: BSD-3-Clause
"""The socket at its path, where clients find it.

OTHERS CAN TAKE THE PATH AWAY: a clean-up job removes the file, or upstream's MtlManager is started beside us, removes
whatever is at the path and listens there itself. It knows nothing of our table, and grants lcores that are granted
already. So the directory is watched, and what is found at the path decides:

    nothing, or a socket at which nobody listens    we listen there again
    a socket at which somebody else listens         that is said loudly, and we listen again once it has ended
    anything else                                   that is said; it is not ours to remove

WHO LISTENS THERE the kernel says of a connection. It stays open while somebody else does, as its end is the event that
we wait for. A connection is also how we know that a socket kept by the service manager is still the one at the path:
after listen() it names us.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from inotify_simple import flags

from mtlshm.daemon.bounded_log import SELDOM
from mtlshm.daemon.watch import Watch
from mtlshm.errors import reason
from mtlshm.listener import Listener, who_listens

log = logging.getLogger(__name__)

_SO_PASSRIGHTS = 83  # asm-generic/socket.h, Linux 6.16; not in Python 3.11
_BACKLOG = 1024
LISTENER = "listener"  # in the store
_EVENTS = (
    flags.CREATE | flags.DELETE | flags.MOVED_FROM | flags.MOVED_TO | flags.DELETE_SELF | flags.MOVE_SELF | flags.ATTRIB
)
_AGAIN = 1.0  # seconds between two tries
_STILL = 10.0  # seconds between looks while somebody else listens, should no event tell of the end


class Store(Protocol):
    """Keeps descriptors for our successor; see service.py."""

    @property
    def active(self) -> bool:
        """Whether a service manager may keep descriptors."""

    @property
    def stored(self) -> list[tuple[str, int]]:
        """Names and descriptors that an earlier daemon stored."""

    def keep(self, name: str, fd: int) -> None:
        """Keep a descriptor under a name, instead of the one that has it. It stays open here, too."""

    def forget(self, name: str) -> None:
        """Keep what has that name no longer; nothing happens if none has."""


class Door:
    """Listens at `path` from open() to close(), in the event loop.

    `knock` is called when somebody waits whom accept() would let in; `let_in` gets those who have been waiting at a
    socket that is given up; `heard` is told the descriptor at which visitors knock.
    """

    def __init__(
        self,
        path: Path,
        mode: int,
        gid: int | None,
        store: Store,
        knock: Callable[[], None],
        let_in: Callable[[socket.socket], None],
        heard: Callable[[int], None],
    ) -> None:
        self._path, self._mode, self._gid = path, mode, gid
        self._store = store
        self._knock, self._let_in, self._heard = knock, let_in, heard
        self._loop = asyncio.get_running_loop()
        self._listener: socket.socket | None = None
        self._file: os.stat_result | None = None  # our socket's, at the path
        self._watch: Watch | None = None
        self._next_look: asyncio.TimerHandle | None = None
        self._rival: Listener | None = None
        self._opened = 0.0  # when

    def resume(self, listener: socket.socket) -> None:
        """Use what an earlier daemon listened at, if it is at the path still. To be called before open()."""
        listener.setblocking(False)
        self._listener = listener

    def open(self) -> None:
        """OSError if another daemon serves, or if the socket cannot be made."""
        if self._listener and self._listener.getsockname() != str(self._path):
            self._give_up(self._listener)  # nobody finds it where we are told to listen now
            self._listener = None
        if self._listener:
            self._listener.listen(_BACKLOG)  # in our name
            found = who_listens(self._path)
            if found and (found.pid == os.getpid() or not found.connection):  # so many wait there: it must be ours
                self._file = _status(self._path)
                _give_access(self._path, self._mode, self._gid)
            if found:
                found.close()
        else:
            self._take(_listen(self._path, self._mode, self._gid))
        self.hear()
        self._watch_directory()
        self._look()  # what happened before we watched

    def hear(self) -> None:
        """Let visitors knock."""
        assert self._listener
        self._loop.add_reader(self._listener.fileno(), self._knock)
        self._heard(self._listener.fileno())

    def ignore(self) -> None:
        """Let them wait."""
        if self._listener:
            self._loop.remove_reader(self._listener.fileno())

    def accept(self) -> socket.socket:
        """Accepts the next waiting client."""
        assert self._listener
        return self._listener.accept()[0]

    def leave(self) -> None:
        """Stops accepting. New clients wait for the next daemon, if the service manager keeps the socket."""
        self.ignore()
        if self._watch:
            self._watch.close()
            self._watch = None
        if self._next_look:
            self._next_look.cancel()
            self._next_look = None
        self._drop_rival()

    def close(self) -> None:
        """Remove the socket, unless clients may already be waiting there for our successor."""
        self.leave()
        if self._listener:
            if not self._store.active and self._is_ours():
                self._path.unlink(missing_ok=True)
            self._listener.close()
            self._listener = None

    # -- what is at the path

    def _is_ours(self) -> bool:
        found = _status(self._path)
        return bool(self._file and found and os.path.samestat(self._file, found))

    def _watch_directory(self) -> None:
        """Anew each time: it may be another directory by now."""
        if self._watch:
            self._watch.close()
        self._watch = Watch(str(self._path.parent), _EVENTS, lambda _: self._look(), self._look, _AGAIN)
        try:
            self._watch.start()
        except OSError as error:
            what = "cannot be watched, and if the socket is removed there nobody will notice"
            log.warning("%s %s: %s", self._path.parent, what, error.strerror, extra=SELDOM)

    def _look_in(self, seconds: float) -> None:
        if self._next_look:
            self._next_look.cancel()
        self._next_look = self._loop.call_later(seconds, self._look)

    def _look(self) -> None:
        if self._is_ours():
            self._settle()
            return
        if found := who_listens(self._path):
            self._endure(found)
        elif os.path.lexists(self._path) and not _is_socket(self._path):
            self._drop_rival()
            log.error("%s: somebody has put something else there; remove it, or no client finds us", self._path)
        elif (left := self._opened + _AGAIN - self._loop.time()) > 0:
            self._look_in(left)
        else:
            self._open_again()

    def _settle(self) -> None:
        if self._next_look:
            self._next_look.cancel()
            self._next_look = None
        if self._rival:
            log.warning("serving libmtl at %s again", self._path)
            self._drop_rival()

    def _open_again(self) -> None:
        self._opened = self._loop.time()
        why = f"{self._rival.name} has ended" if self._rival else "somebody removed or replaced it"
        try:
            listener = _listen(self._path, self._mode, self._gid)
        except OSError as error:
            log.error("%s: %s, and it cannot be made again: %s", self._path, why, error.strerror, extra=SELDOM)
            self._look_in(_AGAIN)
            return
        log.warning("%s: %s; listening there again", self._path, why)
        self._watch_directory()
        self._drop_rival()
        before = self._listener
        self._listener = None
        if before:
            self._give_up(before)
        self._take(listener)
        self.hear()
        self._look()  # what happened before we watched

    def _take(self, listener: socket.socket) -> None:
        self._listener = listener
        self._file = _status(self._path)
        self._store.keep(LISTENER, listener.fileno())
        self._opened = self._loop.time()

    def _give_up(self, listener: socket.socket) -> None:
        """Nobody finds it any more. Those who wait there already are let in."""
        self._loop.remove_reader(listener.fileno())
        self._store.forget(LISTENER)
        with listener, suppress(OSError):
            while True:
                self._let_in(listener.accept()[0])

    # -- somebody else there

    def _endure(self, rival: Listener) -> None:
        if self._rival is None or self._rival.pid != rival.pid:
            log.error(
                "%s has been taken by %s, which grants lcores that are granted already. Stop that process; we listen "
                "there again once it has ended",
                self._path,
                rival.name,
            )
        self._drop_rival()
        self._rival = rival
        self._look_in(_STILL)
        if rival.connection:
            self._loop.add_reader(rival.connection.fileno(), self._rival_ended)

    def _rival_ended(self) -> None:
        """Or it has closed our connection, or speaks to us."""
        assert self._rival
        assert self._rival.connection
        self._loop.remove_reader(self._rival.connection.fileno())
        self._look_in(_AGAIN)

    def _drop_rival(self) -> None:
        if self._rival and self._rival.connection:
            self._loop.remove_reader(self._rival.connection.fileno())
            self._rival.close()
        self._rival = None


def _listen(path: Path, mode: int, gid: int | None) -> socket.socket:
    """A listening socket at `path`; a file that nobody listens at is replaced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        if _is_socket(path):
            if found := who_listens(path):
                found.close()
                raise OSError(errno.EADDRINUSE, f"{path}: another daemon serves it, {found.name}; stop it first")
            path.unlink(missing_ok=True)
        elif os.path.lexists(path):
            raise OSError(errno.EEXIST, f"{path} is {_kind(path)}, no socket: remove it, or name another --socket")
        with suppress(OSError):  # ENOPROTOOPT: a kernel that does not know it
            listener.setsockopt(socket.SOL_SOCKET, _SO_PASSRIGHTS, 0)  # connections inherit it
        # Nobody else may connect before the mode is set.
        previous = os.umask(0o777)
        try:
            listener.bind(str(path))
        except PermissionError:
            raise
        except OSError as error:
            raise OSError(error.errno or errno.ENAMETOOLONG, f"cannot listen at {path}: {reason(error)}") from error
        finally:
            os.umask(previous)
        _give_access(path, mode, gid)
        listener.listen(_BACKLOG)
        return listener
    except BaseException:
        listener.close()
        raise


def _kind(path: Path) -> str:
    mode = path.lstat().st_mode
    if stat.S_ISDIR(mode):  # container engines make one, for a mount of what is not there
        return "a directory"
    return "a symbolic link" if stat.S_ISLNK(mode) else "a file" if stat.S_ISREG(mode) else "something else"


def _give_access(path: Path, mode: int, gid: int | None) -> None:
    """To the socket that was just made. Not to what a link may lead to that somebody else has put there since."""
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if not stat.S_ISSOCK(os.fstat(fd).st_mode):
            raise OSError(errno.ESTALE, f"{path}: somebody has replaced it; name a --socket in a directory of ours")
        if gid is not None:
            os.chown(f"/proc/self/fd/{fd}", -1, gid)
        os.chmod(f"/proc/self/fd/{fd}", mode)
    finally:
        os.close(fd)


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None


def _is_socket(path: Path) -> bool:
    found = _status(path)
    return bool(found and stat.S_ISSOCK(found.st_mode))
