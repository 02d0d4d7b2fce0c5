# SPDX-License-Identifier: BSD-3-Clause
"""What is in the way of loading is respected, and named."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from lab.gates import PINS, assert_nothing_is_left, assert_whole, attach, attached, detach, load, unload
from lab.networks import Veth
from lab.refusals import refused
from mtlshm.net import xdp
from mtlshm.net.attached import Way, look
from mtlshm.net.gate import Gate
from mtlshm.net.tool import Tools
from mtlshm.net.xdp import Loader

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="not root; not tested: XDP on interfaces")


def load_refused(loader: Loader, link: Veth, number: int, text: str, way: Way = Way.AUTO) -> None:
    with refused(number, text):
        load(loader, link, way)


def test_a_program_of_somebody_else_is_respected(loader: Loader, link: Veth, foreign: Path) -> None:
    theirs = attach(link, foreign)
    load_refused(loader, link, errno.EBUSY, rf"somebody \(id {theirs}\).*ip link set dev near xdp off")
    unload(loader, link)
    assert [program.id for program in attached(link).programs] == [theirs]
    assert list(PINS.glob("*")) == []


@pytest.mark.parametrize("name", ["mtl_dp_fused.o", "mtl_dp_filter.o", "xsk_def_xdp_prog.o"])
def test_our_own_program_loaded_by_somebody_else_is_respected(loader: Loader, link: Veth, name: str) -> None:
    theirs = attach(link, xdp.find_object(name))
    load_refused(loader, link, errno.EBUSY, "nothing in .* says that we loaded it.*xdp-loader unload near --all")
    assert asyncio.run(loader.find(link.index)) is None
    unload(loader, link)
    assert [program.id for program in attached(link).programs] == [theirs]


def test_one_that_took_the_place_of_ours_is_respected(loader: Loader, link: Veth, foreign: Path) -> None:
    load(loader, link).close()
    detach(link)
    theirs = attach(link, foreign)
    load_refused(loader, link, errno.EBUSY, "somebody")
    unload(loader, link)
    assert [program.id for program in attached(link).programs] == [theirs]
    assert list(PINS.glob("*")) == []


def test_one_that_takes_the_place_of_ours_while_we_unload_it_stays(
    loader: Loader, link: Veth, foreign: Path, stand_in: Callable[..., None]
) -> None:
    """An xdp-loader that is overtaken by somebody else's on every unload."""
    load(loader, link).close()
    real = shutil.which("xdp-loader", path="/usr/sbin:/usr/local/sbin:/sbin")
    stand_in(f'{real} unload {link.name} --all && {real} load {link.name} {foreign}; exec {real} "$@"')
    unload(loader, link)
    assert [program.name for program in attached(link).programs] == ["somebody"]
    assert list(PINS.glob("*")) == []


def skip_if_chained(loader: Loader, link: Veth, what: str) -> None:
    with load(Loader(loader._tools), link) as gate:
        if gate.way is Way.CHAIN:
            pytest.skip(f"this kernel can chain XDP programs; not tested: {what}")
    unload(loader, link)


def test_unsupported_chain_is_reported_and_leaves_nothing(loader: Loader, link: Veth) -> None:
    skip_if_chained(loader, link, "the refusal")
    load_refused(loader, link, errno.EOPNOTSUPP, "no freplace programs", Way.CHAIN)
    assert_nothing_is_left(link)


def test_that_it_cannot_is_found_out_once(loader: Loader, link: Veth, caplog: pytest.LogCaptureFixture) -> None:
    skip_if_chained(loader, link, "how often it is tried in vain")
    caplog.set_level(logging.INFO, "mtlshmd")
    for _ in range(2):
        load(loader, link).close()
        unload(loader, link)
    assert sum("mtl_dp_filter.o" in line for line in caplog.messages) == 1


def test_no_such_interface(loader: Loader, link: Veth) -> None:
    for run in (loader.load, loader.find):
        with pytest.raises(OSError, match="interface 9999") as caught:
            asyncio.run(run(9999))
        assert caught.value.errno == errno.ENODEV


NO_BPFFS = "mount -t bpf -o mode=0700 bpf /sys/fs/bpf"


def test_no_bpf_file_system(link: Veth, tmp_path: Path) -> None:
    load_refused(Loader(Tools(tmp_path), tmp_path / "pins"), link, errno.ENODEV, NO_BPFFS)
    while os.path.ismount("/sys/fs/bpf"):  # ours, and the host's below it, as far as this test sees
        subprocess.run(["umount", "/sys/fs/bpf"], check=True)
    load_refused(Loader(Tools(tmp_path)), link, errno.ENODEV, NO_BPFFS)
    assert attached(link).programs == ()


@pytest.mark.parametrize("name", [b"\xff", b"x\ry", b"x\x0cy", b"x \n\\"], ids=["no text", "CR", "FF", "escaped"])
def test_mounts_may_have_any_name(loader: Loader, link: Veth, tmp_path: Path, name: bytes) -> None:
    """Where FUSE is set up, anyone may mount."""
    place = os.fsencode(tmp_path) + b"/" + name
    os.mkdir(place)
    subprocess.run(["mount", "-t", "tmpfs", "none", place], check=True)
    with asyncio.run(loader.load(link.index)):
        pass


def test_missing_object_is_reported_with_the_places_searched(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=rf"nothing.o is in none of {tmp_path}, .*/usr/lib/bpf.*meson install"):
        xdp.find_object("nothing.o", tmp_path)


