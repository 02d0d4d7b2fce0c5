# SPDX-License-Identifier: BSD-3-Clause
"""Each XDP program on every shape of packet, in the kernel (BPF_PROG_TEST_RUN)."""

from __future__ import annotations

import os
import re
import socket
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from lab.bpf_object import Object, run_on
from lab.networks import sandbox, veth
from lab.packets import (
    AH,
    ARP,
    DESTINATION,
    ESP,
    FRAGMENT,
    HOP_BY_HOP,
    IP4,
    IP6,
    OUTER_TAG,
    ROUTING,
    TAG,
    TCP,
    UDP,
    ethernet,
    extension,
    ip4,
    ip6,
    ip6_fragment,
    tag,
    udp,
)
from lab.xsk import Xsk
from mtlshm.net import bpf
from mtlshm.net.xdp import find_object

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="not root; not tested: the XDP programs")

DROP, PASS, REDIRECT = 1, 2, 4
QUEUE_0 = struct.pack("=I", 0)
PORT = 20000
OTHER = 20001
FIRST, MIDDLE, LAST, DONT = 0x2000, 0x2000 | 100, 100, 0x4000

TO_PORT = udp(PORT)
PLAIN = ethernet(IP4, ip4(UDP, TO_PORT))
PLAIN6 = ethernet(IP6, ip6(UDP, TO_PORT))


def extensions(count: int, rest: bytes) -> bytes:
    """As many IPv6 extension headers."""
    for n in range(count):
        rest = extension(UDP if n == 0 else DESTINATION, rest)
    return rest


HITS = {
    "IPv4": PLAIN,
    "IPv4, don't fragment": ethernet(IP4, ip4(UDP, TO_PORT, fragment=DONT)),
    "IPv4, no payload": ethernet(IP4, ip4(UDP, udp(PORT, b""))),
    "IPv4, padded to 60 bytes": ethernet(IP4, ip4(UDP, udp(PORT, b"x"))).ljust(60, b"\0"),
    "IPv4, one option": ethernet(IP4, ip4(UDP, TO_PORT, options=b"\x94\x04\0\0")),
    "IPv4, 40 bytes of options": ethernet(IP4, ip4(UDP, TO_PORT, options=bytes(40))),
    "IPv4, options, no payload": ethernet(IP4, ip4(UDP, udp(PORT, b""), options=bytes(40))),
    "IPv4, jumbo frame": ethernet(IP4, ip4(UDP, udp(PORT, bytes(3000)))),
    "IPv4 in a tag": ethernet(TAG, tag(IP4, ip4(UDP, TO_PORT))),
    "IPv4 in an outer tag alone": ethernet(OUTER_TAG, tag(IP4, ip4(UDP, TO_PORT))),
    "IPv4 in two tags": ethernet(OUTER_TAG, tag(TAG, tag(IP4, ip4(UDP, TO_PORT)))),
    "IPv4 in two 802.1Q tags": ethernet(TAG, tag(TAG, tag(IP4, ip4(UDP, TO_PORT)))),
    "IPv4 in a tag, options": ethernet(TAG, tag(IP4, ip4(UDP, TO_PORT, options=bytes(8)))),
    "IPv4 in a tag, no payload": ethernet(TAG, tag(IP4, ip4(UDP, udp(PORT, b"")))),
    "IPv6": PLAIN6,
    "IPv6, no payload": ethernet(IP6, ip6(UDP, udp(PORT, b""))),
    "IPv6 in a tag": ethernet(TAG, tag(IP6, ip6(UDP, TO_PORT))),
    "IPv6 in two tags": ethernet(OUTER_TAG, tag(TAG, tag(IP6, ip6(UDP, TO_PORT)))),
    "IPv6, hop-by-hop options": ethernet(IP6, ip6(HOP_BY_HOP, extension(UDP, TO_PORT))),
    "IPv6, destination options of 2 KiB": ethernet(IP6, ip6(DESTINATION, extension(UDP, TO_PORT, length=255))),
    "IPv6, routing header, arrived": ethernet(IP6, ip6(ROUTING, extension(UDP, TO_PORT, length=2))),
    "IPv6, several headers": ethernet(
        IP6, ip6(HOP_BY_HOP, extension(ROUTING, extension(DESTINATION, extension(UDP, TO_PORT), length=2), length=1))
    ),
    "IPv6, six headers": ethernet(IP6, ip6(DESTINATION, extensions(6, TO_PORT))),
    "IPv6, headers, no payload": ethernet(IP6, ip6(DESTINATION, extensions(6, udp(PORT, b"")))),
    "IPv6, fragment header on a whole": ethernet(IP6, ip6(FRAGMENT, ip6_fragment(UDP, TO_PORT))),
}

