# SPDX-License-Identifier: BSD-3-Clause
"""Frames, built by hand: each function takes what comes after its header."""

from __future__ import annotations

import struct

UDP, TCP, ROUTING, FRAGMENT, ESP, AH, HOP_BY_HOP, DESTINATION = 17, 6, 43, 44, 50, 51, 0, 60
IP4, IP6, ARP, TAG, OUTER_TAG = 0x0800, 0x86DD, 0x0806, 0x8100, 0x88A8


def ethernet(type: int, rest: bytes) -> bytes:
    return b"\x02\0\0\0\0\x01" + b"\x02\0\0\0\0\x02" + struct.pack("!H", type) + rest


def tag(type: int, rest: bytes) -> bytes:
    """A VLAN tag, after an Ethernet header (or tag) of type TAG or OUTER_TAG."""
    return struct.pack("!HH", 100, type) + rest


def ip4(
    protocol: int,
    rest: bytes,
    *,
    options: bytes = b"",
    fragment: int = 0,
    length: int | None = None,
    version: int = 4,
    header: int | None = None,
) -> bytes:
    """`fragment` is flags and offset; `length` what it says of itself; `header` its own length in words of 4 bytes."""
    words = 5 + len(options) // 4 if header is None else header
    total = 20 + len(options) + len(rest) if length is None else length
    addresses = bytes([192, 0, 2, 1, 239, 0, 0, 1])
    start = struct.pack("!BBHHHBBH", version << 4 | words, 0, total, 7, fragment, 64, protocol, 0)
    return start + addresses + options + rest


def ip6(next: int, rest: bytes, *, length: int | None = None, version: int = 6) -> bytes:
    start = struct.pack("!IHBB", version << 28, len(rest) if length is None else length, next, 64)
    return start + bytes(15) + b"\x01" + bytes(15) + b"\x02" + rest


def extension(next: int, rest: bytes, *, length: int = 0, segments_left: int = 0) -> bytes:
    """An IPv6 extension header of 8 * (length + 1) bytes."""
    return struct.pack("!BBBB", next, length, 0, segments_left) + bytes(4 + 8 * length) + rest


def ip6_fragment(next: int, rest: bytes, *, offset: int = 0, more: bool = False) -> bytes:
    """`offset` in units of 8 bytes."""
    return struct.pack("!BBHI", next, 0, offset << 3 | more, 1) + rest


def udp(port: int, payload: bytes = b"payload of some bytes") -> bytes:
    return struct.pack("!HHHH", 1234, port, 8 + len(payload), 0) + payload
