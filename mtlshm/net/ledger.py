# SPDX-License-Identifier: BSD-3-Clause
"""The ledger: who owns which queue, flow rule and port, and which interfaces are in use.

WHY IT IS NOT IN THE SEGMENT. What is written here decides what a privileged daemon deletes from a NIC. The segment can
be written by its whole group; here only the daemon's user writes. So the ledger is a file of its own, in the daemon's
state directory.

WHY SQLITE. Whatever is killed when, the file is whole: a change is a transaction, and what was not committed never
happened. It is in WAL mode, where nobody who reads keeps us from writing, and readers see one state until they are
done. Nothing is synced to disk, as only the death of processes has to be survived: what the kernel and the NIC know is
gone with the next boot as well, and so is what a ledger of an earlier boot says.

WHO WRITES. Several processes may (mtlshm-ctl keeps an interface loaded while mtlshmd runs): SQLite lets one after the
other. Only one may *serve*, that is answer clients and put right what a dead one left half done, since it would take
the half done for left: serve() holds a lock that refuses the second.

THE INTENT IS FIRST. A flow rule is entered before it is inserted, marked as not complete, and crossed out after it is
gone from the NIC. So at any moment there is no rule of ours that is not here. What a queue's or a port's owner has in
BPF maps is set after it is entered, and cleared before it is crossed out, or is written anew from here by whoever
starts.

OWNERS are processes, or rather registrations: a process that registers twice owns as two. They are numbered here, and
no number is used again. An owner that is leaving gets nothing more, and keeps what could not be taken away yet.

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
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

from mtlshm.net.flow import FlowSpec, FlowType
from mtlshm.snapshot import Process, printable

CHOSEN_BY_DRIVER = 1 << 31
"""From here on, numbers of flows whose place is not known; the kernel has no places beyond."""
_PLACE_0 = CHOSEN_BY_DRIVER - 1  # the number of a flow whose rule is at 0, which on the manager socket is no number

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


@dataclass(frozen=True, slots=True)
class Owner:
    """A registration."""

    id: int
    token: int  # its instance in the segment, for people
    process: Process
    leaving: bool  # it has ended, and not all that it had could be taken away yet


@dataclass(frozen=True, slots=True)
class Use:
    """An interface that somebody wants served."""

    ifindex: int
    kept: bool  # whoever uses it: an administrator wants it
    owners: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Queue:
    ifindex: int
    queue: int
    owner: int


@dataclass(frozen=True, slots=True)
class Flow:
    """A flow rule of ours. If it is not complete, it may or may not be in the NIC."""

    ifindex: int
    location: int  # its number for its owner: where it is in the NIC, but see `place`
    queue: int
    owner: int
    spec: FlowSpec
    complete: bool

    @property
    def place(self) -> int | None:
        """Where it is in the NIC; None if the driver is to choose, and it is not complete."""
        if self.location >= CHOSEN_BY_DRIVER:
            return None
        return 0 if self.location == _PLACE_0 else self.location


def number_at(place: int) -> int:
    """The number of a flow whose rule is at this place in the NIC."""
    return place or _PLACE_0


@dataclass(frozen=True, slots=True)
class PortReference:
    ifindex: int
    port: int
    owner: int
    count: int


@dataclass(frozen=True, slots=True)
class State:
    """All of it, at one moment."""

    owners: tuple[Owner, ...]
    uses: tuple[Use, ...]
    queues: tuple[Queue, ...]
    flows: tuple[Flow, ...]
    ports: tuple[PortReference, ...]


class Ledger:
    """The ledger in the state directory `directory`, which is made if need be; see the head of this file.

    With `read_only` neither is made, and only state() and the like can be called. Others who may read it are the
    members of group `gid`; None leaves that as it is, which at first is nobody. `patience` is how many seconds the
    whole process waits at most, here and whenever it changes something, for others who do; then it is Locked.
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
        """What is entered stays."""
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

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # -- reading

    def state(self) -> State:
        """All of it."""
        with self._told(), self._still():
            return State(self.owners(), self.uses(), self.queues(), self.flows(), self._ports())

    def owners(self) -> tuple[Owner, ...]:
        fields = "id, token, leaving, pid, pid_namespace, start_ticks, pidfd_inode, uid, comm, hostname, label"
        with self._told():
            rows = self._db.execute(f"SELECT {fields} FROM owners ORDER BY id").fetchall()
        return tuple(
            Owner(id, int(token, 16), Process(*who[:5], *map(printable, who[5:])), bool(leaving))
            for id, token, leaving, *who in rows
        )

    def uses(self) -> tuple[Use, ...]:
        """The interfaces in use."""
        with self._told():
            rows = self._db.execute(
                "SELECT ifindex, owner, 0 FROM uses UNION ALL SELECT ifindex, NULL, 1 FROM kept ORDER BY 1, 2"
            ).fetchall()
        return tuple(
            Use(
                ifindex,
                any(kept for index, _, kept in rows if index == ifindex),
                tuple(owner for index, owner, _ in rows if index == ifindex and owner is not None),
            )
            for ifindex in dict.fromkeys(row[0] for row in rows)
        )

    def queues(self, ifindex: int | None = None, owner: int | None = None) -> tuple[Queue, ...]:
        return tuple(Queue(*row) for row in self._select("ifindex, queue, owner", "queues", ifindex, owner))

    def flows(self, ifindex: int | None = None, owner: int | None = None) -> tuple[Flow, ...]:
        fields = "ifindex, location, queue, owner, complete, type, source, destination, source_port, destination_port"
        return tuple(_flow(*row) for row in self._select(fields, "flows", ifindex, owner))

    def ports(self, ifindex: int) -> frozenset[int]:
        """The ports that anyone has a reference to."""
        return frozenset(row[0] for row in self._select("port, owner", "ports", ifindex, None))

    def _ports(self) -> tuple[PortReference, ...]:
        return tuple(PortReference(*row) for row in self._select("ifindex, port, owner, count", "ports", None, None))

    def _select(self, fields: str, table: str, ifindex: int | None, owner: int | None) -> list[tuple[Any, ...]]:
        wanted = {"ifindex": ifindex, "owner": owner}
        where = [f"{name} = {value:d}" for name, value in wanted.items() if value is not None]
        with self._told():
            query = f"SELECT {fields} FROM {table} WHERE {' AND '.join(where) or 'TRUE'} ORDER BY 1, 2"
            return self._db.execute(query).fetchall()

    # -- owners

    def enter(self, token: int, process: Process) -> int:
        """The number of an owner; if it is known already, the one it has."""
        text = f"{token:x}"
        who = (process.pid, process.pid_namespace, process.start_ticks, process.pidfd_inode)
        with self._change() as db:
            known = db.execute(
                "SELECT id FROM owners WHERE NOT leaving AND token = ? AND pid = ? AND pid_namespace = ?"
                " AND start_ticks = ? AND pidfd_inode = ?",
                (text, *who),
            ).fetchone()
            if known:
                return int(known[0])
            display = (process.uid, process.comm, process.hostname, process.label)
            cursor = db.execute(
                "INSERT INTO owners (token, pid, pid_namespace, start_ticks, pidfd_inode, uid, comm, hostname, label)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (text, *who, *display),
            )
            assert cursor.lastrowid is not None
            return cursor.lastrowid

    def leave(self, owner: int) -> None:
        """It has ended, and gets nothing more."""
        with self._change() as db:
            db.execute("UPDATE owners SET leaving = 1 WHERE id = ?", (owner,))
            db.execute("DELETE FROM uses WHERE owner = ?", (owner,))

    def last_references(self, owner: int) -> dict[int, tuple[int, ...]]:
        """By interface, the ports that nobody but this owner has a reference to."""
        found: dict[int, list[int]] = {}
        with self._told():
            for ifindex, port in self._db.execute(
                "SELECT ifindex, port FROM ports AS ours WHERE owner = ? AND NOT EXISTS (SELECT 1 FROM ports"
                " WHERE ifindex = ours.ifindex AND port = ours.port AND owner <> ours.owner) ORDER BY ifindex, port",
                (owner,),
            ):
                found.setdefault(ifindex, []).append(port)
        return {ifindex: tuple(ports) for ifindex, ports in found.items()}

    def settle(self, owner: int) -> bool:
        """Cross out what an owner that is leaving had, but for its flow rules and the queues they lead to. True if
        nothing is left, and so the owner is crossed out too."""
        with self._change() as db:
            db.execute("DELETE FROM ports WHERE owner = ?", (owner,))
            db.execute(
                "DELETE FROM queues WHERE owner = ? AND NOT EXISTS (SELECT 1 FROM flows"
                " WHERE flows.ifindex = queues.ifindex AND flows.queue = queues.queue)",
                (owner,),
            )
            if db.execute("SELECT 1 FROM flows WHERE owner = ?", (owner,)).fetchone():
                return False
            db.execute("DELETE FROM owners WHERE id = ? AND leaving", (owner,))
            return True

    # -- interfaces

    def use(self, owner: int, ifindex: int) -> bool:
        """An owner wants the interface served. True if it is the first who does."""
        with self._change() as db:
            self._check_owner(owner)
            first = not self._in_use(ifindex)
            db.execute("INSERT OR IGNORE INTO uses VALUES (?, ?)", (ifindex, owner))
            return first

    def keep(self, ifindex: int) -> bool:
        """Serve the interface whoever wants it. True if nobody did."""
        with self._change() as db:
            first = not self._in_use(ifindex)
            db.execute("INSERT OR IGNORE INTO kept VALUES (?)", (ifindex,))
            return first

    def unkeep(self, ifindex: int) -> bool:
        """Serve it for those only who want it. True if nobody does."""
        with self._change() as db:
            db.execute("DELETE FROM kept WHERE ifindex = ?", (ifindex,))
            return not self._in_use(ifindex)

    def in_use(self, ifindex: int) -> bool:
        with self._told():
            return self._in_use(ifindex)

    def forget_interface(self, ifindex: int) -> None:
        """It is gone, and so is all that anyone had of it."""
        with self._change() as db:
            for table in ("flows", "queues", "ports", "uses", "kept"):
                db.execute(f"DELETE FROM {table} WHERE ifindex = ?", (ifindex,))

    def _in_use(self, ifindex: int) -> bool:
        query = "SELECT 1 FROM uses WHERE ifindex = ?1 UNION ALL SELECT 1 FROM kept WHERE ifindex = ?1 LIMIT 1"
        return self._db.execute(query, (ifindex,)).fetchone() is not None

    # -- queues

    def claim_queue(self, owner: int, ifindex: int, number: int) -> int:
        """The lowest free queue of an interface that has `number`, which is the owner's from now on. 0 is nobody's."""
        with self._change() as db:
            self._check_owner(owner)
            taken = {queue.queue for queue in self.queues(ifindex)}
            queue = next((queue for queue in range(1, number) if queue not in taken), None)
            if queue is None:
                text = f"interface {ifindex}: all of its {number} queues are in use"
                raise OSError(errno.ENOSPC, f"{text}; more of them, if it can: ethtool -L … combined N")
            db.execute("INSERT INTO queues VALUES (?, ?, ?)", (ifindex, queue, owner))
            return queue

    def check_queue(self, owner: int, ifindex: int, queue: int) -> None:
        """OSError if the owner cannot give it back: EINVAL if it is not its own, EBUSY if flow rules lead to it."""
        with self._told():
            if self._holder(ifindex, queue) != owner:
                raise OSError(errno.EINVAL, f"interface {ifindex}: queue {queue} is not yours")
            if rules := [flow.location for flow in self.flows(ifindex) if flow.queue == queue]:
                raise OSError(
                    errno.EBUSY, f"interface {ifindex}: rules {rules} lead to queue {queue}: delete them first"
                )

    def put_queue(self, owner: int, ifindex: int, queue: int) -> None:
        """It is free again. OSError as check_queue()."""
        with self._change() as db:
            self.check_queue(owner, ifindex, queue)
            db.execute("DELETE FROM queues WHERE ifindex = ? AND queue = ?", (ifindex, queue))

    def _holder(self, ifindex: int, queue: int) -> int | None:
        query = "SELECT owner FROM queues WHERE ifindex = ? AND queue = ?"
        row = self._db.execute(query, (ifindex, queue)).fetchone()
        return row and int(row[0])

    # -- flow rules

    def intend_flow(self, owner: int, ifindex: int, queue: int, location: int, spec: FlowSpec) -> None:
        """A rule is about to be inserted. A queue that is nobody's becomes the owner's; EBUSY if somebody else's."""
        with self._change() as db:
            self._check_owner(owner)
            holder = self._holder(ifindex, queue)
            if holder is None:
                db.execute("INSERT INTO queues VALUES (?, ?, ?)", (ifindex, queue, owner))
            elif holder != owner:
                raise OSError(errno.EBUSY, f"interface {ifindex}: queue {queue} is somebody else's")
            addresses = (address and str(address) for address in (spec.source, spec.destination))
            ports = (spec.source_port, spec.destination_port)
            db.execute(
                "INSERT INTO flows VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 0, ?)",
                (ifindex, location, queue, owner, spec.type, *addresses, *ports, holder is None),
            )

    def complete_flow(self, ifindex: int, location: int, number: int | None = None) -> None:
        """It is in the NIC, and has another number now if the driver chose the place. Who had that has lost it there:
        somebody deleted his rule."""
        with self._change() as db:
            db.execute(
                "UPDATE OR REPLACE flows SET complete = 1, location = ? WHERE ifindex = ? AND location = ?",
                (location if number is None else number, ifindex, location),
            )

    def forget_flow(self, ifindex: int, location: int) -> None:
        """It is not in the NIC. If it was never complete, nor does the owner get the queue that came with it."""
        with self._change() as db:
            row = db.execute(
                "DELETE FROM flows WHERE ifindex = ? AND location = ? RETURNING queue, with_queue AND NOT complete",
                (ifindex, location),
            ).fetchone()
            if row and row[1]:
                db.execute(
                    "DELETE FROM queues WHERE ifindex = ?1 AND queue = ?2 AND NOT EXISTS"
                    " (SELECT 1 FROM flows WHERE ifindex = ?1 AND queue = ?2)",
                    (ifindex, row[0]),
                )

    # -- ports

    def add_port(self, owner: int, ifindex: int, port: int) -> bool:
        """One more reference. True if it is anyone's first: let the port's packets through."""
        with self._change() as db:
            self._check_owner(owner)
            first = not self._referenced(ifindex, port)
            db.execute(
                "INSERT INTO ports VALUES (?, ?, ?, 1) ON CONFLICT DO UPDATE SET count = count + 1",
                (ifindex, port, owner),
            )
            return first

    def drop_port(self, owner: int, ifindex: int, port: int) -> bool:
        """One reference fewer; EINVAL if the owner has none. True if it was anyone's last."""
        which = (ifindex, port, owner)
        with self._change() as db:
            row = db.execute("SELECT count FROM ports WHERE ifindex = ? AND port = ? AND owner = ?", which).fetchone()
            if row is None:
                raise OSError(errno.EINVAL, f"interface {ifindex}: you have no reference to port {port}")
            if row[0] > 1:
                db.execute("UPDATE ports SET count = count - 1 WHERE ifindex = ? AND port = ? AND owner = ?", which)
                return False
            db.execute("DELETE FROM ports WHERE ifindex = ? AND port = ? AND owner = ?", which)
            return not self._referenced(ifindex, port)

    def _referenced(self, ifindex: int, port: int) -> bool:
        query = "SELECT 1 FROM ports WHERE ifindex = ? AND port = ? LIMIT 1"
        return self._db.execute(query, (ifindex, port)).fetchone() is not None

    # -- the file

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
            if boot_id != _boot_id():
                for table in ("flows", "queues", "ports", "uses", "kept", "owners"):
                    db.execute(f"DELETE FROM {table}")
                db.execute("UPDATE place SET boot_id = ?, netns = ?", (_boot_id(), _netns()))
            elif netns != _netns():
                advice = "use another directory, or remove it if that namespace is gone"
                raise OSError(errno.EXDEV, f"{self.path.parent} {_ELSEWHERE}; {advice}")

    def _check_place(self) -> None:
        self._check_layout()
        boot_id, netns = self._db.execute("SELECT boot_id, netns FROM place").fetchone()
        if boot_id != _boot_id():
            raise OSError(errno.ENOENT, f"{self.path} is of an earlier boot; start mtlshmd")
        if netns != _netns():  # the numbers of interfaces mean others here
            advice = "enter that: nsenter --net --target $(pidof mtlshmd)"
            raise OSError(errno.EXDEV, f"{self.path.parent} {_ELSEWHERE}; {advice}")

    def _check_layout(self) -> None:
        layout = self._db.execute("PRAGMA user_version").fetchone()[0]
        if layout == 0:
            raise OSError(errno.ENOENT, f"{self.path} is being made; try again")
        if layout != _LAYOUT:
            text = f"{self.path} was written by another version of mtlshm (layout {layout}, ours is {_LAYOUT})"
            raise OSError(errno.EPROTO, f"{text}; stop that version's mtlshmd with --teardown, or remove the file")

    def _check_owner(self, owner: int) -> None:
        if not self._db.execute("SELECT 1 FROM owners WHERE id = ? AND NOT leaving", (owner,)).fetchone():
            raise OSError(errno.ESRCH, f"owner {owner} has left")

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
        """What is in the WAL goes to where it belongs. If that is not possible now, it is tried before each change."""
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
        """What is read within is of one moment."""
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
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _netns() -> int:
    return os.stat("/proc/self/ns/net").st_ino


def _flow(
    ifindex: int,
    location: int,
    queue: int,
    owner: int,
    complete: int,
    number: int,
    source: str | None,
    destination: str | None,
    source_port: int,
    destination_port: int,
) -> Flow:
    addresses = [ip_address(text) if text else None for text in (source, destination)]
    spec = FlowSpec(FlowType(number), addresses[0], addresses[1], source_port, destination_port)
    return Flow(ifindex, location, queue, owner, spec, bool(complete))