# A packet that is no hit, though the bytes of the port are at the usual place, or where a sloppy parser would look.
PASSES = {
    "nothing but Ethernet": ethernet(IP4, b""),
    "ARP": ethernet(ARP, ip4(UDP, TO_PORT)),
    "an unknown type": ethernet(0x88F7, ip4(UDP, TO_PORT)),
    "802.3 length in place of a type": ethernet(46, ip4(UDP, TO_PORT)),
    "IPv4, another port": ethernet(IP4, ip4(UDP, udp(OTHER))),
    "IPv4, the port is the source": ethernet(IP4, ip4(UDP, struct.pack("!HHHH", PORT, OTHER, 30, 0) + bytes(22))),
    "IPv4, the port's bytes swapped": ethernet(IP4, ip4(UDP, udp(socket.ntohs(PORT)))),
    "IPv4, TCP": ethernet(IP4, ip4(TCP, TO_PORT)),
    "IPv4, authentication header": ethernet(IP4, ip4(AH, TO_PORT)),
    "IPv4 type, version 6": ethernet(IP4, ip4(UDP, TO_PORT, version=6)),
    "IPv4 type, version 5": ethernet(IP4, ip4(UDP, TO_PORT, version=5)),
    "IPv4, header too short": ethernet(IP4, ip4(UDP, TO_PORT, header=4)),
    "IPv4, header of no length": ethernet(IP4, ip4(UDP, TO_PORT, header=0)),
    "IPv4, first fragment": ethernet(IP4, ip4(UDP, TO_PORT, fragment=FIRST)),
    "IPv4, fragment in the middle": ethernet(IP4, ip4(UDP, TO_PORT, fragment=MIDDLE)),
    "IPv4, last fragment": ethernet(IP4, ip4(UDP, TO_PORT, fragment=LAST)),
    "IPv4, fragment with the greatest offset": ethernet(IP4, ip4(UDP, TO_PORT, fragment=0x1FFF)),
    "IPv4, fragment at offset 256": ethernet(IP4, ip4(UDP, TO_PORT, fragment=0x0100)),
    "IPv4, options, fragment": ethernet(IP4, ip4(UDP, TO_PORT, fragment=LAST, options=bytes(8))),
    "IPv4, options, TCP": ethernet(IP4, ip4(TCP, TO_PORT, options=bytes(8))),
    "IPv4, options, another port": ethernet(IP4, ip4(UDP, udp(OTHER), options=bytes(40))),
    "IPv4, the port in the options": ethernet(IP4, ip4(UDP, udp(OTHER), options=TO_PORT[:8])),
    "IPv4 in a tag, another port": ethernet(TAG, tag(IP4, ip4(UDP, udp(OTHER)))),
    "IPv4 in three tags": ethernet(OUTER_TAG, tag(TAG, tag(TAG, tag(IP4, ip4(UDP, TO_PORT))))),
    "a tag around nothing known": ethernet(TAG, tag(ARP, ip4(UDP, TO_PORT))),
    "IPv4, the UDP header in the padding": ethernet(IP4, ip4(UDP, TO_PORT, length=27)),
    "IPv4, says to be empty": ethernet(IP4, ip4(UDP, TO_PORT, length=0)),
    "IPv4, options, the UDP header in the padding": ethernet(IP4, ip4(UDP, TO_PORT, options=bytes(8), length=35)),
    "IPv6, another port": ethernet(IP6, ip6(UDP, udp(OTHER))),
    "IPv6, TCP": ethernet(IP6, ip6(TCP, TO_PORT)),
    "IPv6 type, version 4": ethernet(IP6, ip6(UDP, TO_PORT, version=4)),
    "IPv6, first fragment": ethernet(IP6, ip6(FRAGMENT, ip6_fragment(UDP, TO_PORT, more=True))),
    "IPv6, fragment in the middle": ethernet(IP6, ip6(FRAGMENT, ip6_fragment(UDP, TO_PORT, offset=50, more=True))),
    "IPv6, last fragment": ethernet(IP6, ip6(FRAGMENT, ip6_fragment(UDP, TO_PORT, offset=50))),
    "IPv6, fragment after another header": ethernet(
        IP6, ip6(HOP_BY_HOP, extension(FRAGMENT, ip6_fragment(UDP, TO_PORT, more=True)))
    ),
    "IPv6, routing header, under way": ethernet(IP6, ip6(ROUTING, extension(UDP, TO_PORT, length=2, segments_left=1))),
    "IPv6, authentication header": ethernet(IP6, ip6(AH, extension(UDP, TO_PORT))),
    "IPv6, encrypted": ethernet(IP6, ip6(ESP, extension(UDP, TO_PORT))),
    "IPv6, no next header": ethernet(IP6, ip6(59, TO_PORT)),
    "IPv6, seven headers": ethernet(IP6, ip6(DESTINATION, extensions(7, TO_PORT))),
    "IPv6, TCP after a header": ethernet(IP6, ip6(DESTINATION, extension(TCP, TO_PORT))),
    "IPv6, the UDP header beyond its end": ethernet(IP6, ip6(UDP, TO_PORT, length=7)),
    "IPv6, headers, the UDP header beyond its end": ethernet(IP6, ip6(DESTINATION, extension(UDP, TO_PORT), length=15)),
}


