# SPDX-License-Identifier: BSD-3-Clause
"""XDP programs on interfaces: real ones, in the kernel, on a veth pair of the test's own with four queues.

This kernel decides which way can be tested: where it has no freplace programs, the chain is refused, and only that is
tested here. The chain itself, and a program of somebody else beside ours, are tested in the VM.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType

import pytest

from lab.networks import NEAR4, NEAR6, QUEUES, Veth, inside
from lab.processes import DEADLINE, eventually
from lab.xsk import Xsk
from mtlshm.net import bpf, xdp
from mtlshm.net import gate as gate_module
from mtlshm.net import pins as pins_module
from mtlshm.net.attached import Attached, Mode, Way, look
from mtlshm.net.gate import Gate
from mtlshm.net.tool import Tools
from mtlshm.net.xdp import Loader

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="not root; not tested: XDP on interfaces")

PINS = Path("/sys/fs/bpf/mtlshm")  # in the BPF file system of the sandbox
PORTS = range(20000, 20100)
OTHERS = range(30000, 30100)
COMPLETE = {"mtl_dp_fused", "ports", "counters", "xsks_map"}


@pytest.fixture
def loader(tmp_path: Path, link: Veth) -> Loader:
    return Loader(Tools(tmp_path, timeout=DEADLINE))


def load(loader: Loader, link: Veth, way: Way = Way.AUTO) -> Gate:
    return asyncio.run(loader.load(link.index, way))


def attached(link: Veth) -> Attached:
    return asyncio.run(look(link.index))


def pins() -> set[str]:
    """What is pinned, of all interfaces."""
    return {path.name for path in PINS.glob("*/*")}


@pytest.fixture(scope="session")
def foreign(build_once: Callable[..., Path]) -> Path:
    """A program of somebody else's."""

    def compile(target: Path) -> None:
        code = '__attribute__((section("xdp"), used)) int somebody(void *context) { (void)context; return 2; }'
        command = ["clang", "-O2", "-g", "-target", "bpf", "-x", "c", "-c", "-", "-o", target]
        subprocess.run(command, input=code, text=True, check=True)

    return build_once("foreign.o", compile)


def attach(link: Veth, path: Path) -> int:
    """As somebody else does; returns the id."""
    subprocess.run(["xdp-loader", "load", "--mode", "native", link.name, path], check=True)
    (program,) = attached(link).programs
    return program.id


def detach(link: Veth) -> None:
    """As somebody else does."""
    subprocess.run(["xdp-loader", "unload", link.name, "--all"], check=True)


def refused(loader: Loader, link: Veth, number: int, text: str, way: Way = Way.AUTO) -> None:
    with pytest.raises(OSError, match=text) as caught:
        load(loader, link, way)
    assert caught.value.errno == number


def unload(loader: Loader, link: Veth) -> None:
    asyncio.run(loader.unload(link.index))


def assert_nothing_is_left(link: Veth) -> None:
    assert attached(link).programs == ()
    assert list(PINS.glob("*")) == []


def assert_whole(loader: Loader, link: Veth) -> None:
    """Loaded once, with all its pins, and finds its way through them."""
    (program,) = attached(link).programs
    (directory,) = PINS.iterdir()
    with bpf.Program.pinned(directory / "mtl_dp_fused") as pinned:
        assert pinned.info == program
    ids = set()
    for name in COMPLETE - {"mtl_dp_fused"}:
        with bpf.Map.pinned(directory / name) as each:
            ids.add(each.info.id)
    assert ids == set(program.map_ids)
    assert pins() == COMPLETE
    assert loader.interfaces() == [link.index]


@contextmanager
def sockets(link: Veth, gate: Gate) -> Iterator[list[Xsk]]:
    """One on each queue, entered in the map."""
    with ExitStack() as stack:
        made = []
        for queue in range(QUEUES):
            made.append(xsk := stack.enter_context(Xsk()))
            xsk.bind(link.index, queue)
            gate.set_socket(queue, xsk.socket.fileno())
        yield made


def drain(udp: socket.socket) -> list[bytes]:
    got = []
    while True:
        try:
            got.append(udp.recv(2048))
        except BlockingIOError:
            return got


def send(link: Veth, ports: range, payload: str, family: int = socket.AF_INET) -> None:
    with link.far_udp(family) as far:
        for port in ports:
            far.sendto(f"{payload} {port}".encode(), (NEAR4 if family == socket.AF_INET else NEAR6, port))


def expected(ports: range, payload: str) -> list[bytes]:
    return sorted(f"{payload} {port}".encode() for port in ports)


