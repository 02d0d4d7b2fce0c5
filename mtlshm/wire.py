# SPDX-License-Identifier: BSD-3-Clause
"""The bytes of MTL's manager socket: records of 118 bytes, big-endian, whatever their type.

Two dialects are spoken. Every released libmtl speaks A, in which the header's body length is in host byte order in
REGISTER and PUT_LCORE, and IP addresses arrive with their bytes reversed; clients of protocol 1.1 speak B, which has
neither peculiarity. REGISTER's body length tells them apart. The length is never used as one.

Types from 1001 on are ours, and no libmtl's: a manager that does not know them answers -ENOTSUP, as to any other.

What is unused in a request is whatever was on the client's stack, and is not looked at; in a reply it is zero.
"""

from __future__ import annotations

import errno
import struct
import sys
from collections.abc import Callable
from enum import Enum, IntEnum
from ipaddress import IPv4Address
from typing import NamedTuple

SIZE = 118
MAX_INTERFACES = 8
ANY = IPv4Address(0)
_MAGIC = 0x494D544C  # "IMTL"
_HEADER = struct.Struct(">III")  # magic, type, body length
_REGISTER = struct.Struct(">II64sH8I")
_U32 = struct.Struct(">I")
_I32 = struct.Struct(">i")
_LCORE = struct.Struct(">H")
_FILTER = struct.Struct(">IH")
_INTERFACE = struct.Struct(">IHIIIIHH")
_NAME_SIZE = 16  # of an interface, with its end
_OPEN_XSK = struct.Struct(">I16s6I")
_XSK = struct.Struct(">iI")
_LCORE_RECORD = struct.Struct(">II4xH")  # magic, type, the lcore


class Type(IntEnum):
    """Of a record."""

    REGISTER = 101
    HEARTBEAT = 102
    GET_LCORE = 103
    PUT_LCORE = 104
    ADD_UDP_DP_FILTER = 105
    DEL_UDP_DP_FILTER = 106
    IF_XSK_MAP_FD = 107
    IF_GET_QUEUE = 108
    IF_PUT_QUEUE = 109
    IF_ADD_FLOW = 110
    IF_DEL_FLOW = 111
    RESPONSE = 201
    IF_QUEUE_ID = 202
    IF_FLOW_ID = 203
    HEARTBEAT_ACK = 204
    OPEN_XSK = 1001
    XSK = 1201


class Dialect(Enum):
    """Which kind of libmtl speaks."""

    A = "A"
    B = "B"


class BadMagic(ValueError):
    """What came is no record, and so neither is what follows."""


class Register(NamedTuple):
    """What a client says of itself: for display only."""

    pid: int
    uid: int
    hostname: str
    interfaces: tuple[int, ...]  # ifindex
    dialect: Dialect


class TooManyInterfaces(NamedTuple):
    """A REGISTER that cannot be meant."""

    number: int


class Heartbeat(NamedTuple):
    """Is anybody there? It is answered with the same number, of 32 bits."""

    seq: int


class Lcore(NamedTuple):
    """The lcore of GET_LCORE or PUT_LCORE, 0 to 65535, as libmtl numbers it."""

    lcore: int


class Filter(NamedTuple):
    """The UDP port of an interface that packets are let through to, or no longer."""

    ifindex: int
    port: int


class Interface(NamedTuple):
    """Of the IF_ types; which fields mean something depends on the type. 0 is "any" for addresses and ports."""

    ifindex: int
    queue: int = 0
    flow_id: int = 0
    flow_type: int = 0  # as in ethtool: 2 is UDP_V4_FLOW
    source: IPv4Address = ANY
    destination: IPv4Address = ANY
    source_port: int = 0
    destination_port: int = 0


class OpenXsk(NamedTuple):
    """A request for an AF_XDP socket on a queue that becomes the asker's."""

    ifindex: int  # as the manager sees it; 0: see the name
    name: str
    frame_size: int  # bytes
    frames: int
    fill: int  # entries, as for the other rings
    completion: int
    rx: int
    tx: int


class Xsk(NamedTuple):
    """What OPEN_XSK is answered with. With a queue come two descriptors, the socket and a memfd which is its UMEM."""

    value: int  # the queue, or a negative errno
    ifindex: int = 0


class Response(NamedTuple):
    """What a server answers: 0, an id, or a negative errno; for HEARTBEAT_ACK the sequence number."""

    value: int


Body = Register | TooManyInterfaces | Heartbeat | Lcore | Filter | Interface | OpenXsk | Xsk | Response | None

_LCORE_TYPES = {int(Type.GET_LCORE), int(Type.PUT_LCORE)}
_IN_HOST_ORDER = {Type.REGISTER, Type.PUT_LCORE}  # body length, in dialect A
_BODY_LENGTHS = {
    Register: _REGISTER.size,
    Heartbeat: 4,
    Lcore: 2,
    Filter: 6,
    Interface: 26,
    OpenXsk: _OPEN_XSK.size,
    Xsk: _XSK.size,
    Response: 4,
}


def decode(record: bytes, dialect: Dialect = Dialect.A) -> tuple[int, Body]:
    """Type and body of one whole record. The body is None for a type that is not known. Raises BadMagic.

    `dialect` is what the connection's REGISTER was in; REGISTER itself tells.
    """
    magic, kind, length = _HEADER.unpack_from(record)
    if magic != _MAGIC:
        raise BadMagic(f"{magic:#010x}")
    decoder = _DECODERS.get(kind)
    return kind, decoder(record, length, dialect) if decoder else None


