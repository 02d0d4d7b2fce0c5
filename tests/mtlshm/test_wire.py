# SPDX-License-Identifier: BSD-3-Clause
"""The bytes are those that libmtl sends, in both dialects."""

from __future__ import annotations

import errno
from ipaddress import IPv4Address

import pytest

from mtlshm import wire
from mtlshm.wire import Dialect, Filter, Heartbeat, Interface, Lcore, Register, Response, Type

VM = b"vm".ljust(64, b"\0").hex()

# Seen on the wire, from libmtl 26.01, up to the end of the body.
SEEN = [
    (
        f"494d544c 00000065 6a000000 00005dfa 00000000 {VM} 0000",
        Type.REGISTER,
        Register(0x5DFA, 0, "vm", (), Dialect.A),
    ),
    (
        f"494d544c 00000065 6a000000 00001d7e 00000000 {VM} 0001 00000003",
        Type.REGISTER,
        Register(0x1D7E, 0, "vm", (3,), Dialect.A),
    ),
    ("494d544c 00000067 00000002 0001", Type.GET_LCORE, Lcore(1)),
    ("494d544c 00000068 02000000 0001", Type.PUT_LCORE, Lcore(1)),
    ("494d544c 00000069 00000006 00000003 7530", Type.ADD_UDP_DP_FILTER, Filter(3, 30000)),
    ("494d544c 0000006a 00000006 00000003 7530", Type.DEL_UDP_DP_FILTER, Filter(3, 30000)),
    ("494d544c 0000006b 0000001a 00000003", Type.IF_XSK_MAP_FD, Interface(3)),
    ("494d544c 0000006c 0000001a 00000003", Type.IF_GET_QUEUE, Interface(3)),
    ("494d544c 0000006d 0000001a 00000003 0001", Type.IF_PUT_QUEUE, Interface(3, queue=1)),
    (
        "494d544c 0000006e 0000001a 00000003 0001 00000000 00000002 024da8c0 014da8c0 0000 7530",
        Type.IF_ADD_FLOW,
        Interface(3, 1, 0, 2, IPv4Address("192.168.77.2"), IPv4Address("192.168.77.1"), 0, 30000),
    ),
    (
        "494d544c 0000006e 0000001a 00000003 0002 00000000 00000002 00000000 010101ef 0000 7532",
        Type.IF_ADD_FLOW,
        Interface(3, 2, 0, 2, IPv4Address(0), IPv4Address("239.1.1.1"), 0, 30002),
    ),
    (
        "494d544c 0000006f 0000001a 00000003 c832 0000000f",
        Type.IF_DEL_FLOW,
        Interface(3, queue=0xC832, flow_id=15),
    ),
]


def padded(hexadecimal: str) -> bytes:
    return bytes.fromhex(hexadecimal).ljust(wire.SIZE, b"\0")


@pytest.mark.parametrize(("hexadecimal", "kind", "body"), SEEN)
def test_records_of_libmtl_are_decoded(hexadecimal, kind, body):
    assert wire.decode(padded(hexadecimal)) == (kind, body)


@pytest.mark.parametrize(("hexadecimal", "kind", "body"), SEEN)
def test_the_short_way_to_an_lcore_leads_to_the_same(hexadecimal, kind, body):
    record = padded(hexadecimal)
    assert wire.lcore_request(record) == ((kind, body.lcore) if isinstance(body, Lcore) else None)
    assert wire.lcore_request(b"X" + record[1:]) is None


@pytest.mark.parametrize(("hexadecimal", "kind", "body"), SEEN)
def test_records_are_encoded_as_libmtl_does(hexadecimal, kind, body):
    assert wire.encode(kind, body, Dialect.A) == padded(hexadecimal)


def test_dialect_b_has_every_number_in_network_order():
    record = wire.encode(Type.REGISTER, Register(1, 2, "vm", (3,), Dialect.B), Dialect.B)
    assert record[8:12] == bytes.fromhex("0000006a")
    assert wire.decode(record)[1] == Register(1, 2, "vm", (3,), Dialect.B)

    flow = Interface(3, destination=IPv4Address("239.168.0.1"))
    record = wire.encode(Type.IF_ADD_FLOW, flow, Dialect.B)
    assert record[12 + 18 : 12 + 22] == bytes.fromhex("efa80001")
    assert wire.decode(record, Dialect.B)[1] == flow
    assert wire.encode(Type.PUT_LCORE, Lcore(1), Dialect.B)[8:12] == bytes.fromhex("00000002")


@pytest.mark.parametrize("value", [0, 1, 5000, -1, -22, -(2**31)])
@pytest.mark.parametrize("kind", [Type.RESPONSE, Type.IF_QUEUE_ID, Type.IF_FLOW_ID])
def test_replies_are_signed_and_zero_beyond_the_body(kind, value):
    record = wire.encode(kind, Response(value))
    assert len(record) == wire.SIZE
    assert wire.decode(record) == (kind, Response(value))
    assert record[16:] == bytes(wire.SIZE - 16)


def test_unused_bytes_of_a_request_are_ignored():
    full = padded(SEEN[2][0])[:14] + b"\xff" * (wire.SIZE - 14)
    assert wire.decode(full) == (Type.GET_LCORE, Lcore(1))
    hexadecimal, kind, body = SEEN[1]
    register = padded(hexadecimal)
    assert wire.decode(register[:90] + b"\xff" * 28) == (kind, body)


def test_interfaces_beyond_eight_are_refused_not_read():
    record = bytearray(padded(SEEN[0][0]))
    record[84:86] = b"\xff\xff"
    assert wire.decode(bytes(record)) == (Type.REGISTER, wire.TooManyInterfaces(65535))
    record[84:86] = b"\x00\x08"
    assert wire.decode(bytes(record))[1] == Register(0x5DFA, 0, "vm", (0,) * 8, Dialect.A)


@pytest.mark.parametrize("kind", [0, 100, 112, 200, 205, 54321, 2**32 - 1])
def test_an_unknown_type_has_no_body(kind):
    assert wire.decode(wire.encode(kind, None)) == (kind, None)


def test_a_wrong_magic_is_told():
    with pytest.raises(wire.BadMagic):
        wire.decode(b"GET / HTTP/1.1\r\n".ljust(wire.SIZE))


def test_the_body_length_is_never_used_as_one():
    record = bytearray(wire.encode(Type.HEARTBEAT, Heartbeat(7)))
    record[8:12] = b"\xff" * 4
    assert wire.decode(bytes(record)) == (Type.HEARTBEAT, Heartbeat(7))


@pytest.mark.parametrize("hostname", ["x" * 200, "ü" * 60, ""])
def test_host_names_of_any_length_end_in_a_nul(hostname):
    record = wire.encode(Type.REGISTER, Register(1, 2, hostname, (), Dialect.A), Dialect.A)
    assert record[12 + 8 + 63] == 0
    assert len(record) == wire.SIZE


def test_a_name_that_does_not_fit_is_refused_not_cut_off() -> None:
    with pytest.raises(OSError, match="use the index") as caught:
        wire.encode(Type.OPEN_XSK, wire.OpenXsk(0, "x" * 16, 2048, 64, 64, 64, 64, 0))
    assert caught.value.errno == errno.ENAMETOOLONG
