# SPDX-License-Identifier: BSD-3-Clause
"""AF_XDP sockets that are opened for another process, bound to a queue and complete with their memory.

Three steps need privilege: opening an AF_XDP socket (CAP_NET_RAW), locking the memory of its UMEM, and writing to
xsks_map. The opener does all three. The user of the socket gets two descriptors: the socket, and a memfd that is the
UMEM. It maps both, and receives and sends without any capability, in any network namespace. The socket stays in ours.

THE OWNER of the descriptors cannot be forced to close them. An open socket keeps its queue: binding another socket
there fails with EBUSY. For a moment this is so even after the owner's death, because the kernel frees a UMEM late. The
caller that chooses queues then takes another one. An open or mapped UMEM keeps its memory, but no queue; umem.py says
how much memory that is.

The kernel pins the UMEM when it is registered, so our own mapping of it can go. The memfd is sealed, so its size cannot
change. Linux 5.4, for XDP_USE_NEED_WAKEUP.

OPENING IS SLOW. The kernel clears and pins the pages of a UMEM (256 MiB: 0.3 s of a CPU). A driver may reset its queue
to bind a socket. Closing the last descriptor of a UMEM frees the pages (0.04 s). So a process with other work to do
lets a child open the socket: opener.py, which runs this file as a program. The child keeps the descriptors until its
parent closes the channel. So the last close happens in the child.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import signal
import socket
import struct
import sys
from contextlib import ExitStack, suppress
from dataclasses import dataclass

AF_XDP = 44  # linux/socket.h; not in Python's socket
_SOL_XDP = 283
_RX_RING, _TX_RING, _UMEM_REG, _FILL_RING, _COMPLETION_RING = 2, 3, 4, 5, 6  # linux/if_xdp.h
_USE_NEED_WAKEUP = 8
_UMEM = struct.Struct("QQII")  # struct xdp_umem_reg as Linux 4.18 had it: address, length, chunk size, headroom
_ADDRESS = struct.Struct("HHIII")  # struct sockaddr_xdp: family, flags, ifindex, queue, shared descriptor
_SIZE = struct.Struct("i")
_MAX_ENTRIES = 65536
MOST_SAID = 4096  # bytes, in a question or an answer
_FRAME_SIZES = (2048, 4096)  # for aligned chunks: a power of two, at most a page of x86-64
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Layout:
    """The memory of a socket: frames of the UMEM, and entries of the four rings, each a power of two, or 0 for none."""

    frame_size: int
    frames: int
    fill: int
    completion: int
    rx: int
    tx: int

    @property
    def size(self) -> int:
        """Of the UMEM, in bytes."""
        return self.frame_size * self.frames

    def check(self, limit: int) -> None:
        """OSError if the kernel would refuse it (EINVAL), or if it is larger than `limit` bytes (E2BIG)."""
        rings = (self.fill, self.completion, self.rx, self.tx)
        if self.frame_size not in _FRAME_SIZES or self.frames <= 0:
            raise OSError(errno.EINVAL, f"a UMEM of {self.frames} frames of {self.frame_size} bytes: use 2048 or 4096")
        if any(ring > _MAX_ENTRIES or ring & (ring - 1) for ring in rings):
            raise OSError(errno.EINVAL, f"rings of {rings} entries: each must be a power of two, up to {_MAX_ENTRIES}")
        if not (self.fill and self.completion and (self.rx or self.tx)):
            raise OSError(errno.EINVAL, "a socket needs a fill and a completion ring, and one for rx or tx")
        if self.size > limit:
            raise OSError(errno.E2BIG, f"a UMEM of {self.size} bytes: mtlshmd allows {limit}; see its --umem-limit")


@dataclass(slots=True)
class XskSocket:
    """The two descriptors, until close(); and the channel to the process that made them, to be closed after these."""

    socket: int
    umem: int
    channel: int | None = None

    def close(self) -> None:
        """Close them, the channel last."""
        for descriptor in (self.socket, self.umem, self.channel):
            if descriptor is not None:
                os.close(descriptor)


def open_socket(ifindex: int, queue: int, layout: Layout) -> XskSocket:
    """A socket on the queue. Zero-copy where the driver can, else the kernel copies.

    EBUSY: another socket has the queue. EPERM: no CAP_NET_RAW, or RLIMIT_MEMLOCK (ENOBUFS) is less than the UMEM.
    """
    with ExitStack() as undo:
        umem = os.memfd_create("umem", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        undo.callback(os.close, umem)
        os.ftruncate(umem, layout.size)
        fcntl.fcntl(umem, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        xsk = socket.socket(AF_XDP, socket.SOCK_RAW)
        undo.callback(xsk.close)
        with mmap.mmap(umem, layout.size) as memory:
            view = ctypes.c_char.from_buffer(memory)
            registration = _UMEM.pack(ctypes.addressof(view), layout.size, layout.frame_size, 0)
            try:
                xsk.setsockopt(_SOL_XDP, _UMEM_REG, registration)
            finally:
                del view  # it keeps the mapping from being closed
        rings = {_FILL_RING: layout.fill, _COMPLETION_RING: layout.completion, _RX_RING: layout.rx, _TX_RING: layout.tx}
        for option, entries in rings.items():
            if entries:
                xsk.setsockopt(_SOL_XDP, option, _SIZE.pack(entries))
        address = _ADDRESS.pack(AF_XDP, _USE_NEED_WAKEUP, ifindex, queue, 0)
        if _libc.bind(xsk.fileno(), address, len(address)):
            number = ctypes.get_errno()
            raise OSError(number, f"queue {queue} of interface {ifindex}: {os.strerror(number)}")
        undo.pop_all()
        return XskSocket(xsk.detach(), umem)


def _serve(questions: socket.socket) -> None:
    """Open what is asked for, each in a child of its own, until nobody can ask any more."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children are nobody's to wait for
    while True:
        data, descriptors, _, _ = socket.recv_fds(questions, MOST_SAID, 1, socket.MSG_CMSG_CLOEXEC)
        if not data:
            return
        for descriptor in descriptors:  # none, if we have too many
            with socket.socket(fileno=descriptor) as asker, suppress(ConnectionError):
                try:
                    if os.fork():
                        continue
                except OSError as error:
                    _refuse(asker, error)
                    continue
                try:
                    questions.close()
                    _answer(asker, *map(int, data.split()))
                finally:
                    os._exit(0)


def _answer(asker: socket.socket, ifindex: int, queue: int, *layout: int) -> None:
    """In the child. First how to kill it, then the two descriptors, or what is wrong."""
    try:
        pidfd = os.pidfd_open(os.getpid())
        socket.send_fds(asker, [b"pidfd"], [pidfd])
        os.close(pidfd)
        xsk = open_socket(ifindex, queue, Layout(*layout))
    except OSError as error:
        _refuse(asker, error)
        return
    socket.send_fds(asker, [b"\0"], [xsk.socket, xsk.umem])
    asker.recv(1)  # the end


def _refuse(asker: socket.socket, error: OSError) -> None:
    asker.send(f"{error.errno} {error.strerror}".encode()[:MOST_SAID])


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as _questions:
        _serve(_questions)
