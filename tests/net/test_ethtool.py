# SPDX-License-Identifier: BSD-3-Clause
"""What is understood of ethtool: from what the real one printed, from the real one, and from the stand-in."""

from __future__ import annotations

import asyncio
import errno
import json
import re
from collections.abc import Awaitable, Callable
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

import pytest

from lab.processes import needs_root
from lab.refusals import refused
from lab.stand_in import StandIn
from mtlshm.net.ethtool import Ethtool, Rule, channels, rules
from mtlshm.net.flow import FlowSpec, FlowType
from mtlshm.net.tool import Change, Tools

RECORDED = Path(__file__).parent / "recorded"
DERIVED = (RECORDED / "derived.txt").read_text()
GROUP = FlowSpec(FlowType.UDP4, None, IPv4Address("239.1.1.1"), 0, 30002)
UNICAST = FlowSpec(FlowType.UDP4, IPv4Address("192.168.77.2"), IPv4Address("192.168.77.1"), 7, 30000)


def recorded(name: str, command: str) -> list[str]:
    """What the real ethtool printed each time it was asked that."""
    records = json.loads((RECORDED / f"{name}.json").read_text())["records"]
    return [record["output"] for record in records if record["command"] == f"ethtool {command}"]


def test_the_number_of_channels_as_it_was_printed() -> None:
    assert [channels(output) for output in recorded("veth", "-l v0")] == [4, 2]  # RX; before and after -L
    assert [channels(output) for output in recorded("virtio", "-l eth0")] == [1]  # combined
    assert channels(recorded("veth_ntuple", "-l v0")[0]) == 4  # combined; 0 for receiving only
    older = recorded("virtio", "-l eth0")[0].replace("n/a", "0")  # before ethtool 5.7
    assert channels(older) == 1
    assert channels("") is channels("Channel parameters for v0:\n") is None


def test_a_number_that_cannot_be_one_is_not_understood() -> None:
    absurd = "9" * 5000
    assert channels(f"Current hardware settings:\nRX:\t\t{absurd}\nCombined:\t1\n") is None
    assert rules(f"Total 1 rules\n\nFilter: {absurd}\n\tAction: Drop\n") is None
    assert rules(f"Total {absurd} rules\n") is None


def test_rules_as_they_were_printed() -> None:
    lists = [rules(output) for output in recorded("veth_ntuple", "-n v0")]
    assert {
        1: Rule.of(GROUP, 1),
        2: Rule.of(UNICAST, 1),
        3: Rule.of(FlowSpec(FlowType.UDP4), 1),
        5: Rule.of(FlowSpec(FlowType.UDP6, None, IPv6Address("ff02::1"), 0, 30002), 1),
        6: Rule.of(FlowSpec(FlowType.UDP6, destination_port=30002), 1),
        7: Rule.of(FlowSpec(FlowType.TCP4, destination_port=80), 1),
    } in lists
    assert {} in lists


def test_rules_as_they_would_be_printed() -> None:
    """From the binary's format strings: of kinds that the driver of the VM does not take."""
    found = rules(DERIVED)
    assert found
    assert sorted(found) == [1, 2, 4, 5, 8, 9, 10, 11]
    assert found[8] == Rule.of(FlowSpec(FlowType.IP4, None, IPv4Address("192.168.77.1")), 1)


def test_a_rule_that_differs_in_anything_is_another() -> None:
    found = rules(DERIVED)
    assert found
    assert found[1] == Rule.of(GROUP, 1)
    assert found[1] != Rule.of(GROUP, 2)  # queue
    assert found[9] != Rule.of(GROUP, 1)  # it wants a VLAN too
    assert found[4] != Rule.of(FlowSpec(FlowType.UDP4, None, IPv4Address("239.1.1.0"), 0, 30002), 1)  # masks
    assert len(set(found.values())) == len(found)


def test_a_list_that_is_not_whole_is_not_taken_for_one() -> None:
    assert rules(DERIVED[: DERIVED.index("Filter: 11")]) is None
    assert rules("") is None
    assert rules("4 RX rings available\nTotal 0 rules\n\n") == {}


