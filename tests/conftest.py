# SPDX-License-Identifier: BSD-3-Clause
from __future__ import annotations

import fcntl
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import sysv_ipc

from lab.networks import Veth, sandbox, veth
from lab.processes import BIN, Daemon, Puppet, compile_program, daemon_settings, ended, start_puppet
from lab.stand_in import StandIn
from lab.sysfs import Machine
from mtlshm import Host

ROOT = Path(__file__).parent.parent


def pytest_configure(config: pytest.Config) -> None:
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as in the background of a shell; programs would inherit it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.addinivalue_line("markers", "slow: takes many seconds; runs last")
    config.addinivalue_line("markers", "vm: runs in a virtual machine only (tools/test --vm)")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)


@pytest.fixture
def segment() -> Iterator[str]:
    """The path of a segment of the test's own in /dev/shm, which does not exist yet."""
    path = tempfile.mktemp(prefix="mtlshm-test-", dir="/dev/shm")
    yield path
    with suppress(FileNotFoundError):
        os.unlink(path)


@pytest.fixture
def host(segment: str) -> Iterator[Host]:
    """The segment, made and opened."""
    with Host(segment) as host:
        yield host


@pytest.fixture
def host64(tmp_path: Path) -> Path:
    """A host of 64 CPUs, for use in place of /sys."""
    return Machine(cores=64).write(tmp_path / "host64")


@pytest.fixture(scope="session")
def build_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], None]], Path]:
    """Has something built once for all workers of pytest-xdist; returns where."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent

    def build(name: str, make: Callable[[Path], None]) -> Path:
        target = shared / name
        with (shared / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not target.exists():
                make(target)
        return target

    return build


@pytest.fixture(scope="session")
def puppet_program(build_once: Callable[..., Path]) -> Path:
    """puppet/, compiled with the core's sources."""

    def compile(program: Path) -> None:
        core = [ROOT / "cffi_build" / name for name in (ROOT / "cffi_build/sources.txt").read_text().split()]
        flags = shlex.split(os.environ.get("CFLAGS", ""))  # tools/analyse has it watched
        sources = sorted((ROOT / "tests/cffi_build/puppet").glob("*.c"))
        compile_program(program, *sources, *core, flags=[*flags, "-I", ROOT / "cffi_build"])

    return build_once("puppet", compile)


@pytest.fixture
def puppet(puppet_program: Path, segment: str) -> Iterator[Callable[..., Puppet]]:
    """Starts puppets: puppet() has opened the test's segment and registered, as most tests want it."""
    started: list[Puppet] = []

    def start(
        *, path: str = segment, sysfs: Path | None = None, prefix: tuple[str, ...] = (), ready: bool = True
    ) -> Puppet:
        started.append(new := start_puppet(puppet_program, path, sysfs, prefix))
        if ready:
            assert new.open(1) == 0
            assert new.register() == 0
        return new

    yield start
    for each in started:
        each.clean_up()


@pytest.fixture(scope="session")
def legacy_program(build_once: Callable[..., Path]) -> Path:
    """legacy_process.c, compiled."""

    source = ROOT / "tests/daemon/legacy_process.c"
    return build_once("legacy_process", lambda program: compile_program(program, source))


@pytest.fixture
def legacy_place(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The settings for a legacy table of the test's own, which does not exist yet."""
    key = random.SystemRandom().randrange(1 << 28, 1 << 30)
    yield {"MTLSHM_LEGACY_KEY": f"{key:#x}", "MTLSHM_LEGACY_LOCK": str(tmp_path / "legacy.lock")}
    with suppress(sysv_ipc.ExistentialError):
        sysv_ipc.SharedMemory(key).remove()


@pytest.fixture
def legacy(legacy_program: Path, legacy_place: dict[str, str]) -> Iterator[Callable[..., Puppet]]:
    """Starts legacy processes: legacy() is attached to the test's legacy table."""
    started: list[Puppet] = []

    def start(*, prefix: tuple[str, ...] = (), ready: bool = True, program: Path = legacy_program) -> Puppet:
        key, lock = legacy_place.values()
        started.append(new := start_puppet(program, key, Path(lock), prefix))
        if ready:
            assert new.attach() == 0
        return new

    yield start
    for each in started:
        each.clean_up()


@pytest.fixture
def manager_socket() -> Iterator[Path]:
    """Where the test's daemon serves libmtl. Not in tmp_path, which may be longer than unix(7) allows."""
    with tempfile.TemporaryDirectory(prefix="mtlshm-test-") as directory:
        os.chmod(directory, 0o755)
        yield Path(directory) / "manager.sock"


@pytest.fixture
def daemon(segment: str, tmp_path: Path, manager_socket: Path) -> Iterator[Callable[..., Daemon]]:
    """Starts daemons; daemon() serves the test's segment and is ready."""
    with ended() as started:

        def start(
            *arguments: object,
            command: list[str] | None = None,
            environment: dict[str, str] | None = None,
            prefix: tuple[str, ...] = (),
            ready: bool = True,
        ) -> Daemon:
            log = tmp_path / f"mtlshmd-{len(started)}.log"
            settings = daemon_settings(segment, manager_socket, tmp_path / "state") | (environment or {})
            program = command or [str(BIN / "mtlshmd")]
            started.append(new := Daemon([*program, *map(str, arguments)], log, settings, prefix))
            if ready:
                new.await_log("ready")
            return new

        yield start


@pytest.fixture
def link() -> Iterator[Veth]:
    """An interface of the test's own."""
    with sandbox(), veth() as made:
        yield made


@pytest.fixture
def server(link: Veth, daemon: Callable[..., Daemon]) -> Callable[..., Daemon]:
    """Starts daemons that serve interfaces."""
    return lambda *arguments, **how: daemon(*arguments, environment={"MTLSHMD_XDP": "auto"}, **how)


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """Puts the stand-in on PATH, for processes that the test starts as well."""
    source = ROOT / "tools/lab/ethtool_stand_in.py"
    program = tmp_path / "bin/ethtool"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable} -SE\n{source.read_text()}")  # without site-packages: it starts faster
    program.chmod(0o755)
    (tmp_path / "devices").mkdir()
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("MTLSHM_ETHTOOL_STAND_IN", str(tmp_path / "devices"))
    return StandIn(source)


LONG_MAPS = """
import mmap, os, sys
os.chdir(sys.argv[1])
for _ in range(100):
    os.mkdir("\\n" * 255)
    os.chdir("\\n" * 255)
fd = os.open("file", os.O_RDWR | os.O_CREAT)
os.ftruncate(fd, 4096)
protections = (mmap.PROT_READ, mmap.PROT_READ | mmap.PROT_WRITE)
maps = [mmap.mmap(fd, 4096, prot=protections[n % 2]) for n in range(int(sys.argv[2]))]
print(flush=True)
input()
"""


@pytest.fixture
def long_maps(tmp_path: Path) -> Iterator[int]:
    """The PID of a process with a memory map of 40 MiB: a line has a path of 25,600 bytes, each printed as four."""
    (tmp_path / "deep").mkdir()
    command = [sys.executable, "-c", LONG_MAPS, str(tmp_path / "deep"), "400"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"\n"
        yield process.pid
        process.communicate(b"\n")
    shutil.rmtree(tmp_path / "deep")