def test_objects_are_found_where_one_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mtl_dp_fused.o").touch()
    assert xdp.find_object("mtl_dp_fused.o", tmp_path) == tmp_path / "mtl_dp_fused.o"
    monkeypatch.setenv("MTLSHM_BPF_PATH", str(tmp_path))
    assert xdp.find_object("mtl_dp_fused.o") == tmp_path / "mtl_dp_fused.o"


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Another xdp-loader: a shell script, for what the real one will not do at command."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")

    def write(script: str, version: str = "1.3.1") -> None:
        program = tmp_path / "bin/xdp-loader"
        answer = f'[ "$2" != --version ] || {{ echo "xdp-loader version {version} using libbpf version 1.1.2"; exit; }}'
        program.write_text(f"#!/bin/sh\n{answer}\n{script}\n")
        program.chmod(0o755)

    return write


def test_an_xdp_loader_that_is_too_old(loader: Loader, link: Veth, stand_in: Callable[..., None]) -> None:
    stand_in("exit 0", version="1.2.9")
    load_refused(loader, link, errno.ENOTSUP, r"1\.3 or later is needed, but there is xdp-loader version 1\.2\.9")
    stand_in("exit 0", version="unknown")
    load_refused(loader, link, errno.ENOTSUP, "but there is one that does not tell its version")
    assert_nothing_is_left(link)


def test_no_xdp_loader(loader: Loader, link: Veth, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("mtlshm.net.tool._SBIN", ())
    load_refused(loader, link, errno.ENOENT, "apt-get install xdp-tools")
    assert_nothing_is_left(link)


def test_success_is_not_believed(loader: Loader, link: Veth, stand_in: Callable[..., None]) -> None:
    stand_in("exit 0")
    load_refused(loader, link, errno.EIO, "mtl_dp_filter was not loaded")
    assert_nothing_is_left(link)


def test_output_of_the_tool_is_passed_on(loader: Loader, link: Veth, stand_in: Callable[..., None]) -> None:
    stand_in("echo Permission denied by the verifier >&2; exit 243")
    load_refused(loader, link, errno.EACCES, "Permission denied by the verifier")
    assert_nothing_is_left(link)


def test_a_tool_that_hangs(link: Veth, tmp_path: Path, stand_in: Callable[..., None]) -> None:
    stand_in("sleep 60")
    load_refused(Loader(Tools(tmp_path, timeout=0.3)), link, errno.ETIMEDOUT, "not done within")
    assert_nothing_is_left(link)


def test_removing_a_socket_beyond_the_map_does_nothing(loader: Loader, link: Veth) -> None:
    with load(loader, link) as gate:
        assert gate.queues == 1024
        for queue in (gate.queues - 1, gate.queues, 65535):
            gate.remove_socket(queue)


def test_a_program_whose_pins_are_lost_is_ours_only_by_its_id(loader: Loader, link: Veth) -> None:
    load(loader, link).close()
    (program,) = attached(link).programs
    subprocess.run(["umount", "/sys/fs/bpf"], check=True)
    subprocess.run(["mount", "-t", "bpf", "-o", "mode=0700", "bpf", "/sys/fs/bpf"], check=True)
    assert asyncio.run(loader.find(link.index)) is None
    unload(loader, link)
    asyncio.run(loader.unload(link.index, known=[program.id + 1]))
    assert attached(link).programs == (program,)
    assert f"mtl_dp_fused (id {program.id})" in (asyncio.run(loader.unknown(link.index)) or "")
    asyncio.run(loader.unload(link.index, known=[program.id]))
    assert_nothing_is_left(link)
    assert asyncio.run(loader.unknown(link.index)) is None


def test_interface_used_before_unload_stays_loaded(loader: Loader, link: Veth) -> None:
    load(loader, link).close()
    asyncio.run(loader.unload(link.index, lambda: True))
    assert_whole(loader, link)
    asyncio.run(loader.unload(link.index, lambda: False))
    assert_nothing_is_left(link)


def test_a_dry_run_shows_the_commands_and_changes_nothing(loader: Loader, link: Veth, tmp_path: Path) -> None:
    shown: list[str] = []
    dry = Loader(Tools(tmp_path, show=shown.append))
    asyncio.run(dry.rehearse(link.index, Way.FUSED))
    asyncio.run(dry.rehearse(link.index, Way.CHAIN))
    assert shown == [
        f"xdp-loader load --mode native near {xdp.find_object(name)}"
        for name in ("mtl_dp_fused.o", "mtl_dp_filter.o", "xsk_def_xdp_prog.o")
    ]
    asyncio.run(dry.rehearse(link.index, None))
    assert_nothing_is_left(link)
    load(loader, link).close()
    shown.clear()
    asyncio.run(dry.rehearse(link.index, Way.AUTO))
    asyncio.run(dry.rehearse(link.index, None))
    assert shown == [f"xdp-loader unload near --id {attached(link).programs[0].id}"]
    assert_whole(loader, link)


def test_it_waits_while_somebody_else_runs_xdp_loader(loader: Loader, link: Veth) -> None:
    lock = Path("/run/xdp-loader.lck")
    lock.write_text(f"{os.getpid()}\n")

    async def run() -> Gate:
        loading = asyncio.create_task(loader.load(link.index))
        await asyncio.sleep(0.3)
        assert (await look(link.index)).programs == ()
        lock.unlink()
        return await loading

    asyncio.run(run()).close()
    assert_whole(loader, link)


def test_a_lock_that_an_xdp_loader_left_when_it_was_killed(
    loader: Loader, link: Veth, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(xdp, "_LOCK_TIMEOUT", 0.2)
    Path("/run/xdp-loader.lck").touch()
    load_refused(loader, link, errno.EBUSY, "/run/xdp-loader.lck, which may be removed")
    assert_nothing_is_left(link)
