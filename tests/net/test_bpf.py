# SPDX-License-Identifier: BSD-3-Clause
"""The layer over libbpf: what is held, what is told, and how each kind of trouble looks."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.bpf_object import Object
from lab.networks import sandbox
from lab.processes import eventually
from lab.refusals import refusal
from mtlshm.net import bpf
from mtlshm.net.xdp import find_object

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="not root; not tested: BPF by libbpf")

BPFFS = Path("/sys/fs/bpf")
FIRST = struct.pack("=I", 0)


@pytest.fixture
def fused() -> Iterator[Object]:
    with sandbox(), Object(find_object("mtl_dp_fused.o")) as loaded:
        yield loaded


def test_programs_and_maps_are_described_as_bpftool_does(fused: Object) -> None:
    with fused.program("mtl_dp_fused") as program, fused.map("xsks_map") as xsks_map:
        info = program.info
        assert (info.type, info.name) == (bpf.PROGRAM_XDP, "mtl_dp_fused")
        fdinfo = dict(line.split(":\t") for line in Path(f"/proc/self/fdinfo/{program.fd}").read_text().splitlines())
        assert (str(info.id), info.tag) == (fdinfo["prog_id"], fdinfo["prog_tag"])
        assert xsks_map.info.id in info.map_ids
        assert len(info.map_ids) == 3
        assert (xsks_map.info.type, xsks_map.info.name, xsks_map.info.max_entries) == (bpf.MAP_XSKMAP, "xsks_map", 1024)
    with fused.map(".data.ports") as ports:
        assert (ports.info.type, ports.info.key_size, ports.info.value_size) == (bpf.MAP_ARRAY, 4, 65536)


def test_they_are_found_by_id_and_by_pin(fused: Object) -> None:
    with fused.program("mtl_dp_fused") as program, bpf.Program.by_id(program.info.id) as again:
        assert again.info == program.info
        program.pin(BPFFS / "program")
    with bpf.Program.pinned(BPFFS / "program") as again:
        assert again.info.name == "mtl_dp_fused"


def test_a_pin_of_another_type_is_told_from_the_right_one(fused: Object) -> None:
    with fused.program("mtl_dp_fused") as program, fused.map("xsks_map") as xsks_map:
        program.pin(BPFFS / "program")
        xsks_map.pin(BPFFS / "map")
        assert refusal(program.pin, BPFFS / "map") == errno.EEXIST
    before = len(os.listdir("/proc/self/fd"))
    assert refusal(bpf.Map.pinned, BPFFS / "program") == errno.EINVAL
    assert refusal(bpf.Program.pinned, BPFFS / "map") == errno.EINVAL
    assert len(os.listdir("/proc/self/fd")) == before
    assert refusal(bpf.Map.pinned, BPFFS / "nothing") == errno.ENOENT


def test_closed_program_is_gone() -> None:
    with Object(find_object("mtl_dp_filter.o")) as loaded, loaded.map(".data.ports") as held:
        number = held.info.id
    eventually(lambda: refusal(lambda: bpf.Map.by_id(number).close()) == errno.ENOENT)  # the kernel takes a moment


def test_values_are_read_written_and_mapped(fused: Object) -> None:
    with fused.map(".data.ports") as ports, ports.mapped() as mapped:
        mapped[7] = 1
        assert ports.lookup(FIRST) == bytes(7) + b"\1" + bytes(65528)
        ports.update(FIRST, b"\2" * 65536)
        assert mapped[:] == b"\2" * 65536
        assert refusal(ports.lookup, struct.pack("=I", 1)) == errno.ENOENT
    with fused.map("xsks_map") as xsks_map:
        assert refusal(xsks_map.delete, struct.pack("=I", 1024)) in (errno.EINVAL, errno.ENOENT)
        assert refusal(xsks_map.update, FIRST, struct.pack("=i", 0)) == errno.ENOTSOCK


def test_nothing_extends_a_program_outside_a_chain(fused: Object) -> None:
    with fused.program("mtl_dp_fused") as program:
        assert list(bpf.extensions_of(program.info.id)) == []
