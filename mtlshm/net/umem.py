# SPDX-License-Identifier: BSD-3-Clause
"""The memory of sockets that were handed out, for as long as it exists.

A UMEM is a memfd. It lasts as long as any process has it open or mapped, whatever happens to its socket and to the
process that got it: descriptors can be passed on. We cannot see that, and must not keep the memfd open to find out. So
we keep only its file handle (name_to_handle_at(2)). The handle opens the file as long as it exists, and is stale
afterwards. memfds are files of a kernel-internal mount, which any other memfd leads to (seen with Linux 6.18).

Opening by handle needs CAP_DAC_READ_SEARCH in the initial user namespace. A daemon without it, as in a container, finds
no memory and bounds none. A daemon does not know what an earlier daemon handed out.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections import defaultdict

_AT_EMPTY_PATH = 0x1000
_MOST = 128  # bytes, MAX_HANDLE_SZ
_libc = ctypes.CDLL(None, use_errno=True)


class _Handle(ctypes.Structure):
    """struct file_handle"""

    _fields_ = (("size", ctypes.c_uint), ("type", ctypes.c_int), ("bytes", ctypes.c_ubyte * _MOST))


class Memories:
    """The UMEM that each user has, by uid."""

    def __init__(self) -> None:
        self._mount = os.memfd_create("mount", os.MFD_CLOEXEC)
        self._handed_out: defaultdict[int, list[tuple[_Handle, int]]] = defaultdict(list)

    def hand_out(self, uid: int, memfd: int, size: int) -> None:
        """So many bytes are to be somebody's."""
        handle, mount = _Handle(size=_MOST), ctypes.c_int()
        if _libc.name_to_handle_at(memfd, b"", ctypes.byref(handle), ctypes.byref(mount), _AT_EMPTY_PATH) == 0:
            self._handed_out[uid].append((handle, size))

    def size(self, uid: int) -> int:
        """In bytes, of what is still there. The kernel drops some of it a while after its last user."""
        left = [(handle, size) for handle, size in self._handed_out.pop(uid, []) if self._is_there(handle)]
        if left:
            self._handed_out[uid] = left
        return sum(size for _, size in left)

    def _is_there(self, handle: _Handle) -> bool:
        memfd = _libc.open_by_handle_at(self._mount, ctypes.byref(handle), os.O_RDONLY | os.O_CLOEXEC)
        if memfd < 0:
            return ctypes.get_errno() not in (errno.ESTALE, errno.EPERM)  # such as no descriptor left: who knows
        os.close(memfd)
        return True

    def close(self) -> None:
        """Stop counting; what was handed out is not changed."""
        os.close(self._mount)
