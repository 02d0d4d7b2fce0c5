# SPDX-License-Identifier: BSD-3-Clause
"""Receives UDP packets through an AF_XDP socket with no capability at all, in whatever network namespace.

    python xsk_receive.py eth0 20000 1000

prints how many packets to port 20000 came, after 1000 of them. mtlshmd makes the socket, binds it to a queue that is
ours from then on, and hands it over with its memory. The same in C, which is what one would use: xsk_receive.c.
"""

import ctypes
import mmap
import select
import socket
import struct
import sys

from mtlshm.manager_client import Manager
from mtlshm.wire import OpenXsk

FRAME, FRAMES, ENTRIES = 2048, 4096, 2048
AF_XDP, SOL_XDP, XDP_MMAP_OFFSETS, RX_RING, FILL_RING = 44, 283, 1, 0, 0x100000000  # linux/if_xdp.h


class Ring:
    """Shared with the kernel. Python has no memory barriers: on x86-64 it needs none here."""

    def __init__(self, xsk: int, page: int, offsets: tuple[int, ...], entry: int) -> None:
        producer, consumer, self.entries, _ = offsets
        self.memory = mmap.mmap(xsk, self.entries + ENTRIES * entry, offset=page)
        self.producer = ctypes.c_uint32.from_buffer(self.memory, producer)
        self.consumer = ctypes.c_uint32.from_buffer(self.memory, consumer)
        self.entry = entry

    def at(self, number: int) -> int:
        return self.entries + number % ENTRIES * self.entry


def is_ours(packet: bytes, port: int) -> bool:
    """Over IPv4 or IPv6, without VLAN tags or options. An example is content with that."""
    udp = 34 if packet[12] == 0x08 else 54
    return packet[udp + 2 : udp + 4] == port.to_bytes(2, "big")


def main(interface: str, port: int, wanted: int) -> None:
    """Count."""
    with Manager() as manager:
        manager.register()
        opened, fd, memory = manager.open_xsk(OpenXsk(0, interface, FRAME, FRAMES, ENTRIES, ENTRIES, ENTRIES, 0))
        print(f"xsk_receive: queue {opened.value} of {interface}", file=sys.stderr)
        xsk = socket.socket(AF_XDP, socket.SOCK_RAW, 0, fd)
        offsets = struct.unpack("16Q", xsk.getsockopt(SOL_XDP, XDP_MMAP_OFFSETS, 128))
        rx, fill = Ring(fd, RX_RING, offsets[0:4], 16), Ring(fd, FILL_RING, offsets[8:12], 8)
        umem = mmap.mmap(memory, FRAME * FRAMES)
        # First frames for the kernel to fill, then packets that need them.
        for number in range(ENTRIES):
            struct.pack_into("Q", fill.memory, fill.at(number), number * FRAME)
        fill.producer.value = ENTRIES
        manager.add_filter(opened.ifindex, port)
        print("xsk_receive: ready", file=sys.stderr, flush=True)

        seen = 0
        while seen < wanted:
            select.select([xsk], [], [])
            for number in range(rx.consumer.value, rx.producer.value):
                address, length, _ = struct.unpack_from("QII", rx.memory, rx.at(number))
                seen += is_ours(umem[address : address + length], port)
                struct.pack_into("Q", fill.memory, fill.at(fill.producer.value), address // FRAME * FRAME)
                fill.producer.value += 1
                rx.consumer.value += 1
        print(seen)  # the socket, the queue and the port go with us


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
