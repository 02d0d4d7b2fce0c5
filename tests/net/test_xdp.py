# SPDX-License-Identifier: BSD-3-Clause
"""XDP programs on interfaces: real ones, in the kernel, on a veth pair of the test's own with four queues.

This kernel decides which way can be tested: where it has no freplace programs, the chain is refused, and only that is
tested here. The chain itself, and a program of somebody else beside ours, are tested in the VM.
"""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from lab.bpf_object import Object
from lab.gates import (
    COMPLETE,
    OTHERS,
    PINS,
    PORTS,
    Receiver,
    assert_nothing_is_left,
    assert_whole,
    attached,
    detach,
    expected,
    load,
    pins,
    send,
    sockets,
    unload,
)
from lab.networks import QUEUES, Veth, inside
from lab.processes import DEADLINE
from mtlshm.net import bpf, xdp
from mtlshm.net.attached import Mode, Way
from mtlshm.net.gate import Gate
from mtlshm.net.tool import Tools
from mtlshm.net.xdp import Loader

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="not root; not tested: XDP on interfaces")


# --- end to end ----------------------------------------------------------------------------------------


@pytest.fixture(params=[Mode.NATIVE, Mode.SKB], ids=str)
def gate(request: pytest.FixtureRequest, loader: Loader, link: Veth) -> Iterator[Gate]:
    """A fused program that lets PORTS through."""
    if request.param is Mode.SKB:
        link.set_mtu(9000)  # more than veth can do in native mode
    with load(loader, link) as gate:
        assert gate.way is Way.FUSED
        assert gate.mode is attached(link).mode is request.param
        for port in PORTS:
            gate.set_port(port, True)
        yield gate


def test_only_set_ports_are_redirected_to_sockets(link: Veth, gate: Gate) -> None:
    with sockets(link, gate) as xsks, ExitStack() as stack:
        receiver = Receiver(link, xsks, stack)
        for family in (socket.AF_INET, socket.AF_INET6):
            for n in range(2):
                send(link, PORTS, f"media {family} {n}", family)
                send(link, OTHERS, f"other {family} {n}", family)
        receiver.wait_for(800)
        kinds = [f"{family} {n}" for family in (socket.AF_INET, socket.AF_INET6) for n in range(2)]
        assert sorted(receiver.by_xdp) == sorted(data for kind in kinds for data in expected(PORTS, f"media {kind}"))
        assert sorted(receiver.by_stack) == sorted(data for kind in kinds for data in expected(OTHERS, f"other {kind}"))
    counted = gate.counters()
    assert counted.hits == 400
    assert counted.passes >= 400  # and what the hosts say to each other by themselves, of neighbours and the like
    assert counted.unclaimed == 0


def test_hits_without_a_socket_go_to_the_stack_and_are_counted(link: Veth, gate: Gate) -> None:
    with ExitStack() as stack:
        receiver = Receiver(link, [], stack)
        send(link, PORTS, "media")
        receiver.wait_for(len(PORTS))
        assert sorted(receiver.by_stack) == expected(PORTS, "media")
    assert gate.counters().hits == gate.counters().unclaimed == len(PORTS)


def test_a_socket_that_is_removed_gets_no_more(link: Veth, gate: Gate) -> None:
    with sockets(link, gate) as xsks, ExitStack() as stack:
        receiver = Receiver(link, xsks, stack)
        for _ in range(2):  # also if there is none
            for queue in range(QUEUES):
                gate.remove_socket(queue)
        send(link, PORTS, "media")
        receiver.wait_for(len(PORTS))
        assert sorted(receiver.by_stack) == expected(PORTS, "media")


def test_ports_are_set_and_cleared_one_by_one(link: Veth, gate: Gate) -> None:
    assert gate.ports() == set(PORTS)
    gate.set_port(PORTS[0], False)
    gate.set_port(0, True)
    gate.set_port(65535, True)
    assert gate.ports() == set(PORTS[1:]) | {0, 65535}
    for port in (-1, 65536):
        with pytest.raises(ValueError, match="no UDP port"):
            gate.set_port(port, True)
    with sockets(link, gate) as xsks, ExitStack() as stack:
        receiver = Receiver(link, xsks, stack)
        send(link, PORTS, "media")
        receiver.wait_for(len(PORTS))
        assert receiver.by_stack == [b"media 20000"]
        assert sorted(receiver.by_xdp) == expected(PORTS[1:], "media")


# --- loaded once, adopted ever after -------------------------------------------------------------------


def test_loaded_programs_are_adopted_with_ports_and_sockets(loader: Loader, link: Veth, tmp_path: Path) -> None:
    with load(loader, link) as gate:
        before = attached(link)
        gate.set_port(20000, True)
        with sockets(link, gate) as xsks, ExitStack() as stack:
            for way in (Way.AUTO, Way.FUSED, Way.CHAIN):  # what is in use stays as it is
                with load(Loader(Tools(tmp_path, timeout=DEADLINE)), link, way) as again:
                    assert again.ports() == {20000}
                    assert again.way is Way.FUSED
            assert attached(link) == before
            receiver = Receiver(link, xsks, stack)
            send(link, range(20000, 20001), "media")
            receiver.wait_for(1)
            assert receiver.by_xdp == [b"media 20000"]
    assert_whole(loader, link)


