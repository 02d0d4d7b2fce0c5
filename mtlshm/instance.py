# SPDX-License-Identifier: BSD-3-Clause
"""A registered identity, able to own lcores."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Protocol

from mtlshm._core import ffi, lib
from mtlshm.cpuset import CpuSet, counted
from mtlshm.errors import check, error
from mtlshm.kinds import LcoreType, Smt, TableOwner
from mtlshm.snapshot import Snapshot

# Looked up once: every claim passes here.
_APP = int(LcoreType.APP)
_claim = lib.mtlshm_claim
_release = lib.mtlshm_release


class Registry(Protocol):
    """Where an instance is registered: a Host. It is kept open for as long as the instance is used."""

    def snapshot(self) -> Snapshot:
        """Everything at a moment, without stopping anyone."""

    def lease(self, owner: TableOwner) -> str:
        """What $MTLSHM_LEASE has to be in a process that shall draw its lcores from that owner."""


class Instance:
    """Made by Host.register(); a context manager that unregisters, which releases all its lcores.

    It lives until then, or as long as the process's address space: death and exec() end it, fork() does not pass it on
    (InstanceGone in the child, which registers for itself). All methods may be called from any thread.
    """

    __slots__ = ("__weakref__", "_c", "_host", "_proxied")

    def __init__(self, host: Registry, c: Any, proxied: bool) -> None:
        self._host = host
        self._proxied = proxied
        self._c = c  # NULL once closed: the core answers EBADF

    @property
    def handle(self) -> Any:
        """The core's own, a `struct mtlshm_instance *`, valid as long as this object is; NULL once it is closed."""
        return self._c

    def claim(self, lcore: int, type: int = _APP) -> None:
        """Claim one lcore, from a dead owner too. Busy if a living instance holds it, this one included."""
        try:
            if code := _claim(self._c, lcore, type):
                raise error(code, f"lcore {lcore}")
        except OverflowError:  # no number that C knows
            raise error(-errno.ERANGE, f"lcore {lcore}") from None

    def release(self, lcore: int) -> None:
        """Release one lcore."""
        try:
            if code := _release(self._c, lcore):
                raise error(code, f"lcore {lcore}")
        except OverflowError:
            raise error(-errno.ERANGE, f"lcore {lcore}") from None

    def take(self, lcore: int, owner: TableOwner, type: int = _APP) -> None:
        """For the daemon: take over an lcore of `owner`, a proxied instance; it is not free for a moment."""
        check(lib.mtlshm_take(self._c, lcore, owner, type), f"lcore {lcore}")

    def claim_many(
        self,
        count: int,
        *,
        node: int | None = None,
        near: bool = False,
        smt: Smt = Smt.ANY,
        type: LcoreType = LcoreType.APP,
        timeout: float = 1.0,
    ) -> CpuSet:
        """Claim `count` lcores or none: on one NUMA node if asked, isolated and sharing a cache if possible.

        With `near` the node is a wish: lcores of other nodes are taken if it has not enough. CPU 0, and lcores whose
        SMT sibling somebody else uses, are taken only if there are no others. Busy if not enough are free; errno ERANGE
        if there could never be so many. `timeout` in seconds is for waiting for other claims of this kind, which take a
        microsecond.
        """
        c_want = want(count, node=node, near=near, smt=smt, type=type, timeout=timeout)
        lcores = ffi.new("uint16_t[]", count)
        where = "" if node is None else f" on NUMA node {node}"
        check(lib.mtlshm_claim_many(self._c, c_want, lcores), f"{counted(count)}{where}")
        return CpuSet(ffi.unpack(lcores, count))

    def release_all(self) -> int:
        """Release every lcore held; returns how many."""
        return check(lib.mtlshm_release_all(self._c), "all lcores")

    @property
    def owner(self) -> TableOwner:
        """What snapshots name this instance by; 0 once it is closed."""
        return TableOwner(lib.mtlshm_owner(self._c))

    @property
    def lease(self) -> str:
        """What $MTLSHM_LEASE has to be in a process that shall draw its lcores from this instance."""
        return self._host.lease(self.owner)

    @property
    def lcores(self) -> CpuSet:
        """What it holds now."""
        owner = self.owner
        if not owner:
            return CpuSet()
        return next((info.lcores for info in self._host.snapshot().instances if info.owner == owner), CpuSet())

    @contextmanager
    def semaphore(self, timeout: float = 1.0) -> Iterator[bool]:
        """Hold the host's robust semaphore; yields True if the holder before died in it and left things half done."""
        taken_over = check(lib.mtlshm_lock(self._c, _milliseconds(timeout)), "the semaphore")
        try:
            yield bool(taken_over)
        finally:
            lib.mtlshm_unlock(self._c)

    def unregister(self) -> None:
        """End the instance, a proxied one too, and close it."""
        check(lib.mtlshm_unregister(self._c), "unregister")
        self.close()

    def close(self) -> None:
        """Unregister, unless it is a proxied one, which stays in the table. Idempotent.

        A call that another thread has under way keeps the handle until it returns.
        """
        c, self._c = self._c, ffi.NULL
        if not self._proxied:
            lib.mtlshm_unregister(c)

    def __enter__(self) -> Instance:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def want(
    count: int,
    *,
    node: int | None = None,
    near: bool = False,
    smt: Smt = Smt.ANY,
    type: LcoreType = LcoreType.APP,
    timeout: float = 1.0,
) -> Any:
    """A `struct mtlshm_want`."""
    if not 0 <= count <= lib.MTLSHM_LCORES:
        raise error(-errno.ERANGE, counted(count))
    if node is not None and not 0 <= node < lib.MTLSHM_LCORES:
        raise error(-errno.ENXIO, f"{counted(count)} on NUMA node {node}")
    c = ffi.new("struct mtlshm_want *")
    c.count = count
    c.numa_node = lib.MTLSHM_ANY_NODE if node is None else node
    c.near = near
    c.smt = smt
    c.type = type
    c.timeout_ms = max(1, _milliseconds(timeout))
    return c


def _milliseconds(seconds: float) -> int:
    """As C takes them: from 0 to the 49 days that fit."""
    return int(min(max(seconds * 1000, 0), 2**32 - 1))
