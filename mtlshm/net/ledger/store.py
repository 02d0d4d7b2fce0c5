# SPDX-License-Identifier: BSD-3-Clause
"""The ledger's file: SQLite, the right to write it, and the one server.

WHY SQLITE. Whatever is killed when, the file is whole: a change is a transaction, and what was not committed never
happened. It is in WAL mode, where nobody who reads keeps us from writing, and readers see one state until they are
done. Nothing is synced to disk, as only the death of processes has to be survived: what the kernel and the NIC know is
gone with the next boot as well, and so is what a ledger of an earlier boot says.

WHO WRITES. Several processes may (mtlshm-ctl keeps an interface loaded while mtlshmd runs): SQLite lets one after the
other. Only one may *serve*, that is answer clients and put right what a dead one left half done, since it would take
the half done for left: serve() holds a lock that refuses the second.

All errors are OSErrors. Locked (EBUSY): somebody else writes for longer than we wait. That can be made to happen by
anyone who may open the files, with a read lock on a byte of them, so their mode decides whom we let delay us. Who has
something else to do meanwhile has no patience here, and asks again and again: patiently(). Reading waits for nobody.
"""

from __future__ import annotations

import errno
import fcntl
import os
import sqlite3
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import ParamSpec, Self, TypeVar

from mtlshm.net.trusted import open_directory

_LAYOUT = 1
_MODE = 0o640
_FILES = ("ledger", "ledger-wal", "ledger-shm")
_PATIENCE = 5.0  # seconds
_CHECKPOINT = 32  # pages of 4 KiB, so that a small file system has room for the WAL as well
_MOST_BESIDE = 1 << 24  # bytes; far more than it comes to, unless somebody goes on reading what is old
_PATIENCE_TO_SERVE = 1.0
_AGAIN = 0.02
_ERRORS = {
    sqlite3.SQLITE_BUSY: errno.EBUSY,
    sqlite3.SQLITE_LOCKED: errno.EBUSY,
    sqlite3.SQLITE_FULL: errno.ENOSPC,
    sqlite3.SQLITE_READONLY: errno.EACCES,
    sqlite3.SQLITE_PERM: errno.EACCES,
    sqlite3.SQLITE_CANTOPEN: errno.EACCES,
    sqlite3.SQLITE_CORRUPT: errno.EUCLEAN,
    sqlite3.SQLITE_NOTADB: errno.EUCLEAN,
}
_ELSEWHERE = "has the state of a daemon in another network namespace"
_ADVICE = {
    errno.EBUSY: "another process keeps it locked; try again, or see who with: fuser -v",
    errno.EACCES: "not permitted: root and members of its group may read it, and only root may change it",
    errno.EUCLEAN: "damaged: stop mtlshmd and remove it; rules of ours then stay in the NIC: ethtool -N … delete",
}

_SCHEMA = """
CREATE TABLE place (boot_id TEXT NOT NULL, netns INTEGER NOT NULL) STRICT;
CREATE TABLE owners (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    token TEXT NOT NULL,
    pid INTEGER NOT NULL, pid_namespace INTEGER NOT NULL, start_ticks INTEGER NOT NULL, pidfd_inode INTEGER NOT NULL,
    uid INTEGER NOT NULL, comm TEXT NOT NULL, hostname TEXT NOT NULL, label TEXT NOT NULL,
    leaving INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE TABLE kept (ifindex INTEGER PRIMARY KEY) STRICT;
CREATE TABLE uses (
    ifindex INTEGER NOT NULL,
    owner INTEGER NOT NULL REFERENCES owners ON DELETE CASCADE,
    PRIMARY KEY (ifindex, owner)
) STRICT, WITHOUT ROWID;
CREATE TABLE queues (
    ifindex INTEGER NOT NULL,
    queue INTEGER NOT NULL CHECK (queue > 0),
    owner INTEGER NOT NULL REFERENCES owners,
    PRIMARY KEY (ifindex, queue)
) STRICT, WITHOUT ROWID;
CREATE TABLE flows (
    ifindex INTEGER NOT NULL,
    location INTEGER NOT NULL CHECK (location > 0),
    queue INTEGER NOT NULL,
    owner INTEGER NOT NULL REFERENCES owners,
    type INTEGER NOT NULL,
    source TEXT, destination TEXT,
    source_port INTEGER NOT NULL, destination_port INTEGER NOT NULL,
    complete INTEGER NOT NULL DEFAULT 0,
    with_queue INTEGER NOT NULL,
    PRIMARY KEY (ifindex, location),
    FOREIGN KEY (ifindex, queue) REFERENCES queues
) STRICT, WITHOUT ROWID;
CREATE TABLE ports (
    ifindex INTEGER NOT NULL,
    port INTEGER NOT NULL CHECK (port BETWEEN 0 AND 65535),
    owner INTEGER NOT NULL REFERENCES owners,
    count INTEGER NOT NULL CHECK (count > 0),
    PRIMARY KEY (ifindex, port, owner)
) STRICT, WITHOUT ROWID;
CREATE INDEX queues_of_owner ON queues (owner);
CREATE INDEX flows_of_owner ON flows (owner);
CREATE INDEX flows_of_queue ON flows (ifindex, queue);
CREATE INDEX ports_of_owner ON ports (owner);
"""

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