class Receiver:
    """Everything that comes to the near host: by AF_XDP, and by ordinary sockets on all the ports."""

    def __init__(self, link: Veth, xsks: list[Xsk], stack: ExitStack) -> None:
        self._xsks = xsks
        self._udp = [stack.enter_context(link.udp(port)) for port in (*PORTS, *OTHERS)]
        self.by_xdp: list[bytes] = []
        self.by_stack: list[bytes] = []

    def look(self) -> int:
        for xsk in self._xsks:
            for frame in xsk.receive():
                start = {b"\x08\x00": 42, b"\x86\xdd": 62}[frame[12:14]]
                self.by_xdp.append(frame[start:])
        for udp in self._udp:
            self.by_stack += drain(udp)
        return len(self.by_xdp) + len(self.by_stack)

    def wait_for(self, count: int) -> None:
        eventually(lambda: self.look() >= count)
        assert sum(xsk.dropped() for xsk in self._xsks) == 0


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


def test_ports_that_are_set_arrive_on_the_sockets_and_all_others_in_the_stack(link: Veth, gate: Gate) -> None:
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


def test_hits_with_no_socket_on_their_queue_go_to_the_stack_and_are_counted(link: Veth, gate: Gate) -> None:
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


def test_what_is_loaded_is_adopted_with_ports_and_sockets(loader: Loader, link: Veth, tmp_path: Path) -> None:
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


def test_find_tells_what_is_there_and_changes_nothing(loader: Loader, link: Veth) -> None:
    assert asyncio.run(loader.find(link.index)) is None
    load(loader, link).close()
    with asyncio.run(loader.find(link.index)) as found:
        assert found.attached == attached(link)
    next(PINS.glob("*/ports")).unlink()
    with asyncio.run(loader.find(link.index)):
        assert pins() == COMPLETE - {"ports"}


SERVE = """
import asyncio, sys, time
from pathlib import Path
from mtlshm.net.tool import Tools
from mtlshm.net.xdp import Loader
gate = asyncio.run(Loader(Tools(Path(sys.argv[1]), timeout=600)).load(int(sys.argv[2])))
for port in map(int, sys.argv[3:]):
    gate.set_port(port, True)
print("ready", flush=True)
time.sleep(1000)
"""
ROUNDS = 8


@pytest.mark.slow
def test_nothing_is_lost_when_who_loaded_it_is_killed_and_started_again_during_traffic(
    loader: Loader, link: Veth, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", SERVE, str(tmp_path), str(link.index), *map(str, PORTS)]

    def start() -> subprocess.Popen[str]:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        return process

    served = start()
    sent = 0
    with (
        asyncio.run(loader.find(link.index)) as gate,
        sockets(link, gate) as xsks,
        ExitStack() as stack,
        link.far_udp(socket.AF_INET) as far,
    ):
        receiver = Receiver(link, xsks, stack)

        def traffic(until: Callable[[], bool]) -> None:
            """One packet for AF_XDP and one for the stack by turns."""
            nonlocal sent
            enough = sent + 50
            while sent < enough or not until():
                far.sendto(b"media %d" % sent, (NEAR4, PORTS[sent % 100]))
                far.sendto(b"other %d" % sent, (NEAR4, OTHERS[sent % 100]))
                sent += 1
                receiver.look()

        for _ in range(ROUNDS):
            served.kill()
            traffic(lambda process=served: process.poll() is not None)
            assert served.stdout
            served.stdout.close()
            served = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            traffic(lambda process=served: bool(select.select([process.stdout], [], [], 0)[0]))
        receiver.wait_for(2 * sent)
        assert sorted(receiver.by_xdp) == sorted(b"media %d" % n for n in range(sent))
        assert sorted(receiver.by_stack) == sorted(b"other %d" % n for n in range(sent))
        served.kill()
        served.wait()
        assert served.stdout
        served.stdout.close()


# --- killed at any line --------------------------------------------------------------------------------


TRACED = {xdp.__file__, gate_module.__file__, pins_module.__file__}


def run_traced(coroutine: Coroutine[object, object, object], kill_at: int = 0) -> list[tuple[str, int]]:
    """Run it and return which lines of our modules were passed; or be killed when about to pass the n-th."""
    lines: list[tuple[str, int]] = []

    def trace(frame: FrameType, event: str, _: object) -> object:
        if frame.f_code.co_filename not in TRACED:
            return None
        if event == "line":
            lines.append((frame.f_code.co_filename, frame.f_lineno))
            if len(lines) == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)
    try:
        asyncio.run(coroutine)
    finally:
        sys.settrace(None)
    return lines


def moments(lines: list[tuple[str, int]]) -> list[int]:
    """The first and the last time that each line is passed, counted from 1."""
    first = {line: n for n, line in reversed(list(enumerate(lines, 1)))}
    last = {line: n for n, line in enumerate(lines, 1)}
    return sorted({*first.values(), *last.values()})