def lcore_request(record: bytes) -> tuple[int, int] | None:
    """Type and lcore, if that is what the record is about: the same as decode(), in half the time, for what is asked
    most.
    """
    magic, kind, lcore = _LCORE_RECORD.unpack_from(record)
    return (kind, lcore) if magic == _MAGIC and kind in _LCORE_TYPES else None


def encode(kind: int, body: Body, dialect: Dialect = Dialect.B) -> bytes:
    """One whole record. Replies are the same in both dialects."""
    match body:
        case Register(pid, uid, hostname, interfaces):
            padded = (*interfaces, *([0] * (MAX_INTERFACES - len(interfaces))))
            data = _REGISTER.pack(pid, uid, hostname.encode()[:63], len(interfaces), *padded)
        case Heartbeat(value):
            data = _U32.pack(value)
        case Lcore(value):
            data = _LCORE.pack(value)
        case Filter(ifindex, port):
            data = _FILTER.pack(ifindex, port)
        case Interface():
            data = _INTERFACE.pack(
                body.ifindex,
                body.queue,
                body.flow_id,
                body.flow_type,
                int(_address(int(body.source), dialect)),
                int(_address(int(body.destination), dialect)),
                body.source_port,
                body.destination_port,
            )
        case OpenXsk():
            if len(name := body.name.encode()) >= _NAME_SIZE:  # cut off, it could be another's
                raise OSError(errno.ENAMETOOLONG, f"{body.name}: a request has room for 15 characters; use the index")
            data = _OPEN_XSK.pack(body.ifindex, name, *body[2:])
        case Xsk():
            data = _XSK.pack(*body)
        case Response(value):
            data = _I32.pack(value)
        case _:
            data = b""
    length = _BODY_LENGTHS.get(type(body), 0)
    if dialect is Dialect.A and kind in _IN_HOST_ORDER:
        length = int.from_bytes(length.to_bytes(4, sys.byteorder), "big")
    return (_HEADER.pack(_MAGIC, kind, length) + data).ljust(SIZE, b"\0")


def _decode_register(record: bytes, length: int, _: Dialect) -> Register | TooManyInterfaces:
    pid, uid, hostname, count, *interfaces = _REGISTER.unpack_from(record, _HEADER.size)
    if count > MAX_INTERFACES:
        return TooManyInterfaces(count)
    return Register(
        pid,
        uid,
        hostname.partition(b"\0")[0].decode(errors="replace"),
        tuple(interfaces[:count]),
        Dialect.B if length == _REGISTER.size else Dialect.A,
    )


def _decode_heartbeat(record: bytes, _length: int, _: Dialect) -> Heartbeat:
    return Heartbeat(*_U32.unpack_from(record, _HEADER.size))


def _decode_lcore(record: bytes, _length: int, _: Dialect) -> Lcore:
    return Lcore(*_LCORE.unpack_from(record, _HEADER.size))


def _decode_filter(record: bytes, _length: int, _: Dialect) -> Filter:
    return Filter(*_FILTER.unpack_from(record, _HEADER.size))


def _decode_interface(record: bytes, _length: int, dialect: Dialect) -> Interface:
    ifindex, queue, flow_id, flow_type, *addresses, source_port, destination_port = _INTERFACE.unpack_from(
        record, _HEADER.size
    )
    source, destination = (_address(value, dialect) for value in addresses)
    return Interface(ifindex, queue, flow_id, flow_type, source, destination, source_port, destination_port)


def _decode_open_xsk(record: bytes, _length: int, _: Dialect) -> OpenXsk:
    ifindex, name, *layout = _OPEN_XSK.unpack_from(record, _HEADER.size)
    return OpenXsk(ifindex, name.partition(b"\0")[0].decode(errors="replace"), *layout)


def _decode_xsk(record: bytes, _length: int, _: Dialect) -> Xsk:
    return Xsk(*_XSK.unpack_from(record, _HEADER.size))


def _decode_response(record: bytes, _length: int, _: Dialect) -> Response:
    return Response(*_I32.unpack_from(record, _HEADER.size))


def _address(value: int, dialect: Dialect) -> IPv4Address:
    return IPv4Address(int.from_bytes(value.to_bytes(4, "big"), "little" if dialect is Dialect.A else "big"))


_DECODERS: dict[int, Callable[[bytes, int, Dialect], Body]] = {
    Type.REGISTER: _decode_register,
    Type.HEARTBEAT: _decode_heartbeat,
    Type.GET_LCORE: _decode_lcore,
    Type.PUT_LCORE: _decode_lcore,
    Type.ADD_UDP_DP_FILTER: _decode_filter,
    Type.DEL_UDP_DP_FILTER: _decode_filter,
    **dict.fromkeys(range(Type.IF_XSK_MAP_FD, Type.IF_DEL_FLOW + 1), _decode_interface),
    **dict.fromkeys(range(Type.RESPONSE, Type.HEARTBEAT_ACK + 1), _decode_response),
    Type.OPEN_XSK: _decode_open_xsk,
    Type.XSK: _decode_xsk,
}
