# SPDX-License-Identifier: BSD-3-Clause
"""ethtool: how many queues an interface has, and the flow rules in its NIC.

What it says is text, and its exit status cannot be trusted: a rule that the driver refuses is a line on standard error
and exit 0, and `-N … loc N` overwrites silently what is at N. So a rule is inserted only where the listing showed
nothing, or where the driver chooses; and the listing tells afterwards whether it is there and is what was asked for.
The listing (`-n DEV`) rather than one rule (`-n DEV rule N`), as drivers answer with different errors for a rule that
is not there.

Between a look and the command that follows, our lock (tool.py) keeps out mtlshmd and mtlshm-ctl. It cannot keep out an
administrator who types ethtool in these few milliseconds; the kernel has no "insert if nothing is there".

A feature `ntuple-filters: off` does not mean that a driver takes no rules (mlx5's does), so we try, and ask for the
feature only to say why it was refused.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import NoReturn

from mtlshm.net import chosen, links
from mtlshm.net.flow import FlowSpec, FlowType
from mtlshm.net.tool import Change, Result, Tools

_TITLES = {
    FlowType.TCP4: "TCP over IPv4",
    FlowType.UDP4: "UDP over IPv4",
    FlowType.SCTP4: "SCTP over IPv4",
    FlowType.AH4: "IPSEC AH over IPv4",
    FlowType.ESP4: "IPSEC ESP over IPv4",
    FlowType.IP4: "Raw IPv4",
    FlowType.TCP6: "TCP over IPv6",
    FlowType.UDP6: "UDP over IPv6",
    FlowType.SCTP6: "SCTP over IPv6",
    FlowType.AH6: "IPSEC AH over IPv6",
    FlowType.ESP6: "IPSEC ESP over IPv6",
    FlowType.IP6: "Raw IPv6",
}
# What the mask of a field looks like if any value will do; printed masks have a bit for what does not matter.
_ANY = {
    "TOS": "0xff",
    "Traffic Class": "0xff",
    "Protocol": "0xff",
    "Src port": "0xffff",
    "Dest port": "0xffff",
    "SPI": "0xffffffff",
    "L4 bytes": "0xffffffff",
    "VLAN EtherType": "0xffff",
    "VLAN": "0xffff",
    "User-defined": "0xffffffffffffffff",
}
_ANY_ADDRESS = (str(IPv4Address(2**32 - 1)), str(IPv6Address(2**128 - 1)))
_EXACT = ("0x0", "0.0.0.0", "::")
_NUMBER = r"[0-9]{1,10}"  # of 32 bits; int() refuses what is very much longer
_ERRNOS = {os.strerror(number): number for number in errno.errorcode}


@dataclass(frozen=True, slots=True)
class Rule:
    """A flow rule as ethtool prints it, whoever inserted it. Fields that may have any value are left out."""

    kind: str
    fields: frozenset[tuple[str, str]]  # name and value; with the mask, if part of the value does not matter
    action: str

    @classmethod
    def of(cls, spec: FlowSpec, queue: int) -> Rule:
        """How one of ours reads."""
        fields = {
            "Src IP addr": spec.source,
            "Dest IP addr": spec.destination,
            "Src port": spec.source_port or None,
            "Dest port": spec.destination_port or None,
        }
        given = frozenset((name, str(value)) for name, value in fields.items() if value is not None)
        return cls(_TITLES[spec.type], given, f"Direct to queue {queue}")

    @classmethod
    def parse(cls, lines: list[str]) -> Rule:
        """From what stands between one "Filter:" and the next."""
        kind = action = ""
        fields = set()
        for line in filter(str.strip, lines):
            name, _, text = line.strip().partition(": ")
            value, masked, mask = text.partition(" mask: ")
            if name in ("Rule Type", "Flow Type"):
                kind = text
            elif name == "Action":
                action = text
            elif not masked:
                fields.add((name, text))
            elif mask != _ANY.get(name) and mask not in _ANY_ADDRESS:
                fields.add((name, value if mask in _EXACT else text))
        return cls(kind, frozenset(fields), action)


class Refused(OSError):
    """The driver does not take a rule. It may take it elsewhere."""


class Ethtool:
    """The program. OSError if it cannot do it; EPROTO if it says what we do not understand."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools

    async def channels(self, device: str) -> int:
        """How many receive queues it has: combined ones, and those for receiving only. Of a driver that does not count
        them, the kernel's number."""
        result = await self._tools.read("ethtool", "-l", device)
        if result.status and _number(result) != errno.EOPNOTSUPP:
            _fail(f"cannot tell how many queues {device} has", result)
        numbers = 0 if result.status else channels(result.output)
        if numbers is None:
            await self._not_understood("-l", result)
        return numbers or await links.receive_queues(await links.index_of(device))

    async def driver(self, device: str) -> str | None:
        """The name of its driver, if it tells."""
        result = await self._tools.read("ethtool", "-i", device)
        name = re.search(r"^driver: (.+)$", result.output, re.MULTILINE)
        return name[1] if name else None

    async def rules(self, device: str) -> dict[int, Rule]:
        """All rules in its NIC, by location. EOPNOTSUPP if it can have none."""
        result = await self._tools.read("ethtool", "-n", device)
        if result.status:
            # If a rule went while they were listed, that is all it takes.
            result = await self._tools.read("ethtool", "-n", device)
        if result.status:
            await self._refused(f"{device}: cannot list flow rules", device, result, "has no ntuple filters")
        found = rules(result.output)
        if found is None:
            await self._not_understood("-n", result)
        return found

    async def insert(
        self,
        change: Change,
        device: str,
        location: int | None,
        spec: FlowSpec,
        queue: int,
        before: Collection[int] = (),
        output: int | None = None,
    ) -> int:
        """Insert a rule where the last listing showed none, or where the driver likes, and see that it is there.

        Returns where it is. `before` is where rules were, and `output` where to write what ethtool prints. Refused if
        the driver does not take it.
        """
        words = ["flow-type", spec.type.word]
        for name, value in (("src-ip", spec.source), ("dst-ip", spec.destination)):
            words += [name, str(value)] if value is not None else []
        for name, port in (("src-port", spec.source_port), ("dst-port", spec.destination_port)):
            words += [name, str(port)] if port else []
        words += ["action", str(queue)]
        words += [] if location is None else ["loc", str(location)]
        result = await change("ethtool", "-N", device, *words, output=output)
        there = await self.rules(device)
        new = [number for number, rule in there.items() if number not in before and rule == Rule.of(spec, queue)]
        named = chosen.told(result.output) if location is None else location
        if named in new:
            return named
        if named not in there and len(new) == 1:  # it chose another than it was told, or did not say which
            return new[0]
        if named in there or new:
            text = f"{device}: it is not certain that the rule at {new or named} is ours, {spec} to queue {queue}"
            raise OSError(errno.EIO, f"{text}, as was asked for; it stays: ethtool -n {device}")
        where = "at a place of its choice" if location is None else f"location {location}"
        what = f"{device} refused the rule {spec} to queue {queue}, {where}"
        return await self._refused(what, device, result, kind=Refused)

    async def delete(self, change: Change, device: str, location: int) -> None:
        """Delete the rule there, and see that it is gone."""
        result = await change("ethtool", "-N", device, "delete", str(location))
        if location in await self.rules(device):
            await self._refused(f"{device} does not delete the rule at {location}", device, result)

    async def _refused(
        self,
        what: str,
        device: str,
        result: Result,
        unable: str = "has no filters of this kind",
        kind: type[OSError] = OSError,
    ) -> NoReturn:
        """Why a driver takes no rules; whether the feature is off says more than its errno."""
        features = await self._tools.read("ethtool", "-k", device)
        state = re.search(r"^ntuple-filters: (off.*|on.*)$", features.output, re.MULTILINE)
        if state and state[1] == "off":
            raise OSError(
                errno.EOPNOTSUPP, f"{what}: ntuple filters are off; turn them on: ethtool -K {device} ntuple on"
            )
        number = _number(result)
        if number == errno.EOPNOTSUPP:
            driver = await self.driver(device)
            why = f"the driver{f' {driver}' if driver else ''} {unable}"
            raise kind(number, f"{what}: {why}; without them, packets reach the queues that the NIC chooses")
        # Drivers say this of a location past the end of their table as well, whose size ethtool does not print.
        full = "; if it takes such rules to this queue otherwise, its table is full" if number == errno.EINVAL else ""
        _fail(what, result, full, kind)

    async def _not_understood(self, option: str, result: Result) -> NoReturn:
        version = (await self._tools.read("ethtool", "--version")).output.strip()
        raise OSError(errno.EPROTO, f"ethtool {option} ({version}; tried with 6.1) printed {result.output!r}")


