# SPDX-License-Identifier: BSD-3-Clause
"""The match of a flow rule: the packets that a NIC steers to one of its queues."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address


class FlowType(IntEnum):
    """The type of a flow. Numbers are those of linux/ethtool.h and of the manager socket, names those of ethtool(8)."""

    TCP4 = 1
    UDP4 = 2
    SCTP4 = 3
    TCP6 = 5
    UDP6 = 6
    SCTP6 = 7
    AH4 = 9
    ESP4 = 10
    AH6 = 11
    ESP6 = 12
    IP4 = 13  # of any protocol
    IP6 = 14

    @property
    def word(self) -> str:
        """On ethtool's command line."""
        return self.name.lower()

    @property
    def version(self) -> int:
        """The version of IP: 4 or 6."""
        return int(self.name[-1])

    @property
    def has_ports(self) -> bool:
        """Whether a rule for these packets can name ports."""
        return self.name[:-1] in ("TCP", "UDP", "SCTP")


Address = IPv4Address | IPv6Address


@dataclass(frozen=True, slots=True)
class FlowSpec:
    """The packets a rule is for. None and port 0 mean any. OSError (EINVAL) if no rule can say that."""

    type: FlowType
    source: Address | None = None
    destination: Address | None = None
    source_port: int = 0
    destination_port: int = 0

    def __post_init__(self) -> None:
        for address in (self.source, self.destination):
            if address is not None and address.version != self.type.version:
                raise _invalid(f"{address} is no IPv{self.type.version} address, as {self.type.word} needs")
        ports = (self.source_port, self.destination_port)
        if not all(0 <= port <= 0xFFFF for port in ports):
            raise _invalid(f"ports {ports} are not all within 0-65535")
        if any(ports) and not self.type.has_ports:
            raise _invalid(f"{self.type.word} has no ports")
        if self.type in (FlowType.IP4, FlowType.IP6) and not (self.source or self.destination):
            raise _invalid("a rule for every packet would take the system's own: name an address")

    @classmethod
    def from_wire(
        cls, number: int, source: IPv4Address, destination: IPv4Address, source_port: int, destination_port: int
    ) -> FlowSpec:
        """From the fields of a manager socket's record. It has room for IPv4 addresses only, so of IPv6 it can ask
        for any address: an address with an IPv6 type is refused rather than left out, which would match more.
        """
        try:
            flow_type = FlowType(number)
        except ValueError:
            known = ", ".join(f"{member} {member.word}" for member in FlowType)
            raise _invalid(f"flow type {number} is not known; known are {known}") from None
        any_source, any_destination = not int(source), not int(destination)
        if flow_type.version == 6 and not (any_source and any_destination):
            raise _invalid(f"{flow_type.word}: the request has no room for IPv6 addresses; leave them 0, for any")
        return cls(
            flow_type,
            None if any_source else source,
            None if any_destination else destination,
            source_port,
            destination_port,
        )

    def __str__(self) -> str:
        return f"{self.type.word} {self._end(self.source, self.source_port)} -> " + self._end(
            self.destination, self.destination_port
        )

    def _end(self, address: Address | None, port: int) -> str:
        host = "*" if address is None else str(address) if self.type.version == 4 else f"[{address}]"
        return f"{host}:{port or '*'}" if self.type.has_ports else host


def _invalid(text: str) -> OSError:
    return OSError(errno.EINVAL, text)
