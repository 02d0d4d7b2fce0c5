# SPDX-License-Identifier: BSD-3-Clause
"""An open segment: processes register in it, and read it."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterable
from types import TracebackType
from typing import Any, NamedTuple
from weakref import WeakSet, finalize

from mtlshm import config, segment
from mtlshm._core import ffi, lib
from mtlshm.cpuset import CpuSet, counted
from mtlshm.errors import check
from mtlshm.events import Event, EventKind
from mtlshm.instance import Instance, want
from mtlshm.kinds import NOBODY, Kind, TableOwner
from mtlshm.snapshot import InstanceInfo, Process, Snapshot
from mtlshm.topology import Topology


class SegmentFile(NamedTuple):
    """The stat(2) of a segment's file when it was opened."""

    device: int
    inode: int
    uid: int
    gid: int
    mode: int


class Host:
    """The segment at `path` (default_path() if None), created if missing unless create=False.

    A context manager; closing it closes its instances. `read_only` needs read permission only. `sysfs` names another
    directory in sysfs format than /sys, that is, another machine: for planning and tests.

    Opening raises NoSegment, NotPermitted, OtherLayout (in use, or not removable), or MtlshmError: errno EBADMSG if the
    file is no segment or is damaged, ESTALE if it is retired or of an earlier boot, EOPNOTSUPP if the file system lacks
    O_TMPFILE or OFD locks, ENOSPC. Killed inside: there is no file, or a complete segment.

    All methods may be called from any thread. Each raises ValueError once the Host is closed, and MtlshmError with
    errno EBADMSG if somebody has truncated the segment. Methods that ask whether an owner lives open the file anew:
    ESTALE if another file is at the path now, EACCES, EMFILE. Methods that change the table raise EROFS if it was
    opened `read_only`. mtlshm.h has the errors of each function.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        create: bool = True,
        read_only: bool = False,
        sysfs: str | os.PathLike[str] | None = None,
    ) -> None:
        self._mapping: _Mapping | None = None
        self._instances: WeakSet[Instance] = WeakSet()
        self._sysfs = None if sysfs is None else os.path.abspath(sysfs)
        self.path = os.path.abspath(default_path() if path is None else path)
        if "\0" in self.path:
            raise ValueError("a path has no NUL in it")
        flags = lib.MTLSHM_CREATE * (create and not read_only) | lib.MTLSHM_READ_ONLY * read_only
        result = ffi.new("struct mtlshm_host **")
        c_sysfs = ffi.NULL if self._sysfs is None else os.fsencode(self._sysfs)
        code = lib.mtlshm_open(result, os.fsencode(self.path), flags, c_sysfs)
        if code:
            raise segment.refused(self.path, code)
        self._mapping = _Mapping(result[0])
        if replaced := lib.mtlshm_replaced(result[0]):
            import logging  # it takes a while, and this is rare

            text = "segment %s: one of layout version %d, which nobody used, was replaced by one of version %d"
            logging.getLogger(__name__).warning(text, self.path, replaced, lib.MTLSHM_LAYOUT_VERSION)

    def _opened(self) -> _Mapping:
        if self._mapping is None:
            raise ValueError(f"segment {self.path}: this Host is closed")
        return self._mapping

    def _call(self, function: Any, *arguments: Any) -> int:
        mapping = self._opened()  # ours until the call is over, whoever closes the host meanwhile
        return int(function(mapping.c, *arguments))

    @property
    def handle(self) -> Any:
        """The C library's `struct mtlshm_host *`, for code that calls the library directly. It is valid until
        close(), and longer if an instance of this Host is still referenced."""
        return self._opened().c

    def file(self) -> SegmentFile:
        """The mapped file, as it was when it was opened. There may be another file at `path` now."""
        c = ffi.new("struct mtlshm_file *")
        lib.mtlshm_file(self._opened().c, c)
        return SegmentFile(c.device, c.inode, c.uid, c.gid, c.mode)

    def register(
        self,
        label: str | None = None,
        *,
        kind: Kind = Kind.SHM,
        cpus: Iterable[int] | None = None,
        parent: TableOwner | None = None,
    ) -> Instance:
        """Register this process as an instance. The table shows it as `label` (the command's name if None, at most 63
        bytes).

        `cpus` are the CPUs it may claim; None: those in the calling thread's affinity mask, which every claim_many()
        reads anew. `parent` is the owner whose lcores it claims; None: the owner that $MTLSHM_LEASE names, if it is
        set; 0: none.

        errno EUSERS: all 256 records belong to living instances. ESRCH: the parent is dead or unknown. ELOOP: the
        chain of parents is too long. EINVAL: $MTLSHM_LEASE is no lease. EEXIST: kind is DAEMON and one lives. ESTALE:
        the segment is retired or replaced. Killed inside: the record is free, or is collected as that of a dead
        instance.
        """
        c_label = ffi.NULL if label is None else ffi.new("char[]", label.encode(errors="surrogateescape"))
        c_cpus = ffi.NULL if cpus is None else CpuSet(cpus).to_c()
        c_parent = 0 if parent is None else parent or lib.MTLSHM_NO_PARENT
        identity = ffi.new(
            "struct mtlshm_identity *", {"label": c_label, "kind": kind, "cpus": c_cpus, "parent": c_parent}
        )
        result = ffi.new("struct mtlshm_instance **")
        check(lib.mtlshm_register(result, self._opened().c, identity), f"register in {self.path}")
        return self._instance(result[0])

    def register_proxy(self, kind: Kind, process: Process, parent: TableOwner = NOBODY) -> Instance:
        """For the daemon: register an instance for a process that does not map the table. It is a tenant of `parent`,
        if that is not 0.

        Closing it leaves it in the table, where the next daemon finds it; Instance.unregister() ends it. Errors are
        those of register(). Killed inside: there is no such instance, or one that the next daemon finds.
        """
        c = ffi.new("struct mtlshm_process *")
        for name, value in process._asdict().items():
            text = isinstance(value, str)
            setattr(
                c, name, value.encode(errors="surrogateescape")[: ffi.sizeof(getattr(c, name)) - 1] if text else value
            )
        result = ffi.new("struct mtlshm_instance **")
        code = lib.mtlshm_register_proxy(result, self._opened().c, kind, c, parent)
        check(code, f"register {process.label} in {self.path}")
        return self._instance(result[0], proxied=True)

    def proxied(self, c: Any) -> Instance:
        """For the daemon: the same of a `struct mtlshm_instance *` that its own C has got from register_proxy()."""
        return self._instance(c, proxied=True)

    def adopt(self, owner: TableOwner) -> Instance:
        """For the daemon: take over an instance that an earlier daemon made by register_proxy(). errno ESRCH: `owner`
        is no proxied instance, or is a reservation."""
        result = ffi.new("struct mtlshm_instance **")
        check(lib.mtlshm_adopt(result, self._opened().c, owner), f"owner {owner:#x}")
        return self._instance(result[0], proxied=True)

    def _instance(self, c: Any, *, proxied: bool = False) -> Instance:
        instance = Instance(self, c, proxied)
        # Freed when nobody uses it any more, and the mapping after the last one: so a thread that closes it does not
        # pull it from under another. (Not ffi.gc(), which forgets about objects that are in a cycle.)
        finalize(instance, _free, c, self._opened())
        self._instances.add(instance)
        return instance

    def holder(self, lcore: int) -> tuple[TableOwner, int]:
        """The owner of an lcore (0: it is free), and the daemon's note on it. No system call. errno ERANGE: there is no
        such lcore."""
        owner, tag = ffi.new("uint64_t *"), ffi.new("uint32_t *")
        check(self._call(lib.mtlshm_holder, lcore, owner, tag), f"lcore {lcore}")
        return owner[0], tag[0]

    def tag(self, lcore: int, owner: TableOwner, tag: int) -> None:
        """For the daemon: attach 32 bits to an lcore of `owner`; the next claim of it clears them. errno ESRCH:
        `owner` does not hold it. Killed inside: attached, or not."""
        check(self._call(lib.mtlshm_tag, lcore, owner, tag), f"lcore {lcore}")

    def lease(self, owner: TableOwner) -> str:
        """The value of $MTLSHM_LEASE for processes that claim lcores of `owner`. Does not ask whether it lives."""
        text = ffi.new("char[]", lib.MTLSHM_LEASE_SIZE)
        check(self._call(lib.mtlshm_lease_format, owner, text), f"owner {owner:#x}")
        return os.fsdecode(ffi.string(text))

    def parse_lease(self, text: str) -> TableOwner:
        """The owner that a value of $MTLSHM_LEASE names. errno EINVAL: it is no lease; ESRCH: it is one of another
        segment. Does not ask whether the owner lives."""
        owner = ffi.new("uint64_t *")
        check(self._call(lib.mtlshm_lease_parse, ffi.new("char[]", os.fsencode(text)), owner), f"lease {text}")
        return TableOwner(owner[0])

    def reserve(
        self, key: str, count: int, *, label: str | None = None, cpus: Iterable[int] | None = None, **policy: Any
    ) -> Reservation:
        """Reserve lcores for tenants under a key of 1 to 63 bytes, or find the reservation that has this key.

        `policy` takes the arguments of Instance.claim_many(). A reservation outlasts its maker and every daemon, until
        end() or the next boot.

        errno EINVAL: the key is empty or too long; and the errors of Instance.claim_many() and register(). Killed
        inside: the whole reservation is there, or nothing of it.
        """
        result = ffi.new("struct mtlshm_reserved *")
        c_label = ffi.NULL if label is None else ffi.new("char[]", label.encode(errors="surrogateescape"))
        c_cpus = ffi.NULL if cpus is None else CpuSet(cpus).to_c()
        c_want = want(count, **policy)
        code = self._call(lib.mtlshm_reserve, _key(key), c_label, c_want, c_cpus, result)
        return Reservation.from_c(result, bool(check(code, f"reservation {key}: {counted(count)}")))

    def reservation(self, key: str) -> Reservation | None:
        """The reservation that has this key, or None. errno EINVAL: the key is empty or too long."""
        result = ffi.new("struct mtlshm_reserved *")
        code = self._call(lib.mtlshm_reservation, _key(key), result)
        if code == -errno.ESRCH:
            return None
        check(code, f"reservation {key}")
        return Reservation.from_c(result, True)

    def end(self, owner: TableOwner) -> None:
        """End a reservation. Lcores that its tenants use are free when the tenants give them back. errno ESRCH:
        `owner` is no reservation, or it has ended. Killed inside: it is there, or it has ended."""
        check(self._call(lib.mtlshm_end, owner), f"reservation {owner:#x}")

    def choose(
        self, count: int, *, parent: TableOwner = NOBODY, cpus: Iterable[int] | None = None, **policy: Any
    ) -> CpuSet:
        """The lcores that Instance.claim_many() would choose now, with its errors. Claims and collects nothing."""
        lcores = ffi.new("uint16_t[]", max(count, 1))
        c_cpus = ffi.NULL if cpus is None else CpuSet(cpus).to_c()
        check(self._call(lib.mtlshm_choose, want(count, **policy), c_cpus, parent, lcores), counted(count))
        return CpuSet(ffi.unpack(lcores, count))

    def interface_node(self, interface: str) -> int | None:
        """The NUMA node of a network interface, by its name in sysfs; None if the kernel knows none. errno ENODEV: this
        network namespace has no such interface."""
        node = ffi.new("int32_t *")
        check(self._call(lib.mtlshm_interface_node, os.fsencode(interface), node), f"interface {interface}")
        return None if node[0] == lib.MTLSHM_ANY_NODE else int(node[0])

    def snapshot(self) -> Snapshot:
        """Copy the whole table without stopping anyone: each lcore with its owner is consistent, moments of different
        lcores may differ."""
        c = ffi.new("struct mtlshm_snapshot *")
        check(self._call(lib.mtlshm_snapshot, c), f"snapshot of {self.path}")
        return Snapshot.from_c(c)

    def inspect(self, owner: TableOwner) -> InstanceInfo | None:
        """One instance, or None if it was collected. Only a snapshot has its lcores."""
        c = ffi.new("struct mtlshm_instance_info *")
        code = self._call(lib.mtlshm_inspect, owner, c)
        if code == -errno.ESRCH:
            return None
        check(code, f"owner {owner:#x}")
        return InstanceInfo.from_c(c, time.monotonic_ns())

    def events(self, start: int = 0) -> list[Event]:
        """Return the events from number `start` on that are still in the ring, oldest first, without stopping anyone.

        An event that is not whole, since its writer is at work this moment or was killed, has the kind LOST; see
        mtlshm.events.Follower.
        """
        c = ffi.new("struct mtlshm_event[]", lib.MTLSHM_EVENTS)
        count = check(self._call(lib.mtlshm_events, start, c), f"events of {self.path}")
        return [Event.from_c(each) for each in c[0:count]]

    def tell(self, kind: EventKind, interface: str, text: str) -> None:
        """Add an event of kind XDP or NIC, for the daemon. Both texts are cut at 63 bytes.

        A caller that is killed inside leaves the event, or one that is reported as lost.
        """
        c_texts = (ffi.new("char[]", each.encode(errors="surrogateescape")) for each in (interface, text))
        check(self._call(lib.mtlshm_tell, kind, *c_texts), f"event of {interface}")

    def owners(self) -> list[TableOwner]:
        """The owners of all instances that registered themselves, including dead ones that nobody has collected yet."""
        return self._list(lib.mtlshm_owners)

    def proxies(self) -> list[TableOwner]:
        """The owners of all instances that a daemon keeps for others."""
        return self._list(lib.mtlshm_proxies)

    def _list(self, function: Any) -> list[TableOwner]:
        owners = ffi.new("uint64_t[]", lib.MTLSHM_INSTANCES)
        return list(ffi.unpack(owners, check(self._call(function, owners), "owners")))

    def alive(self, owner: TableOwner) -> bool:
        """Whether the instance lives. A proxied one always does. False if it was collected."""
        return bool(check(self._call(lib.mtlshm_alive, owner), f"owner {owner:#x}"))

    def collect(self, owner: TableOwner) -> int:
        """Collect one dead instance; return how many lcores that freed. Busy: it lives, or is proxied. errno ESRCH:
        it was collected already. Killed inside: the next collector starts again; nothing is lost."""
        return check(self._call(lib.mtlshm_collect, owner), f"owner {owner:#x}")

    def sweep(self) -> int:
        """Collect all dead instances; return how many. Killed inside: as collect()."""
        return check(self._call(lib.mtlshm_sweep), f"sweep of {self.path}")

    def evict(self, lcore: int, owner: TableOwner) -> None:
        """Take an lcore away from `owner`, dead or alive. The owner is not told: this is for operators. errno ESRCH:
        `owner` does not hold it. Killed inside: taken, or not."""
        check(self._call(lib.mtlshm_evict, lcore, owner), f"lcore {lcore}")

    def topology(self) -> Topology:
        """The host's CPUs, read anew."""
        return Topology.read(self._sysfs)

    def unlink(self) -> None:
        """Remove the segment and close this handle. Busy: an instance lives. Killed inside: the segment is in use as
        before, or is retired, and the next Host replaces it."""
        check(self._call(lib.mtlshm_retire), f"segment {self.path}")
        try:
            segment.unlink(self.path)
        finally:
            self.close()  # if that failed, the segment is in use again

    def close(self) -> None:
        """Unregister the instances made here and unmap the segment. Idempotent."""
        for instance in list(self._instances):
            instance.close()
        self._mapping = None

    def __enter__(self) -> Host:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class Reservation(NamedTuple):
    """Lcores that are held for tenants without a process."""

    owner: TableOwner
    lcores: CpuSet  # including those that tenants use
    found: bool  # it was there already

    @classmethod
    def from_c(cls, c: Any, found: bool) -> Reservation:
        """From a `struct mtlshm_reserved`."""
        return cls(c.owner, CpuSet(ffi.unpack(c.lcores, c.count)), found)


def _key(key: str) -> Any:
    return ffi.new("char[]", key.encode(errors="surrogateescape"))


class _Mapping:
    """An open `struct mtlshm_host *`, closed when the last who needs it lets go."""

    def __init__(self, c: Any) -> None:
        self.c = c

    def __del__(self) -> None:
        lib.mtlshm_close(self.c)


def _free(instance: Any, _: _Mapping) -> None:
    lib.mtlshm_instance_free(instance)


def default_path() -> str:
    """$MTLSHM_PATH, else `segment` in the daemon's settings file, else /dev/shm/mtlshm; see mtlshm_default_path() in
    mtlshm.h. ConfigError if that file cannot be used.
    """
    c = lib.mtlshm_default_path()
    if c != ffi.NULL:
        return os.fsdecode(ffi.string(c))
    number = ffi.errno
    if path := config.file():
        config.read(path)  # finds the same fault, and says where
    raise config.ConfigError(f"the settings file: {os.strerror(number)}", number)