@dataclass
class Subject:
    """A program under test."""

    program: bpf.Program
    ports: bpf.Map
    counters: bpf.Map
    hit: int  # what it answers to a hit
    xsks_map: bpf.Map | None = None

    def answer(self, packet: bytes) -> int:
        return run_on(self.program, packet)[0]

    def set(self, *ports: int) -> None:
        with self.ports.mapped() as mapped:
            for port in ports:
                mapped[port] = 1

    def count(self) -> tuple[int, int, int]:
        each_cpu = list(struct.iter_unpack("=8Q", self.counters.lookup(bytes(4))))
        assert not any(any(values[3:]) for values in each_cpu)
        hits, passes, unclaimed = (sum(column) for column in list(zip(*each_cpu, strict=True))[:3])
        return hits, passes, unclaimed


@pytest.fixture
def fused() -> Iterator[Subject]:
    """With a socket on queue 0, where BPF_PROG_TEST_RUN's packets come from."""
    with (
        Object(find_object("mtl_dp_fused.o")) as found,
        found.program("mtl_dp_fused") as program,
        found.map(".data.ports") as ports,
        found.map(".data.counters") as counters,
        found.map("xsks_map") as xsks_map,
        Xsk() as xsk,
    ):
        xsks_map.update(QUEUE_0, struct.pack("=i", xsk.socket.fileno()))
        yield Subject(program, ports, counters, REDIRECT, xsks_map)


@pytest.fixture
def filter() -> Iterator[Subject]:
    with (
        Object(find_object("mtl_dp_filter.o")) as found,
        found.program("mtl_dp_filter") as program,
        found.map(".data.ports") as ports,
        found.map(".data.counters") as counters,
    ):
        yield Subject(program, ports, counters, DROP)


@pytest.fixture(params=["filter", "fused"])
def subject(request: pytest.FixtureRequest) -> Subject:
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("shape", HITS)
def test_udp_to_a_port_that_is_set_is_a_hit(subject: Subject, shape: str) -> None:
    subject.set(PORT)
    assert subject.answer(HITS[shape]) == subject.hit
    assert subject.count() == (1, 0, 0)


