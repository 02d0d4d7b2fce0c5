# SPDX-License-Identifier: BSD-3-Clause
"""Segments of the layout before this one, for people to look at: who holds what until all its users have ended.

Only read, and only from a copy: that layout's users know how to change it, and we do not.
"""

from __future__ import annotations

import fcntl
import os
import struct
import time

from mtlshm._core import lib
from mtlshm.cpuset import CpuSet
from mtlshm.kinds import Kind, LcoreType, TableOwner
from mtlshm.segment import open_for_reading
from mtlshm.snapshot import InstanceInfo, Lcore, Snapshot, printable
from mtlshm.topology import Topology

VERSION = 2

_MAGIC = b"MTLSHM\r\n"
_HEADER = struct.Struct("=8sIIQQQ40s48xQ56xQQQQ32x")  # 256 bytes; the doorbell and the state are passed over
_RECORD = struct.Struct("=QQQI4xQQQiI8x16s64s64s64s40x")  # 320 bytes
_LCORE = struct.Struct("=QQ")
_RECORDS, _LCORES = 256, 1024
_SIZE = _HEADER.size + _RECORDS * _RECORD.size + _LCORES * _LCORE.size
_LIVE, _PROXIED = 1, 2
_FLOCK = struct.Struct("hhqqi4x")  # fcntl_locking(2)


class PreviousHost:
    """What `status` needs of a Host, for a segment of that layout. OSError; LookupError if the file is no such one."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.snapshot()

    def snapshot(self) -> Snapshot:
        """Who holds what."""
        if (found := read(self.path)) is None:
            raise LookupError(f"{self.path} has not layout version {VERSION}")
        return found

    def topology(self) -> Topology:
        """The host's CPUs."""
        return Topology.read()

    def __enter__(self) -> PreviousHost:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def read(path: str) -> Snapshot | None:
    """What a segment of that layout says; None if the file is no such segment. OSError as from open(2)."""
    fd = open_for_reading(path)
    try:
        data = os.pread(fd, _SIZE, 0)
        header = _HEADER.unpack_from(data.ljust(_SIZE, b"\0"))
        if header[:2] != (_MAGIC, VERSION) or len(data) < _SIZE:
            return None
        return _snapshot(fd, data, header)
    finally:
        os.close(fd)


def _snapshot(fd: int, data: bytes, header: tuple[int, ...]) -> Snapshot:
    held: dict[int, list[int]] = {}
    words = [_LCORE.unpack_from(data, _HEADER.size + _RECORDS * _RECORD.size + n * _LCORE.size) for n in range(_LCORES)]
    for number, (token, _) in enumerate(words):
        held.setdefault(token & ~0xFF, []).append(number)
    instances = {}
    for index in range(_RECORDS):
        control = _RECORD.unpack_from(data, _HEADER.size + index * _RECORD.size)[0]
        if control & 0xFF in (_LIVE, _PROXIED):
            owner = TableOwner(control >> 8 << 20 | index << 8)
            instances[owner] = _instance(fd, data, index, owner, CpuSet(held.get(owner, ())))
    now = int(time.time())
    return Snapshot(
        created=header[5] / 1e9,
        size=header[2],
        instances=tuple(instances.values()),
        lcores=tuple(
            Lcore(number, _type(token & 0xFF), float((now - note) % 2**32), note >> 32, instances[token & ~0xFF])
            for number, (token, note) in enumerate(words)
            if token & ~0xFF in instances
        ),
        semaphore=instances.get(TableOwner(header[7] & ~0xFF)),
        registered=header[8],
        collected=header[9],
        recovered=header[10],
        takeovers=header[11],
        claims=0,  # that layout did not count them
        releases=0,
    )


def _instance(fd: int, data: bytes, index: int, owner: TableOwner, lcores: CpuSet) -> InstanceInfo:
    control, parent, registered, kind, start, namespace, inode, pid, uid, *texts = _RECORD.unpack_from(
        data, _HEADER.size + index * _RECORD.size
    )
    comm, hostname, label, key = (printable(text.split(b"\0")[0].decode(errors="replace")) for text in texts)
    return InstanceInfo(
        owner=owner,
        parent=TableOwner(parent),
        kind=Kind(kind) if kind in Kind.__members__.values() else kind,
        alive=control & 0xFF == _PROXIED or _locked(fd, lib.MTLSHM_LIFE_BASE + index),
        pid=pid,
        pid_namespace=namespace,
        start_ticks=start,
        pidfd_inode=inode,
        uid=uid,
        comm=comm,
        hostname=hostname,
        label=label,
        key=key,
        age=max(time.monotonic_ns() - registered, 0) / 1e9,
        lcores=lcores,
    )


def _locked(fd: int, byte: int) -> bool:
    """Does somebody hold the life lock? That layout has it where this one has."""
    asked = _FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, byte, 1, 0)
    return bool(_FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_OFD_GETLK, asked))[0] != fcntl.F_UNLCK)


def _type(value: int) -> LcoreType | int:
    return LcoreType(value) if value in LcoreType.__members__.values() else value
