# SPDX-License-Identifier: BSD-3-Clause
"""Interfaces by all their names, and how many queues they have, as the kernel of this machine says."""

from __future__ import annotations

import asyncio
import errno
import subprocess
from collections.abc import Iterator

import pytest

from lab.networks import QUEUES, Veth, sandbox, veth
from lab.processes import needs_root
from mtlshm.net import links
from mtlshm.net.ethtool import Ethtool
from mtlshm.net.tool import Tools

LONG = "enp195s0f4u1u4u4u3np0"
LONGEST = "x" * 127

pytestmark = needs_root("interfaces of all kinds")


def ip(*words: object) -> None:
    subprocess.run(["ip", "link", *map(str, words)], check=True)


@pytest.fixture
def macvlan(link: Veth) -> Iterator[int]:
    """The index of an interface whose driver does not count its queues."""
    ip("add", "m0", "link", link.name, "numrxqueues", 3, "numtxqueues", 3, "type", "macvlan")
    subprocess.run(["mount", "-t", "sysfs", "sysfs", "/sys"], check=True)
    yield asyncio.run(links.index_of("m0"))
    subprocess.run(["umount", "/sys"], check=True)


@pytest.mark.parametrize("name", ["short", LONG, LONGEST])
def test_an_interface_is_found_by_each_of_its_names(link: Veth, name: str) -> None:
    ip("property", "add", "dev", link.name, "altname", name)
    assert asyncio.run(links.index_of(name)) == asyncio.run(links.index_of(link.name)) == link.index


@pytest.mark.parametrize("name", ["nosuch", "", LONG, "x" * 128, "x" * 100_000, "a\0b", "\udcff", "*", "%d"])
def test_a_name_that_no_interface_has_is_named(link: Veth, name: str) -> None:
    with pytest.raises(OSError, match="there is no interface '") as caught:
        asyncio.run(links.index_of(name))
    assert caught.value.errno == errno.ENODEV


def test_the_queues_that_a_driver_has_set_up(link: Veth) -> None:
    assert asyncio.run(links.queues(link.index, link.name)) == QUEUES
    subprocess.run(["ethtool", "-L", link.name, "rx", "2"], check=True)
    assert asyncio.run(links.queues(link.index, link.name)) == 2


def test_the_queues_of_a_driver_that_does_not_count_them(macvlan: int, tmp_path) -> None:
    assert asyncio.run(links.queues(macvlan, "m0")) == 3
    assert asyncio.run(Ethtool(Tools(tmp_path)).channels("m0")) == 3


def test_sysfs_of_another_network_namespace_is_not_believed(macvlan: int) -> None:
    """One that was mounted there shows its interfaces, not ours."""
    with sandbox(), veth("m0", queues=2) as other:
        assert asyncio.run(links.receive_queues(other.index)) == 2


def test_the_kernel_counts_those_in_use_not_those_there_is_room_for(link: Veth) -> None:
    subprocess.run(["ethtool", "-L", link.name, "rx", "2"], check=True)
    subprocess.run(["mount", "-t", "sysfs", "sysfs", "/sys"], check=True)
    try:
        assert asyncio.run(links.receive_queues(link.index)) == 2
    finally:
        subprocess.run(["umount", "/sys"], check=True)


def test_the_driver(link: Veth) -> None:
    assert links.driver(link.name) == "veth"
    assert links.driver("lo") is None
    assert links.driver("nosuch") is None
