# SPDX-License-Identifier: BSD-3-Clause
"""What a flow rule can be asked to match, and what not."""

from __future__ import annotations

import errno
from ipaddress import IPv4Address, IPv6Address

import pytest

from mtlshm.net.flow import FlowSpec, FlowType

ANY = IPv4Address(0)
A, B = IPv4Address("192.168.77.2"), IPv4Address("192.168.77.1")
A6 = IPv6Address("2001:db8::1")


def test_flow_from_the_wire() -> None:
    assert FlowSpec.from_wire(2, A, B, 0, 30000) == FlowSpec(FlowType.UDP4, A, B, 0, 30000)
    assert FlowSpec.from_wire(2, ANY, ANY, 0, 0) == FlowSpec(FlowType.UDP4, None, None, 0, 0)
    assert FlowSpec.from_wire(6, ANY, ANY, 0, 30000) == FlowSpec(FlowType.UDP6, None, None, 0, 30000)
    assert FlowSpec.from_wire(13, ANY, B, 0, 0) == FlowSpec(FlowType.IP4, None, B)


@pytest.mark.parametrize(
    ("request_", "why"),
    [
        ((0, ANY, B, 0, 1), "not known"),
        ((4, ANY, B, 0, 1), "not known"),  # AH_ESP_V4, which ethtool's command line cannot say
        ((18, ANY, ANY, 0, 0), "not known"),  # ETHER_FLOW, for which there is no field
        ((2**32 - 1, ANY, B, 0, 1), "not known"),
        ((6, ANY, B, 0, 1), "no room for IPv6"),
        ((6, B, ANY, 0, 1), "no room for IPv6"),
        ((13, ANY, ANY, 0, 0), "every packet"),
        ((13, ANY, B, 0, 5), "no ports"),
        ((10, ANY, B, 5, 0), "no ports"),
        ((14, ANY, ANY, 0, 0), "every packet"),
    ],
)
def test_invalid_flow_is_refused_with_a_reason(request_: tuple[int, IPv4Address, IPv4Address, int, int], why: str):
    with pytest.raises(OSError, match=why) as caught:
        FlowSpec.from_wire(*request_)
    assert caught.value.errno == errno.EINVAL


def test_an_address_of_the_other_kind_is_refused() -> None:
    for wrong in ((FlowType.UDP4, A6), (FlowType.UDP6, A)):
        with pytest.raises(OSError, match="address"):
            FlowSpec(*wrong)


@pytest.mark.parametrize("port", [-1, 65536])
def test_a_port_that_there_cannot_be_is_refused(port: int) -> None:
    with pytest.raises(OSError, match="ports"):
        FlowSpec(FlowType.UDP4, destination_port=port)


def test_it_reads_well() -> None:
    assert str(FlowSpec(FlowType.UDP4, None, B, 0, 30000)) == "udp4 *:* -> 192.168.77.1:30000"
    assert str(FlowSpec(FlowType.UDP6, A6, None, 7, 0)) == "udp6 [2001:db8::1]:7 -> *:*"
    assert str(FlowSpec(FlowType.ESP4, None, B)) == "esp4 * -> 192.168.77.1"
