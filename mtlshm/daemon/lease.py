# SPDX-License-Identifier: BSD-3-Clause
"""The source of a socket client's lcores: the lease in its environment, or all free lcores.

THE ENVIRONMENT IS THE CLIENT'S, and so is how long it takes to read: it may be megabytes, and while the client is in
execve(), where it may hang for as long as a file system likes that it closes a file of, nobody can open
/proc/PID/environ or /proc/PID/stat (exec_update_lock; seen with Linux 6.18). So the observer looks, never we.

WHAT CANNOT BE READ IS NOT "NO LEASE". To refuse the client would send it to libmtl's System V table, and to let it have
what is free could give it more than it was started for. So it is registered, and gets no lcore as long as lcores are
held for tenants on this host. While there are none, there is no lease that it could have.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass

from mtlshm import Host, Instance, Kind, LcoreType, MtlshmError, Process
from mtlshm.daemon.observer import Observer
from mtlshm.errors import reason
from mtlshm.kinds import NOBODY, TableOwner
from mtlshm.snapshot import Snapshot, printable
from mtlshm.strangers import TOO_LONG

VARIABLE = "MTLSHM_LEASE"
_AS_ROOT = "run mtlshmd as root and in the PID namespace of the host"
_ANEW = f"start it anew with mtlshm-ctl run, or without {VARIABLE}"
_VOID = (errno.ESRCH, errno.ELOOP)


@dataclass(frozen=True, slots=True)
class Lease:
    """The lease of one client."""

    parent: TableOwner = NOBODY
    error: int = 0  # what its requests for lcores are answered with
    why: str = ""  # that is so, and what to do about it
    unread: bool = False  # it may have one

    def refusal(self, host: Host) -> int:
        """The errno with which a request for an lcore is refused now, or 0."""
        return 0 if self.unread and not _is_anything_leased(host.snapshot()) else self.error


async def find(host: Host, observer: Observer, pid: int) -> tuple[Lease, int]:
    """That of a process, and its start time, 0 if unknown."""
    if pid <= 0:
        return _unread("it is in a PID namespace that we do not see into", _AS_ROOT), 0
    try:
        answer = await observer.ask("newcomer", pid=pid, variable=VARIABLE)
    except OSError as error:
        return _unread(f"it could not be looked at: {reason(error)}", "when that is mended, start it anew"), 0
    if answer is None:
        return _unread("it took too long", "start it anew"), 0
    if why := answer["unread"]:
        remedy = "start it anew, with a shorter one" if why == TOO_LONG else _AS_ROOT
        return _unread(why, remedy), answer["start_ticks"]
    return _parse(host, answer["value"] or ""), answer["start_ticks"]


def register(host: Host, client: Process, lease: Lease) -> tuple[Instance, Lease]:
    """The client as a tenant, if its lease is good; else as somebody who gets nothing. OSError if it cannot be that
    either."""
    try:
        return host.register_proxy(Kind.SOCKET, client, lease.parent), lease
    except MtlshmError as error:
        if not lease.parent or error.errno not in _VOID:
            raise
        lease = gone() if error.errno == errno.ESRCH else _void(f"has too many parents above it; {_ANEW}")
        return host.register_proxy(Kind.SOCKET, client), lease


def gone() -> Lease:
    """One of a parent that is dead."""
    return _void(f"is of a process or a reservation that is gone; {_ANEW}")


def late(found: Lease) -> Lease:
    """A lease found after registration without one. It is never good: the client had none when it registered."""
    return _unread("as it was when it registered", _ANEW) if found.parent else found


def _parse(host: Host, text: str) -> Lease:
    if not text:
        return Lease()
    try:
        return Lease(host.parse_lease(text))
    except MtlshmError as error:
        if error.errno == errno.EINVAL:
            return _void(f"is no lease, but {printable(text)!r}; {_ANEW}")
        return _void(f"is of another segment than {host.path}; {_ANEW}")


def _void(what: str) -> Lease:
    return Lease(NOBODY, errno.ESRCH, f"it gets no lcore, as its {VARIABLE} {what}")


def _unread(why: str, remedy: str) -> Lease:
    text = f"its environment cannot be read ({why}), so it gets no lcore while some are leased on this host; {remedy}"
    return Lease(NOBODY, errno.EACCES, text, unread=True)


def _is_anything_leased(table: Snapshot) -> bool:
    """Whether there is any tenant, or any lcore held for tenants."""
    inodes = {info.owner: info.pidfd_inode for info in table.instances}
    # What its own process claimed is no lease; see own_claims.py.
    tenants = (info for info in table.instances if info.parent and info.pidfd_inode != (inodes.get(info.parent) or -1))
    return any(lcore.type == LcoreType.LEASE for lcore in table.lcores) or any(tenants)