def killed_at(moment: int, coroutine: Coroutine[object, object, object]) -> bool:
    """In a child; False if it was at its end before. Who has to wait for something passes more lines than others."""
    signalled = in_a_child(lambda: run_traced(coroutine, moment))
    coroutine.close()
    assert signalled in (0, signal.SIGKILL)
    return signalled == signal.SIGKILL


def in_a_child(run: Callable[[], object]) -> int:
    """The signal that ended it; 0 if it came to its end."""
    if (pid := os.fork()) == 0:
        try:
            run()
            os._exit(0)
        finally:
            os._exit(1)
    return os.WTERMSIG(os.waitpid(pid, 0)[1])


@pytest.mark.slow
def test_killed_at_any_line_of_a_load_the_next_one_finishes_it_or_removes_it(link: Veth, tmp_path: Path) -> None:
    tools = Tools(tmp_path, timeout=DEADLINE)
    lines = run_traced(Loader(tools).load(link.index))
    unload(Loader(tools), link)
    assert len(set(lines)) > 50
    with ExitStack() as stack:
        receiver = Receiver(link, [], stack)
        for n, moment in enumerate(moments(lines)):
            if not killed_at(moment, Loader(tools).load(link.index)):
                assert n > 50
                unload(Loader(tools), link)
                break
            # Half loaded or not, every packet finds its way.
            send(link, PORTS[:1], f"while half {n}")
            receiver.wait_for(n + 1)
            loader = Loader(tools)
            if n % 2:
                load(loader, link).close()
                assert_whole(loader, link)
            unload(loader, link)
            assert_nothing_is_left(link)


@pytest.mark.slow
def test_killed_at_any_line_of_an_unload_the_next_one_finishes_it_or_loads_again(loader: Loader, link: Veth) -> None:
    load(loader, link).close()
    lines = run_traced(loader.unload(link.index))
    for n, moment in enumerate(moments(lines)):
        load(loader, link).close()
        if not killed_at(moment, loader.unload(link.index)):
            assert n > 10
            break
        if n % 2:
            load(loader, link).close()
            assert_whole(loader, link)
        unload(loader, link)
        assert_nothing_is_left(link)


@pytest.mark.slow
def test_killed_at_any_time_the_next_one_waits_for_the_orphaned_command(link: Veth, tmp_path: Path) -> None:
    """In the middle of xdp-loader, mostly, which goes on without us."""
    tools = Tools(tmp_path, timeout=DEADLINE)
    for n in range(30):
        pid = os.fork()
        if pid == 0:
            try:
                asyncio.run(Loader(tools).load(link.index))
            finally:
                os._exit(0)
        time.sleep(0.01 * n)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        loader = Loader(tools)
        if n % 2:
            load(loader, link).close()
            assert_whole(loader, link)
        unload(loader, link)
        assert_nothing_is_left(link)


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
    with bpf.Program.by_id(program.id) as held, bpf.Object(xdp.find_object("mtl_dp_fused.o")) as other:
        held.pin(directory / "xsks_map")
        other.map("xsks_map").pin(directory / "mtl_dp_fused")
        other.map(".data.ports").pin(directory / "ports")
    (directory / "counters").mkdir()
    load(loader, link).close()
    assert_whole(loader, link)


@pytest.mark.parametrize("how", ["ip link set dev near xdp off", "xdp-loader unload near --all"])
def test_what_somebody_detached_is_put_back_with_its_ports_and_sockets(loader: Loader, link: Veth, how: str) -> None:
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
def test_what_cannot_be_put_back_is_loaded_anew(loader: Loader, link: Veth, lost: str) -> None:
    load(loader, link).close()
    next(PINS.glob(f"*/{lost}")).unlink()
    detach(link)
    load(loader, link).close()
    assert_whole(loader, link)


