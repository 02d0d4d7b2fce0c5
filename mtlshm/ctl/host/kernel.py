# SPDX-License-Identifier: BSD-3-Clause
"""What the kernel can, found out by asking it to: a version number says nothing of seccomp filters and back-ports."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct

from mtlshm.ctl.host.place import Place
from mtlshm.ctl.verdict import State, Verdict
from mtlshm.errors import reason
from mtlshm.pidfds import SO_PEERPIDFD

_FLOCK = struct.Struct("@hhqqi4x")


def ofd_locks(place: Place) -> Verdict:
    """Without them nobody can know who lives."""
    fd = os.memfd_create("probe")
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0))
    except OSError as error:
        text = f"open-file-description locks: {reason(error)}; no lcore can be claimed before Linux 3.15"
        return Verdict("ofd-locks", State.FAILURE, text)
    finally:
        os.close(fd)
    return Verdict("ofd-locks", State.OK, "the kernel has open-file-description locks")


def pidfd(place: Place) -> Verdict:
    """The daemon's proof that a client of its socket is dead."""
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError as error:
        text = f"pidfd_open: {reason(error)}; mtlshmd cannot serve libmtl before Linux 5.3"
        advice = "let the seccomp filter pass pidfd_open" if error.errno == errno.EPERM else None
        return Verdict("pidfd", State.WARNING, text, advice)
    return Verdict("pidfd", State.OK, "the kernel has pidfds")


def so_peerpidfd(place: Place) -> Verdict:
    """The same, of clients in other PID namespaces."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        try:
            os.close(ours.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD))
        except OSError as error:
            text = f"SO_PEERPIDFD: {reason(error)}; before Linux 6.5 mtlshmd cannot serve clients in some containers"
            return Verdict("so-peerpidfd", State.WARNING, text)
    return Verdict("so-peerpidfd", State.OK, "the kernel has SO_PEERPIDFD, for clients in containers")


def freplace(place: Place) -> Verdict:
    """Decides between a chain of XDP programs and one fused program."""
    if os.geteuid():
        return Verdict("freplace", State.UNKNOWN, "only root may try whether XDP programs can be chained")
    from mtlshm.net import bpf

    can = bpf.may_extend()
    if can is None:
        return Verdict("freplace", State.UNKNOWN, "the kernel loads no XDP programs for this process")
    if can:
        return Verdict("freplace", State.OK, "the kernel has freplace programs: XDP programs can be chained")
    text = "the kernel has no freplace programs: interfaces get the fused XDP program, beside which no other can be"
    return Verdict("freplace", State.WARNING, text)
