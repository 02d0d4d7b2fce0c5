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
    """Where an instance is registered: a Host. It stays open as long as the instance is referenced."""

    def snapshot(self) -> Snapshot:
        """Copy the whole table."""

    def lease(self, owner: TableOwner) -> str:
        """The value of $MTLSHM_LEASE for processes that claim lcores of that owner."""


class Instance:
    """Made by Host.register(); a context manager that unregisters, which releases all its lcores.

    It lives until then, or as long as the process's address space: death and exec() end it. A forked child does not
    inherit it and registers for itself. All methods may be called from any thread.

    Each method raises InstanceGone after close() and in a forked child, and MtlshmError with errno EBADMSG if
    somebody has truncated the segment. If the process is killed inside a method, what it held is collected as a dead
    instance's.
    """

    __slots__ = ("__weakref__", "_c", "_host", "_proxied")

    def __init__(self, host: Registry, c: Any, proxied: bool) -> None:
        self._host = host
        self._proxied = proxied
        self._c = c  # NULL once closed: the core answers EBADF

    @property
    def handle(self) -> Any:
        """The C library's `struct mtlshm_instance *`, valid as long as this object is; NULL once it is closed."""
        return self._c

    def claim(self, lcore: int, type: int = _APP) -> None:
        """Claim one lcore, also from a dead owner.

        Busy: a living instance holds it, with errno EALREADY if it is this one. errno ERANGE: there is no such lcore;
        ENODEV: that CPU is absent or offline; EDOM: it is outside the CPUs that the instance may claim, or its parent
        does not hold it.
        """
        try:
            if code := _claim(self._c, lcore, type):
                raise error(code, f"lcore {lcore}")
        except OverflowError:  # no number that C knows
            raise error(-errno.ERANGE, f"lcore {lcore}") from None

    def release(self, lcore: int) -> None:
        """Release one lcore; it is free, or its parent's. errno EPERM: this instance does not hold it; ERANGE: there
        is no such lcore."""
        try:
            if code := _release(self._c, lcore):
                raise error(code, f"lcore {lcore}")
        except OverflowError:
            raise error(-errno.ERANGE, f"lcore {lcore}") from None

    def take(self, lcore: int, owner: TableOwner, type: int = _APP) -> None:
        """For the daemon: take over an lcore of `owner` (the pool, a legacy process or the parent), so that it is never
        free in between. errno ESRCH: `owner` does not hold it, or is none of these."""
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

        With `near` the node is a wish: lcores of other nodes are taken if the node has not enough. CPU 0, and lcores
        whose SMT sibling somebody else uses, are taken only if there are no others. `timeout` in seconds bounds the
        wait for other claims of this kind, which take microseconds.

        Busy: not enough are free. errno ERANGE: the instance could never have so many; ENXIO: no such NUMA node.
        TimedOut: a stopped process holds the semaphore.
        """
        c_want = want(count, node=node, near=near, smt=smt, type=type, timeout=timeout)
        lcores = ffi.new("uint16_t[]", count)
        where = "" if node is None else f" on NUMA node {node}"
        check(lib.mtlshm_claim_many(self._c, c_want, lcores), f"{counted(count)}{where}")
        return CpuSet(ffi.unpack(lcores, count))

    def release_all(self) -> int:
        """Release all lcores of this instance; return how many."""
        return check(lib.mtlshm_release_all(self._c), "all lcores")

    @property
    def owner(self) -> TableOwner:
        """The owner that snapshots show for this instance; 0 once it is closed."""
        return TableOwner(lib.mtlshm_owner(self._c))

    @property
    def lease(self) -> str:
        """The value of $MTLSHM_LEASE for processes that claim lcores of this instance."""
        return self._host.lease(self.owner)

    @property
    def lcores(self) -> CpuSet:
        """The lcores that this instance holds now, read from the table."""
        owner = self.owner
        if not owner:
            return CpuSet()
        return next((info.lcores for info in self._host.snapshot().instances if info.owner == owner), CpuSet())

    @contextmanager
    def semaphore(self, timeout: float = 1.0) -> Iterator[bool]:
        """Hold the host's robust semaphore. Yields True if the previous holder died in it and may have left a change
        half done. TimedOut after `timeout` seconds, which a stopped holder may cause. Not recursive."""
        taken_over = check(lib.mtlshm_lock(self._c, _milliseconds(timeout)), "the semaphore")
        try:
            yield bool(taken_over)
        finally:
            lib.mtlshm_unlock(self._c)

    def unregister(self) -> None:
        """End the instance, also a proxied one, and close it."""
        check(lib.mtlshm_unregister(self._c), "unregister")
        self.close()

    def close(self) -> None:
        """Unregister; a proxied instance stays in the table. Idempotent.

        The handle stays valid until calls of other threads have returned.
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
    """Milliseconds for the C library: 0 to 2^32 - 1, about 49 days."""
    return int(min(max(seconds * 1000, 0), 2**32 - 1))
