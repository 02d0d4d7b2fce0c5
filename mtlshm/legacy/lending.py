# SPDX-License-Identifier: BSD-3-Clause
"""Lcores moved between the two tables, ours and libmtl's legacy one, so that nobody finds the same lcore free in both.

Claims in our table ask nobody, and legacy processes know only their table. So an lcore that one side may give away must
look taken in the other:

    domain    in the legacy table         in our table
    ours      reserved                    free, or anybody's
    lent      not active                  of the pool
    legacy    a legacy process's          of that process's instance, or for a moment still of the pool's
    between   reserved                    of the pool or of a legacy process's instance

BETWEEN, nobody can have the lcore, whatever happens. Each move from or to "ours" goes through "between", and changes
one table at a time, under the legacy table's lock:

    lend          ours -> between (pool: claim), between -> lent (legacy table: clear)
    bring home    lent -> between (legacy table: reserve), between -> ours (our table: evict)
    hand over     lent -> between (legacy table: reserve), between -> ours (our table: take)

Everything else changes one table only: a legacy process claims or releases in its own table, and in ours
Instance.take() moves an lcore between the pool and an instance without a moment in which it is free. A process never
waits for us: if it dies or gives an lcore back, that lcore still belongs to its instance in our table.

A PROCESS THAT MOVES LCORES MAY BE KILLED BEFORE OR AFTER ANY STEP. What is left is one of the four rows, and the kernel
drops the lock. Nothing else is remembered: the next daemon reads both tables and brings home what is between. The order
of work at a daemon's start does not matter either: to reserve an lcore that is neither reserved nor lent harms nobody.

A daemon that is killed or stopped leaves reservations and loans as they are. Both sides keep what they have and go on
by themselves; only the loans are not renewed. Clearing the reservations of free lcores would be worse: these would be
free on both sides. Reservations last as long as a legacy process is attached, since that keeps the table. A legacy
process that starts with nobody attached and no daemon zeroes the table and takes any lcore. We cannot prevent that: no
kernel keeps a table attached without a process. The next daemon finds such a clash, reports it, and leaves both alone.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress

from mtlshm import namespaces
from mtlshm.cpuset import CpuSet
from mtlshm.errors import Busy, MtlshmError
from mtlshm.host import Host
from mtlshm.instance import Instance
from mtlshm.kinds import Kind, TableOwner
from mtlshm.legacy import LegacyError
from mtlshm.legacy.table import LegacyTable
from mtlshm.snapshot import InstanceInfo, Process

_KEY = 0xFFFFFFFF
LENT_BY_HAND = 1 << 30  # in the tag of an lcore of the pool: more than the daemon would lend


def parse(text: str) -> int | CpuSet:
    """A number of lcores, or a list such as 4-7 or 4,6; a list of one is 4-4. ValueError says what is wrong."""
    if text.isdecimal():
        return int(text)
    lcores = CpuSet.parse(text)
    if not lcores:
        raise ValueError("neither a number of lcores nor a list such as 4-7")
    return lcores


# A pool is no process. In place of its start time is the table's key; of its pidfd's inode, that of the IPC namespace.


def open_pool(host: Host, key: int) -> Instance:
    """The instance to which lcores belong that are lent to this table and that no legacy process has taken; made if
    there is none."""
    for info in _pools(host):
        if is_pool_of(info, key):
            return host.adopt(info.owner)
    identity = 0, namespaces.own("pid"), key & _KEY, namespaces.own("ipc")
    nobody = Process(*identity, os.geteuid(), "", os.uname().nodename, "lent to legacy processes")
    return host.register_proxy(Kind.POOL, nobody)


def is_pool_of(info: InstanceInfo, key: int) -> bool:
    """Whether the instance is the pool for the table with this key in our IPC namespace."""
    unsaid = 0, 0  # by an earlier version, which had one pool only
    return info.kind == Kind.POOL and (info.pidfd_inode, info.start_ticks) in (
        (namespaces.own("ipc"), key & _KEY),
        unsaid,
    )


def end_lost_pools(host: Host) -> CpuSet:
    """Bring home what is lent to tables that are gone, as those of removed containers are; returns which lcores.

    Whoever makes such a table anew begins with an empty one, and takes what he likes, whatever is lent.
    """
    home = CpuSet()
    for info in _pools(host):
        if _is_gone(host, info):
            with suppress(MtlshmError):  # somebody else has ended it this moment
                pool = host.adopt(info.owner)
                lcores = pool.lcores
                pool.unregister()
                home |= lcores
    return home


def _pools(host: Host) -> list[InstanceInfo]:
    found = [host.inspect(owner) for owner in host.proxies()]
    return [info for info in found if info and info.kind == Kind.POOL]


def _is_gone(host: Host, pool: InstanceInfo) -> bool:
    """Whether the pool's table is gone. False if that cannot be told from here."""
    if pool.pidfd_inode != namespaces.own("ipc"):
        return namespaces.is_gone("ipc", pool.pidfd_inode, pool.pid_namespace)
    daemon = host.snapshot().daemon
    if daemon and daemon.pid != os.getpid():  # it makes another if somebody has removed it
        return False
    key = pool.start_ticks
    try:
        LegacyTable(key - (_KEY + 1 if key > _KEY >> 1 else 0), create=False).close()
    except LegacyError as error:
        return error.errno == errno.ENOENT
    return False


def is_anything_lent(host: Host) -> bool:
    """Whether a daemon has lent lcores, or has recorded a legacy process that holds some."""
    held = host.snapshot().lcores
    return any(lcore.owner.kind in (Kind.POOL, Kind.LEGACY) for lcore in held)


def lend(pool: Instance, table: LegacyTable, lcore: int) -> bool:
    """Let legacy processes have an lcore that is reserved; False if it is not free."""
    with suppress(Busy):
        pool.claim(lcore)
        table.clear(lcore)
        return True
    return False


def hand_over(to: Instance, table: LegacyTable, lcore: int, pool: TableOwner, kind: int) -> None:
    """Give one of the pool that no legacy process uses to an instance. Nobody else can have it in between."""
    table.reserve(lcore)
    to.take(lcore, pool, kind)


def bring_home(host: Host, table: LegacyTable, lcore: int, holder: TableOwner, *, reclaimed: bool = False) -> None:
    """Take back one that no legacy process uses. `holder` is the pool, or the instance of who used it."""
    table.reserve(lcore, reclaimed=reclaimed)
    host.evict(lcore, holder)
