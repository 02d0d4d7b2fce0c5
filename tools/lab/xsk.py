# SPDX-License-Identifier: BSD-3-Clause
"""An AF_XDP socket that receives, by hand, as there is no package for Python: copy mode, its own memory."""

from __future__ import annotations

import ctypes
import mmap
import os
import socket
import struct
from contextlib import ExitStack
from typing import Self

from mtlshm.net import bpf

AF_XDP, SOL_XDP = 44, 283
XDP_MMAP_OFFSETS, XDP_RX_RING, XDP_UMEM_REG, XDP_UMEM_FILL_RING, XDP_UMEM_COMPLETION_RING = 1, 2, 4, 5, 6
XDP_STATISTICS = 7
XDP_COPY = 1 << 1
FRAME, FRAMES = 2048, 1024
FILL_RING_AT = 0x100000000

_libc = ctypes.CDLL(None, use_errno=True)


class Xsk:
    """Receives what a program redirects to it."""

    def __init__(self) -> None:
        self._held = ExitStack()
        try:
            self.socket = self._held.enter_context(socket.socket(AF_XDP, socket.SOCK_RAW, 0))
            self._memory = mmap.mmap(-1, FRAME * FRAMES)
            start = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
            self._set(XDP_UMEM_REG, struct.pack("=QQIIII", start, len(self._memory), FRAME, 0, 0, 0))
            for ring in (XDP_UMEM_FILL_RING, XDP_UMEM_COMPLETION_RING, XDP_RX_RING):
                self._set(ring, struct.pack("=i", FRAMES))
            offsets = struct.unpack("=16Q", self.socket.getsockopt(SOL_XDP, XDP_MMAP_OFFSETS, 128))
            self._rx = _Ring(self.socket, 0, offsets[0:3], 16)
            self._fill = _Ring(self.socket, FILL_RING_AT, offsets[8:11], 8)
            for frame in range(FRAMES):
                self._fill.put(struct.pack("=Q", frame * FRAME))
        except BaseException:
            self._held.close()
            raise

    def bind(self, ifindex: int, queue: int) -> None:
        address = struct.pack("=HHIII", AF_XDP, XDP_COPY, ifindex, queue, 0)
        if _libc.bind(self.socket.fileno(), address, len(address)):
            raise OSError(ctypes.get_errno(), f"queue {queue}: {os.strerror(ctypes.get_errno())}")

    def enter(self, xsks_map: int, queue: int) -> None:
        """Have packets on that queue redirected here, by the descriptor of the map."""
        with bpf.Map(os.dup(xsks_map)) as entries:
            entries.update(struct.pack("=I", queue), struct.pack("=i", self.socket.fileno()))

    def receive(self) -> list[bytes]:
        """All frames that have come; their memory is given back."""
        frames = []
        while (entry := self._rx.get()) is not None:
            at, length, _ = struct.unpack("=QII", entry)
            frames.append(self._memory[at : at + length])
            self._fill.put(struct.pack("=Q", at // FRAME * FRAME))
        return frames

    def dropped(self) -> int:
        """Packets that came to the socket and were lost, for lack of memory or a full ring."""
        rx_dropped, _, _, ring_full, _, _ = struct.unpack("=6Q", self.socket.getsockopt(SOL_XDP, XDP_STATISTICS, 48))
        return int(rx_dropped + ring_full)

    def _set(self, option: int, value: bytes) -> None:
        self.socket.setsockopt(SOL_XDP, option, value)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()


class _Ring:
    """One of the rings that are shared with the kernel: we own one end, the kernel the other.

    The indices are read and written as whole words, and x86 keeps stores in order; on other processors the time that
    Python takes has to do. It is good enough for a test.
    """

    def __init__(self, owner: socket.socket, at: int, offsets: tuple[int, ...], size: int) -> None:
        producer, consumer, self._entries = offsets
        self._size = size
        self._map = mmap.mmap(
            owner.fileno(), self._entries + FRAMES * size, mmap.MAP_SHARED | mmap.MAP_POPULATE, offset=at
        )
        self._producer = ctypes.c_uint32.from_buffer(self._map, producer)
        self._consumer = ctypes.c_uint32.from_buffer(self._map, consumer)

    def put(self, entry: bytes) -> None:
        at = self._entries + self._producer.value % FRAMES * self._size
        self._map[at : at + self._size] = entry
        self._producer.value = (self._producer.value + 1) & 0xFFFFFFFF

    def get(self) -> bytes | None:
        if self._consumer.value == self._producer.value:
            return None
        at = self._entries + self._consumer.value % FRAMES * self._size
        entry = self._map[at : at + self._size]
        self._consumer.value = (self._consumer.value + 1) & 0xFFFFFFFF
        return entry