def test_find_changes_nothing(loader: Loader, link: Veth) -> None:
    assert asyncio.run(loader.find(link.index)) is None
    load(loader, link).close()
    with asyncio.run(loader.find(link.index)) as found:
        assert found.attached == attached(link)
    next(PINS.glob("*/ports")).unlink()
    with asyncio.run(loader.find(link.index)):
        assert pins() == COMPLETE - {"ports"}


# --- pins ----------------------------------------------------------------------------------------------


def test_unload_leaves_nothing(loader: Loader, link: Veth) -> None:
    load(loader, link).close()
    unload(loader, link)
    assert_nothing_is_left(link)
    unload(loader, link)


def test_pins_that_are_missing_stale_or_of_another_type_are_made_anew(loader: Loader, link: Veth) -> None:
    load(loader, link).close()
    (directory,) = PINS.iterdir()
    for pin in directory.iterdir():
        pin.unlink()
    (program,) = attached(link).programs
    with bpf.Program.by_id(program.id) as held, Object(xdp.find_object("mtl_dp_fused.o")) as other:
        held.pin(directory / "xsks_map")
        other.map("xsks_map").pin(directory / "mtl_dp_fused")
        other.map(".data.ports").pin(directory / "ports")
    (directory / "counters").mkdir()
    load(loader, link).close()
    assert_whole(loader, link)


@pytest.mark.parametrize("how", ["ip link set dev near xdp off", "xdp-loader unload near --all"])
def test_detached_programs_are_put_back_with_ports_and_sockets(loader: Loader, link: Veth, how: str) -> None:
    with load(loader, link) as gate, sockets(link, gate) as xsks, ExitStack() as stack:
        before = attached(link)
        gate.set_port(20000, True)
        subprocess.run(how.split(), check=True)
        assert attached(link).programs == ()
        with load(loader, link) as again:
            assert again.ports() == {20000}
            assert again.xsks_map.info == gate.xsks_map.info
        assert attached(link) == before
        receiver = Receiver(link, xsks, stack)
        send(link, range(20000, 20001), "media")
        receiver.wait_for(1)
        assert receiver.by_xdp == [b"media 20000"]
    assert_whole(loader, link)


@pytest.mark.parametrize("lost", sorted(COMPLETE))
def test_programs_are_loaded_anew_if_they_cannot_be_put_back(loader: Loader, link: Veth, lost: str) -> None:
    load(loader, link).close()
    next(PINS.glob(f"*/{lost}")).unlink()
    detach(link)
    load(loader, link).close()
    assert_whole(loader, link)


def test_detached_programs_are_loaded_anew_without_ip(
    loader: Loader, link: Veth, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(loader, link).close()
    detach(link)
    xdp_loader = shutil.which("xdp-loader", path="/usr/sbin:/usr/local/sbin:/sbin")
    assert xdp_loader
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/xdp-loader").symlink_to(xdp_loader)
    with monkeypatch.context() as patch:
        patch.setenv("PATH", f"{tmp_path}/bin")
        patch.setattr("mtlshm.net.tool._SBIN", ())
        load(loader, link).close()
    assert_whole(loader, link)


def test_who_detaches_while_programs_are_put_back_does_not_slow_them(
    loader: Loader, link: Veth, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It worked natively, so it is tried so again; and nothing is loaded anew, which would lose ports and sockets."""
    ip = shutil.which("ip", path="/usr/sbin:/sbin:/usr/bin:/bin")
    assert ip
    with load(loader, link) as gate:
        before = attached(link)
        gate.set_port(20000, True)
        detach(link)
        (tmp_path / "bin").mkdir()
        (tmp_path / "bin/ip").write_text(f'#!/bin/sh\n{ip} "$@" && exec {ip} link set dev {link.name} xdp off\n')
        (tmp_path / "bin/ip").chmod(0o755)
        with monkeypatch.context() as patch:
            patch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
            with pytest.raises(OSError, match="near: its XDP programs were attached again, but are gone") as raised:
                load(loader, link)
        assert raised.value.errno == errno.ENETDOWN
        assert attached(link).programs == ()
        with load(loader, link) as again:
            assert again.ports() == {20000}
            assert again.xsks_map.info == gate.xsks_map.info
        assert attached(link) == before


def test_unload_removes_the_pins_of_a_removed_interface(loader: Loader, link: Veth) -> None:
    load(loader, link).close()
    subprocess.run(["ip", "link", "delete", link.name], check=True)
    assert loader.interfaces() == [link.index]
    unload(loader, link)
    assert list(PINS.glob("*")) == []


def test_interfaces_of_other_network_namespaces_are_not_ours(loader: Loader, link: Veth) -> None:
    load(loader, link).close()
    with inside(link.far):
        assert loader.interfaces() == []
        asyncio.run(loader.unload(link.index))  # the same index there
    assert_whole(loader, link)