def channels(output: str) -> int | None:
    """The current number of channels in the output of `ethtool -l`; None if it cannot be parsed."""
    _, _, current = output.partition("Current hardware settings:\n")
    numbers = dict(re.findall(rf"^(RX|Combined):\s+({_NUMBER}|n/a)$", current, re.MULTILINE))
    if not numbers.keys() >= {"RX", "Combined"}:
        return None
    return sum(int(number) for number in numbers.values() if number != "n/a")


def rules(output: str) -> dict[int, Rule] | None:
    """The rules in the output of `ethtool -n`, by location; None if it cannot be parsed."""
    head, *parts = re.split(rf"^Filter: ({_NUMBER})\n", output, flags=re.MULTILINE)
    total = re.search(rf"^Total ({_NUMBER}) rules$", head, re.MULTILINE)
    found = {int(number): Rule.parse(text.splitlines()) for number, text in zip(parts[::2], parts[1::2], strict=True)}
    if total is None or len(found) != int(total[1]):
        return None
    return found


def _number(result: Result) -> int:
    """The errno that it names; EIO if it names none."""
    lines = result.complaint.splitlines()
    return next((number for line in lines for text, number in _ERRNOS.items() if line.endswith(f": {text}")), errno.EIO)


def _fail(what: str, result: Result, hint: str = "", kind: type[OSError] = OSError) -> NoReturn:
    said = "; ".join(result.complaint.splitlines()) or f"ethtool said nothing, exit status {result.status}"
    raise kind(_number(result), f"{what}: {said}{hint}")