class Locked(OSError):
    """EBUSY: somebody else keeps the ledger locked, or serves with it. Nothing has happened; it can be tried again."""


async def patiently(
    attempt: Callable[_Arguments, _Result], /, *arguments: _Arguments.args, **words: _Arguments.kwargs
) -> _Result:
    """What `attempt` does with a ledger that has no patience, done as soon as nobody keeps it locked.

    It is done without a pause, from its beginning each time; and so is what the caller does next. Locked if somebody
    does not let go for 5 seconds.
    """
    from asyncio import sleep  # only here: who only reads needs nothing of it

    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            return attempt(*arguments, **words)
        except Locked:
            if time.monotonic() > deadline:
                raise
        await sleep(_AGAIN)


class Store:
    """The file in the state directory `directory`, which is made if need be.

    With `read_only` neither is made, and nothing can be changed. Others who may read it are the members of group `gid`;
    None leaves that as it is, which at first is nobody. `patience` is how many seconds the whole process waits at most,
    here and whenever it changes something, for others who do; then it is Locked.
    """

    def __init__(
        self, directory: Path, *, read_only: bool = False, gid: int | None = None, patience: float = _PATIENCE
    ) -> None:
        self.path = directory / "ledger"
        self._wal = directory / "ledger-wal"
        self._serving: int | None = None
        self._full = False  # the file system was, and the WAL has all the room that there may be now
        if read_only:
            if not self.path.exists():
                raise FileNotFoundError(errno.ENOENT, f"{self.path} does not exist; is mtlshmd running?")
            self._db = self._connect("ro", patience)
        else:
            _make(self.path, gid)
            self._db = self._connect("rw", patience)
        try:
            with self._told():
                if read_only:
                    self._check_place()
                else:
                    self._prepare()
        except BaseException:
            self._db.close()
            raise

    def serve(self, patience: float = _PATIENCE_TO_SERVE) -> None:
        """Be the one who answers clients, until close(). Locked if somebody else is."""
        # A file of its own that nobody else can open: closing any descriptor of the ledger's file would drop SQLite's
        # locks, and whoever can open a file can lock it.
        lock = os.open(self.path.with_name("serve.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        # Tried for a while: if one was killed as it started a program, the child has the lock until it is that program.
        deadline = time.monotonic() + patience
        while self._serving is None:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._serving = lock
            except BlockingIOError:
                if time.monotonic() > deadline:
                    os.close(lock)
                    text = f"another daemon serves with the state in {self.path.parent}"
                    raise Locked(errno.EBUSY, f"{text}; see who with: fuser -v {self.path.parent}/serve.lock") from None
                time.sleep(0.01)

    def close(self) -> None:
        """Closes the file. All entries stay."""
        # Without WAL files, whoever may only read can read without us. Refused while others have it open.
        with suppress(sqlite3.Error):
            self._db.execute("PRAGMA busy_timeout = 0")
            self._db.execute("PRAGMA journal_mode = DELETE")
        self._db.close()
        if self._serving is not None:
            os.close(self._serving)
            self._serving = None

    def remove(self) -> None:
        """Close it and remove its files, which is for who serves. The lock files stay: who waits for one that is
        removed locks nobody out."""
        self._db.close()
        for name in _FILES:
            self.path.with_name(name).unlink(missing_ok=True)
        self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _connect(self, mode: str, patience: float) -> sqlite3.Connection:
        with self._told():
            uri = f"{self.path.absolute().as_uri()}?mode={mode}"
            return sqlite3.connect(uri, uri=True, timeout=patience, isolation_level=None)

    def _prepare(self) -> None:
        """A new one gets its tables, one of an earlier boot is emptied."""
        settings = (
            "journal_mode = WAL",
            f"wal_autocheckpoint = {_CHECKPOINT}",
            "synchronous = OFF",
            "foreign_keys = ON",
        )
        for setting in settings:
            self._db.execute(f"PRAGMA {setting}")
        with suppress(sqlite3.OperationalError):  # if there is no room, there may be some at the next change
            self._db.execute("PRAGMA wal_checkpoint(PASSIVE)")
        if (said := self._db.execute("PRAGMA quick_check").fetchone()[0]) != "ok":
            raise OSError(errno.EUCLEAN, f"{self.path}: {_ADVICE[errno.EUCLEAN]} ({said})")
        with self._change() as db:
            if db.execute("PRAGMA user_version").fetchone()[0] == 0:
                for statement in _SCHEMA.split(";\n"):
                    db.execute(statement)
                db.execute(f"PRAGMA user_version = {_LAYOUT}")
                db.execute("INSERT INTO place VALUES (?, ?)", (_boot_id(), _netns()))
            self._check_layout()
            boot_id, netns = db.execute("SELECT boot_id, netns FROM place").fetchone()
            if self._of_another_boot(boot_id):
                for table in ("flows", "queues", "ports", "uses", "kept", "owners"):
                    db.execute(f"DELETE FROM {table}")
                db.execute("UPDATE place SET boot_id = ?, netns = ?", (_boot_id(), _netns()))
            elif netns != _netns():
                advice = "use another directory, or remove it if that namespace is gone"
                raise OSError(errno.EXDEV, f"{self.path.parent} {_ELSEWHERE}; {advice}")

    def _check_place(self) -> None:
        self._check_layout()
        boot_id, netns = self._db.execute("SELECT boot_id, netns FROM place").fetchone()
        if self._of_another_boot(boot_id):
            raise OSError(errno.ENOENT, f"{self.path} is of an earlier boot; start mtlshmd")
        if netns != _netns():  # the numbers of interfaces mean others here
            advice = "enter that: nsenter --net --target $(pidof mtlshmd)"
            raise OSError(errno.EXDEV, f"{self.path.parent} {_ELSEWHERE}; {advice}")

    def _of_another_boot(self, boot_id: str) -> bool:
        """A container's boot id, or that of a service in it, may be its own; nothing on a tmpfs outlives a boot."""
        now = _boot_id()
        return "" not in (now, boot_id) and now != boot_id and not _on_tmpfs(self.path)

    def _check_layout(self) -> None:
        layout = self._db.execute("PRAGMA user_version").fetchone()[0]
        if layout == 0:
            raise OSError(errno.ENOENT, f"{self.path} is being made; try again")
        if layout != _LAYOUT:
            text = f"{self.path} was written by another version of mtlshm (layout {layout}, ours is {_LAYOUT})"
            raise OSError(errno.EPROTO, f"{text}; stop that version's mtlshmd with --teardown, or remove the file")

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Nobody else changes anything within, and of what is changed here all happens, or nothing."""
        with self._change():
            yield

    @contextmanager
    def _change(self) -> Iterator[sqlite3.Connection]:
        """A transaction, or a part of one: all of it happens, or nothing."""
        if self._db.in_transaction:
            yield self._db
            return
        with self._told():
            self._keep_small()
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException as error:
                with suppress(sqlite3.Error):  # some errors have rolled back already
                    self._db.execute("ROLLBACK")
                if isinstance(error, sqlite3.Error) and error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_FULL:
                    self._full = True
                    self._make_room()
                raise

    def _make_room(self) -> None:
        """Moves the WAL into the database. If that fails now, it is tried again before each change."""
        with suppress(sqlite3.Error):
            self._full = bool(self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0])

    def _keep_small(self) -> None:
        """Locked while somebody goes on reading what is old, so that all that is new is kept beside it."""
        if self._full:
            self._make_room()
        with suppress(FileNotFoundError):
            large = self._wal.stat().st_size > _MOST_BESIDE
            if large and self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
                text = f"{self.path}: somebody has been reading it for too long; see who: fuser -v {self._wal}"
                raise Locked(errno.EBUSY, text)

    @contextmanager
    def _still(self) -> Iterator[None]:
        """Reads within see the ledger at one moment."""
        self._db.execute("BEGIN")
        try:
            yield
        finally:
            self._db.execute("ROLLBACK")

    @contextmanager
    def _told(self) -> Iterator[None]:
        """SQLite's errors as OSErrors."""
        try:
            yield
        except sqlite3.Error as error:
            number = _ERRORS.get(getattr(error, "sqlite_errorcode", 0) & 0xFF, errno.EIO)
            advice = f"{_ADVICE[number]}" if number in _ADVICE else os.strerror(number)
            kind = Locked if number == errno.EBUSY else OSError
            raise kind(number, f"{self.path}: {advice} ({error})") from error


def _make(path: Path, gid: int | None) -> None:
    """The file, empty if it is new, with its mode; in a directory that nobody but its owner can write."""
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    os.close(open_directory(path.parent))  # nor can another one be put in its place, or a link
    directory = path.parent.stat()
    if directory.st_uid != os.geteuid() or directory.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        text = f"{path.parent} can be written by others, who could then have the daemon delete any flow rule"
        raise PermissionError(errno.EPERM, f"{text}; it must be uid {os.geteuid()}'s, and chmod go-w")
    # SQLite gives its other files the same mode and group. Never opened again past SQLite: see serve().
    with suppress(FileExistsError):
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _MODE)
        try:
            os.fchmod(fd, _MODE)
        finally:
            os.close(fd)
    if gid is not None:
        for name in _FILES:
            with suppress(FileNotFoundError):
                os.chown(path.with_name(name), -1, gid)
                os.chmod(path.with_name(name), _MODE)


def _boot_id() -> str:
    """Empty where /proc cannot say, as with ProcSubset=pid."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


def _on_tmpfs(path: Path) -> bool:
    device = os.stat(path).st_dev
    number = f"{os.major(device)}:{os.minor(device)}".encode()
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        mount, _, system = line.partition(b" - ")  # proc_pid_mountinfo(5)
        if mount.split(b" ")[2] == number:
            return system.split(b" ")[0] in (b"tmpfs", b"ramfs")
    return False


def _netns() -> int:
    return os.stat("/proc/self/ns/net").st_ino