def test_without_ip_what_was_detached_is_loaded_anew(
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


def test_an_interface_that_is_gone_leaves_only_pins_and_unload_removes_them(loader: Loader, link: Veth) -> None:
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


# --- what is in the way --------------------------------------------------------------------------------


def test_a_program_of_somebody_else_is_respected(loader: Loader, link: Veth, foreign: Path) -> None:
    theirs = attach(link, foreign)
    refused(loader, link, errno.EBUSY, rf"somebody \(id {theirs}\).*ip link set dev near xdp off")
    unload(loader, link)
    assert [program.id for program in attached(link).programs] == [theirs]
    assert list(PINS.glob("*")) == []


@pytest.mark.parametrize("name", ["mtl_dp_fused.o", "mtl_dp_filter.o", "xsk_def_xdp_prog.o"])
def test_our_own_program_loaded_by_somebody_else_is_respected(loader: Loader, link: Veth, name: str) -> None:
    theirs = attach(link, xdp.find_object(name))
    refused(loader, link, errno.EBUSY, "nothing in .* says that we loaded it.*xdp-loader unload near --all")
    assert asyncio.run(loader.find(link.index)) is None
    unload(loader, link)
    assert [program.id for program in attached(link).programs] == [theirs]


def test_one_that_took_the_place_of_ours_is_respected(loader: Loader, link: Veth, foreign: Path) -> None:
    load(loader, link).close()
    detach(link)
    theirs = attach(link, foreign)
    refused(loader, link, errno.EBUSY, "somebody")
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


def test_where_programs_cannot_be_chained_that_is_said_and_nothing_is_left(loader: Loader, link: Veth) -> None:
    skip_if_chained(loader, link, "the refusal")
    refused(loader, link, errno.EOPNOTSUPP, "no freplace programs", Way.CHAIN)
    assert_nothing_is_left(link)


def test_that_it_cannot_is_found_out_once(loader: Loader, link: Veth, caplog: pytest.LogCaptureFixture) -> None:
    skip_if_chained(loader, link, "how often it is tried in vain")
    caplog.set_level(logging.INFO, "mtlshmd")
    for _ in range(2):
        load(loader, link).close()
        unload(loader, link)
    assert sum("mtl_dp_filter.o" in line for line in caplog.messages) == 1


# --- trouble -------------------------------------------------------------------------------------------


def test_no_such_interface(loader: Loader, link: Veth) -> None:
    for run in (loader.load, loader.find):
        with pytest.raises(OSError, match="interface 9999") as caught:
            asyncio.run(run(9999))
        assert caught.value.errno == errno.ENODEV


NO_BPFFS = "mount -t bpf -o mode=0700 bpf /sys/fs/bpf"


def test_no_bpf_file_system(link: Veth, tmp_path: Path) -> None:
    refused(Loader(Tools(tmp_path), tmp_path / "pins"), link, errno.ENODEV, NO_BPFFS)
    while os.path.ismount("/sys/fs/bpf"):  # ours, and the host's below it, as far as this test sees
        subprocess.run(["umount", "/sys/fs/bpf"], check=True)
    refused(Loader(Tools(tmp_path)), link, errno.ENODEV, NO_BPFFS)
    assert attached(link).programs == ()


@pytest.mark.parametrize("name", [b"\xff", b"x\ry", b"x\x0cy", b"x \n\\"], ids=["no text", "CR", "FF", "escaped"])
def test_mounts_may_have_any_name(loader: Loader, link: Veth, tmp_path: Path, name: bytes) -> None:
    """Where FUSE is set up, anyone may mount."""
    place = os.fsencode(tmp_path) + b"/" + name
    os.mkdir(place)
    subprocess.run(["mount", "-t", "tmpfs", "none", place], check=True)
    with asyncio.run(loader.load(link.index)):
        pass


def test_an_object_that_is_missing_is_named_with_the_places_where_it_was_looked_for(tmp_path: Path) -> None:
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
    refused(loader, link, errno.ENOTSUP, r"1\.3 or later is needed, but there is xdp-loader version 1\.2\.9")
    stand_in("exit 0", version="unknown")
    refused(loader, link, errno.ENOTSUP, "but there is one that does not tell its version")
    assert_nothing_is_left(link)


def test_no_xdp_loader(loader: Loader, link: Veth, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("mtlshm.net.tool._SBIN", ())
    refused(loader, link, errno.ENOENT, "apt-get install xdp-tools")
    assert_nothing_is_left(link)


def test_success_is_not_believed(loader: Loader, link: Veth, stand_in: Callable[..., None]) -> None:
    stand_in("exit 0")
    refused(loader, link, errno.EIO, "mtl_dp_filter was not loaded")
    assert_nothing_is_left(link)


def test_what_the_tool_says_is_passed_on(loader: Loader, link: Veth, stand_in: Callable[..., None]) -> None:
    stand_in("echo Permission denied by the verifier >&2; exit 243")
    refused(loader, link, errno.EACCES, "Permission denied by the verifier")
    assert_nothing_is_left(link)


def test_a_tool_that_hangs(link: Veth, tmp_path: Path, stand_in: Callable[..., None]) -> None:
    stand_in("sleep 60")
    refused(Loader(Tools(tmp_path, timeout=0.3)), link, errno.ETIMEDOUT, "not done within")
    assert_nothing_is_left(link)


def test_at_queues_beyond_the_map_there_is_nothing_to_remove(loader: Loader, link: Veth) -> None:
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


def test_what_came_into_use_before_it_is_unloaded_stays(loader: Loader, link: Veth) -> None:
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
    refused(loader, link, errno.EBUSY, "/run/xdp-loader.lck, which may be removed")
    assert_nothing_is_left(link)
