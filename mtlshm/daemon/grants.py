# SPDX-License-Identifier: BSD-3-Clause
"""What a session was granted: the part of it that C knows too; see cffi_build/selector/selector.h.

Both answer the same client, by turns. So what it holds stands in one list, C's, and here C is told what it may grant.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from typing import Any

from mtlshm import Host, Instance
from mtlshm._core import ffi, lib


class Grants:
    """Lcore ids, and the CPUs that they stand for, of one client of the manager socket."""

    def __init__(self, host: Host, known: Any = None) -> None:
        """`known` is what C knows so far, a `struct session` that is copied."""
        self.c = ffi.new("struct session *", {"host": host.handle} if known is None else known)
        self._instance: Instance | None = None  # whose handle C has

    def allow(self, instance: Instance | None, known: Iterable[tuple[int, int]] | None) -> None:
        """From now on C answers for this instance. It may grant these, ids and CPUs, if they are free; with None it may
        only take back."""
        self._instance = instance
        self.c.instance = ffi.NULL if instance is None else instance.handle
        self.c.may_claim = instance is not None and known is not None
        if self.c.may_claim:
            cpus = array("H", bytes(ffi.sizeof(self.c.cpus)))
            for lcore_id, cpu in known or ():
                if lcore_id < lib.SESSION_IDS and cpu < lib.SESSION_IDS:
                    cpus[lcore_id] = cpu + 1
            ffi.memmove(self.c.cpus, cpus, ffi.sizeof(self.c.cpus))

    def hold(self, lcore_id: int, cpu: int) -> None:
        """It was granted."""
        lib.session_hold(self.c, lcore_id, cpu)

    def drop(self, lcore_id: int) -> int | None:
        """It is given back; returns its CPU. None: it was not granted here."""
        cpu: int = lib.session_drop(self.c, lcore_id)
        return None if cpu < 0 else cpu

    def __contains__(self, lcore_id: int) -> bool:
        return bool(lib.session_held(self.c, lcore_id) >= 0)

    def __iter__(self) -> Iterator[int]:
        return iter([granted.id for granted in self.c.held[0 : self.c.held_count]])

    def __len__(self) -> int:
        return int(self.c.held_count)

    @property
    def over(self) -> bool:
        """Has C met the client's end, in the middle of a request?"""
        return bool(self.c.over)

    def unsent(self) -> bytes:
        """A reply that C could not send, as the client does not read. It is told once; empty: there is none."""
        reply = bytes(ffi.buffer(self.c.reply)[0 : self.c.unsent])
        self.c.unsent = 0
        return reply