@pytest.mark.parametrize("shape", HITS)
def test_nothing_is_a_hit_if_no_port_is_set(subject: Subject, shape: str) -> None:
    assert subject.answer(HITS[shape]) == PASS
    assert subject.count() == (0, 1, 0)


@pytest.mark.parametrize("shape", PASSES)
def test_all_else_goes_to_the_stack(subject: Subject, shape: str) -> None:
    subject.set(PORT)
    assert subject.answer(PASSES[shape]) == PASS
    assert subject.count() == (0, 1, 0)


@pytest.mark.parametrize("shape", HITS)
def test_a_packet_that_is_cut_off_before_the_end_of_its_udp_header_goes_to_the_stack(
    subject: Subject, shape: str
) -> None:
    """At every length. The kernel runs no program on less than an Ethernet header."""
    subject.set(PORT)
    whole = HITS[shape]
    end = whole.index(TO_PORT[:4]) + 8
    for length in range(14, end):
        assert subject.answer(whole[:length]) == PASS, length
    assert subject.count() == (0, end - 14, 0)
    assert subject.answer(whole[:end]) == subject.hit
    assert subject.count()[0] == 1


def test_every_port_is_told_from_every_other(subject: Subject) -> None:
    """Of all 65,536, each is a hit exactly while it is set; every 251st is."""
    chosen = set(range(0, 65536, 251)) | {65535}
    subject.set(*chosen)
    hits = set()
    for port in range(65536):
        if subject.answer(ethernet(IP4, ip4(UDP, udp(port, b"")))) == subject.hit:
            hits.add(port)
    assert hits == chosen
    assert subject.count() == (len(chosen), 65536 - len(chosen), 0)


def test_a_port_that_is_cleared_is_no_hit_any_more(subject: Subject) -> None:
    subject.set(PORT, OTHER)
    with subject.ports.mapped() as mapped:
        mapped[PORT] = 0
    assert subject.answer(PLAIN) == PASS
    assert subject.answer(PLAIN6) == PASS
    assert subject.answer(ethernet(IP4, ip4(UDP, udp(OTHER)))) == subject.hit
    assert subject.count() == (1, 2, 0)


def test_each_cpu_counts_by_itself(subject: Subject) -> None:
    subject.set(PORT)
    allowed = os.sched_getaffinity(0)
    try:
        for number, cpu in enumerate(sorted(allowed), 1):
            os.sched_setaffinity(0, {cpu})
            run_on(subject.program, PLAIN, number)
    finally:
        os.sched_setaffinity(0, allowed)
    each_cpu = list(struct.iter_unpack("=8Q", subject.counters.lookup(bytes(4))))
    assert [each_cpu[cpu][0] for cpu in sorted(allowed)] == list(range(1, len(allowed) + 1))
    assert sum(values[0] for values in each_cpu) == sum(range(1, len(allowed) + 1))


def test_a_hit_with_no_socket_on_its_queue_goes_to_the_stack_and_is_counted(fused: Subject) -> None:
    assert fused.xsks_map
    fused.set(PORT)
    assert fused.answer(PLAIN) == REDIRECT
    fused.xsks_map.delete(QUEUE_0)
    assert fused.answer(PLAIN) == PASS
    assert fused.answer(PLAIN6) == PASS
    assert fused.answer(ethernet(IP4, ip4(UDP, udp(OTHER)))) == PASS
    assert fused.count() == (3, 1, 2)


def test_libxdp_reads_that_the_chain_goes_on_after_a_hit_only() -> None:
    """As xdp-loader tells when it loads them. Where there is no dispatcher, what it read has no effect."""
    said = {}
    for name in ("mtl_dp_filter", "mtl_dp_fused"):
        with sandbox(), veth() as link:
            command = ["xdp-loader", "load", "-v", "-m", "skb", link.name, str(find_object(f"{name}.o"))]
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True)
        said[name] = re.findall(r"Run prio: (\d+)\. Chain call actions: (\S+)", done.stdout)
    assert said == {"mtl_dp_filter": [("19", "XDP_DROP")], "mtl_dp_fused": [("20", "XDP_PASS")]}