@pytest.mark.parametrize("spec", [GROUP, UNICAST, *(FlowSpec(t) for t in FlowType if t.name not in ("IP4", "IP6"))])
def test_a_rule_reads_as_it_was_asked_for(stand_in: StandIn, tmp_path: Path, spec: FlowSpec) -> None:
    stand_in.set("lo")

    async def insert(ethtool: Ethtool, change: Change) -> None:
        await ethtool.insert(change, "lo", 5, spec, 3)
        assert await ethtool.rules("lo") == {5: Rule.of(spec, 3)}
        await ethtool.delete(change, "lo", 5)

    changing(tmp_path, insert)
    assert stand_in.rules("lo") == {}


def changing(state: Path, act: Callable[[Ethtool, Change], Awaitable[Any]]) -> None:
    async def run() -> None:
        tools = Tools(state)
        async with tools.changing() as change:
            await act(Ethtool(tools), change)

    asyncio.run(run())


@pytest.mark.parametrize("device", ["lo", "nosuch"])
@needs_root("what the real ethtool says to root")
def test_the_real_one_on_devices_that_can_do_nothing(tmp_path: Path, device: str) -> None:
    number = errno.ENODEV if device == "nosuch" else errno.EOPNOTSUPP

    async def ask(ethtool: Ethtool, change: Change) -> None:
        if device == "lo":
            assert await ethtool.channels(device) == 1  # as the kernel says, since its driver does not
        else:
            with refused(number, device):
                await ethtool.channels(device)
        with refused(number, device):
            await ethtool.rules(device)
        with refused(number, device):
            await ethtool.insert(change, device, 1, GROUP, 1)

    changing(tmp_path, ask)


def test_disabled_filters_error_names_the_command(stand_in: StandIn, tmp_path: Path) -> None:
    stand_in.set("lo", ntuple="off")

    async def ask(ethtool: Ethtool, change: Change) -> None:
        for attempt in (ethtool.rules("lo"), ethtool.insert(change, "lo", 1, GROUP, 1)):
            with refused(errno.EOPNOTSUPP, "turn them on: ethtool -K lo ntuple on"):
                await attempt

    changing(tmp_path, ask)


def test_driver_without_filters_is_reported(stand_in: StandIn, tmp_path: Path) -> None:
    stand_in.set("lo", ntuple="off [fixed]")
    with refused(errno.EOPNOTSUPP, "the driver stand-in has no ntuple filters"):
        asyncio.run(Ethtool(Tools(tmp_path)).rules("lo"))


@pytest.mark.parametrize(
    ("why", "number"),
    [
        ("No space left on device", errno.ENOSPC),
        ("Invalid argument", errno.EINVAL),
        ("File exists", errno.EEXIST),
        ("Operation not permitted", errno.EPERM),
        ("Operation not supported", errno.EOPNOTSUPP),
    ],
)
def test_a_rule_that_the_driver_refuses_is_an_error_though_ethtool_exits_0(
    stand_in: StandIn, tmp_path: Path, why: str, number: int
) -> None:
    stand_in.set("lo", refuse=why)

    async def insert(ethtool: Ethtool, change: Change) -> None:
        with refused(number, re.escape(f"lo refused the rule {GROUP} to queue 1, location 1")):
            await ethtool.insert(change, "lo", 1, GROUP, 1)

    changing(tmp_path, insert)


def test_rule_that_differs_from_the_request_is_an_error(stand_in: StandIn, tmp_path: Path) -> None:
    stand_in.set("lo", alter=True)

    async def insert(ethtool: Ethtool, change: Change) -> None:
        with refused(errno.EIO, "was asked for"):
            await ethtool.insert(change, "lo", 1, GROUP, 1)

    changing(tmp_path, insert)


def test_a_version_that_prints_something_else_is_named(
    stand_in: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other/ethtool"
    other.parent.mkdir()
    other.write_text('#!/bin/sh\n[ "$1" = --version ] && echo ethtool version 9 || echo channels: many\n')
    other.chmod(0o755)
    monkeypatch.setenv("PATH", str(other.parent), prepend=":")
    for attempt in (Ethtool(Tools(tmp_path)).channels("lo"), Ethtool(Tools(tmp_path)).rules("lo")):
        with refused(errno.EPROTO, "ethtool version 9"):
            asyncio.run(attempt)
