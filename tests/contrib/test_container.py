# SPDX-License-Identifier: BSD-3-Clause
"""contrib/container: the image, and a daemon and clients in containers that share a directory and nothing else.

None has a capability, a network or a file system that it can write, but for the directory.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from lab import containers
from lab.containers import BASE, ID, IMAGE, Container, Podman
from lab.documents import ROOT, blocks
from lab.processes import BIN, DEADLINE, eventually, held, needs_root

HERE = ROOT / "contrib/container"
FOREVER = ("sleep", "infinity")
ONE = ("mtlshm-ctl", "run", "--lcores", "1", "--", *FOREVER)
# As libmtl does: it asks at the socket, and holds as long as it lives.
AT_THE_SOCKET = """
import time
from mtlshm.manager_client import Manager
with Manager() as manager:
    manager.register()
    manager.get_lcore(0)
    print("has lcore 0", flush=True)
    time.sleep(100000)
"""
PYTHON = "/opt/mtlshm/bin/python3"

pytestmark = [
    pytest.mark.slow,
    needs_root(containers.UNTESTED),
    pytest.mark.skipif(not {0, 1} <= os.sched_getaffinity(0), reason="needs lcores 0 and 1; not tested: containers"),
]


@pytest.fixture(scope="session")
def podman(build_once: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Podman:
    """It has the image."""
    # Not within build_once: a test that is skipped shall not wait for another to try the same.
    made = containers.podman(tmp_path_factory.mktemp("podman"))

    def build(directory: Path) -> None:
        directory.mkdir()
        made.build(directory)

    build_once("container-image", build)
    return made


@pytest.fixture
def directory() -> Iterator[Path]:
    """What the containers share."""
    path = Path(tempfile.mkdtemp(prefix="mtlshm-test-", dir="/dev/shm"))
    os.chown(path, ID, ID)
    path.chmod(0o750)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def start(podman: Podman, directory: Path) -> Iterator[Callable[..., Container]]:
    with containers.containers(podman, directory) as started:
        yield started


@pytest.fixture
def segment(directory: Path) -> str:
    return str(directory / "mtlshm")


@pytest.fixture
def daemon(start: Callable[..., Container]) -> Container:
    container = start()
    eventually(lambda: "ready" in container.logs())
    return container


def in_use(segment: str) -> set[int]:
    return held(segment) if os.path.exists(segment) else set()


def test_the_image_says_what_it_is(podman):
    (image,) = json.loads(podman("image", "inspect", IMAGE))
    config = image["Config"]
    assert (config["User"], config["StopSignal"], config["Cmd"]) == ("mtlshm", "SIGTERM", ["mtlshmd"])
    assert image["HealthCheck" if "HealthCheck" in image else "Healthcheck"]["Test"] == ["CMD", "mtlshm-ctl", "health"]
    version = (ROOT / "VERSION").read_text().strip()
    assert config["Labels"]["org.opencontainers.image.version"] == version
    base = int(podman("image", "inspect", "--format", "{{.Size}}", BASE))
    assert image["Size"] - base < 100e6
    said = podman("run", "--rm", "--network=none", IMAGE, "sh", "-c", "id; ldconfig -p; ! command -v gcc pip3")
    assert f"uid={ID}(mtlshm) gid={ID}(mtl)" in said
    assert "libmtlshm.so.0" in said


def test_two_clients_get_lcores_of_their_own(daemon, start, segment):
    one, other = start(*ONE), start(*ONE)
    eventually(lambda: in_use(segment) == {0, 1})
    for namespace in "pid", "ipc", "net", "mnt", "uts":
        assert len({os.readlink(f"/proc/{each.pid}/ns/{namespace}") for each in (daemon, one, other)}) == 3, namespace
    for each in daemon, one:
        health = each.run("mtlshm-ctl", "health")
        assert (health.returncode, health.stdout.split(":")[0]) == (0, "healthy"), health.stdout
    refused = start("mtlshm-ctl", "run", "--lcores", "1", "--", "true")
    eventually(lambda: refused.tell("{{.State.Status}}") == "exited")
    assert refused.tell("{{.State.ExitCode}}") == "125"
    assert "of the 2" in refused.logs() or os.cpu_count() != 2
    one.end()
    eventually(lambda: len(in_use(segment)) == 1)
    other.remove()
    eventually(lambda: in_use(segment) == set())


def test_clients_hold_on_while_the_daemon_is_killed_and_claim_without_it(daemon, start, segment):
    start(*ONE)
    eventually(lambda: len(in_use(segment)) == 1)
    daemon.end()
    other = start(*ONE)
    eventually(lambda: in_use(segment) == {0, 1})
    assert other.run("mtlshm-ctl", "health").returncode == 1
    daemon.start()
    eventually(lambda: other.run("mtlshm-ctl", "health").returncode == 0)
    assert in_use(segment) == {0, 1}


def test_what_all_held_who_are_killed_is_free(daemon, start, segment):
    client = start(*ONE)
    eventually(lambda: len(in_use(segment)) == 1)
    daemon.end()
    client.end()
    everything = start("mtlshm-ctl", "run", "--lcores", str(os.cpu_count()), "--", *FOREVER)
    eventually(lambda: in_use(segment) == set(range(os.cpu_count() or 0)) or not everything.pid)
    assert everything.pid, everything.logs()


@pytest.mark.parametrize("namespace", ["host", "private"])
def test_a_client_of_the_socket_keeps_its_lcore_while_the_daemon_restarts(start, segment, namespace):
    """Whether it has died since, a daemon knows that sees its process."""
    daemon = start(options=(f"--pid={namespace}",))
    eventually(lambda: "ready" in daemon.logs())
    client = start(PYTHON, "-c", AT_THE_SOCKET)
    eventually(lambda: "has lcore 0" in client.logs())
    daemon.end()
    daemon.start()
    eventually(lambda: daemon.run("mtlshm-ctl", "health").returncode == 0)
    assert in_use(segment) == {0}
    client.end()
    if namespace == "private":
        assert "what it has stays its own" in daemon.logs()
        assert daemon.run("mtlshm-ctl", "release", "--force", "--yes", "0").returncode == 0
    eventually(lambda: in_use(segment) == set())


def test_a_client_in_a_user_namespace_needs_the_groups_number(daemon, podman, directory, segment):
    with (
        containers.user_namespace(podman) as (in_the_group, stranger),
        containers.containers(podman, directory) as start,
    ):
        client = start(*ONE, options=in_the_group)
        eventually(lambda: len(in_use(segment)) == 1)
        assert os.stat(f"/proc/{client.pid}").st_uid == 100000 + ID
        ping = client.run("mtlshm-ctl", "ping")
        assert ping.returncode == 0, ping.stderr
        client.end()
        eventually(lambda: in_use(segment) == set())
        refused = start("mtlshm-ctl", "status", options=stranger)
        eventually(lambda: refused.tell("{{.State.Status}}") == "exited")
        assert refused.tell("{{.State.ExitCode}}") == "5"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_first_process_of_a_container(daemon, start, segment, number):
    """The kernel keeps signals from a first process that has no handler for them."""
    client, holder = start(*ONE), start("mtlshm-ctl", "hold", "--lcores", "1")
    eventually(lambda: in_use(segment) == {0, 1})
    assert holder.end(number) == 0
    assert client.end(number) == 128 + number
    eventually(lambda: in_use(segment) == set())
    assert daemon.end(number) == 0


def test_who_mounts_the_sockets_file_loses_it_with_the_daemon(daemon, podman, start, directory):
    """And who has a /dev/shm of its own shares nothing: traps of which the guide tells."""
    start_file = (f"--volume={directory}/mtl_manager.sock:/run/mtl_manager.sock",)
    client = start(*FOREVER, options=start_file)
    file = ("env", "MTL_MANAGER_SOCK_PATH=/run/mtl_manager.sock", "mtlshm-ctl", "ping")
    assert client.run(*file).returncode == 0
    daemon.end()
    daemon.start()
    eventually(lambda: client.run("mtlshm-ctl", "ping").returncode == 0)
    assert client.run(*file).returncode != 0
    assert client.run("env", "MTLSHM_PATH=/dev/shm/mtlshm", "mtlshm-ctl", "status").returncode == 3


def test_compose_starts_what_it_says(podman):
    project = f"mtlshm-test-{uuid.uuid4().hex[:12]}"
    compose = [BIN / "podman-compose", "--file", HERE / "compose.yaml", "--project-name", project]

    def run(*words: str) -> str:
        command = list(map(str, [*compose, *words]))
        both = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        done = subprocess.run(command, **both, text=True, env=podman.environment | {"MTLSHM_IMAGE": IMAGE})
        assert done.returncode == 0, done.stdout
        return done.stdout

    try:
        run("up", "--detach")
        (mount,) = json.loads(podman("volume", "inspect", f"{project}_imtl"))
        segment = f"{mount['Mountpoint']}/mtlshm"
        eventually(lambda: in_use(segment) == {0, 1})
        names = podman("ps", "--format={{.Names}}", f"--filter=label=io.podman.compose.project={project}").split()
        assert len(names) == 3
        for namespace in "pid", "ipc", "net":
            of = [podman("inspect", "--format={{.State.Pid}}", name) for name in names]
            assert len({os.readlink(f"/proc/{pid}/ns/{namespace}") for pid in of}) == 3, namespace
        (daemon,) = (name for name in names if "mtlshmd" in name)
        eventually(lambda: not podman.try_("healthcheck", "run", daemon).returncode)
    finally:
        run("down", "--volumes")


@pytest.mark.parametrize("block", [block for block in blocks() if block.tier == "container"], ids=str)
def test_commands_of_documents(podman, block, tmp_path):
    wrapper = tmp_path / "podman"
    wrapper.write_text(
        f'#!/bin/sh\nprogram={shutil.which("podman")}\n[ "$1" = build ] || exec $program "$@"\nshift\n'
        f'exec $program build {shlex.join(podman.loading(tmp_path))} "$@"\n'
    )
    wrapper.chmod(0o755)
    both = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    environment = podman.environment | {"PATH": f"{tmp_path}:{BIN}:{os.environ['PATH']}"}
    command = ["bash", "-euo", "pipefail", "-c", block.text]
    done = subprocess.run(command, **both, text=True, env=environment, cwd=ROOT, timeout=3 * DEADLINE)
    assert done.returncode == 0, f"{block}\n{done.stdout}"


def test_compose_and_quadlets_ask_for_the_same():
    services = yaml.safe_load((HERE / "compose.yaml").read_text())["services"]
    assert set(services) == {"mtlshmd", "studio-1", "studio-2"}
    for service in services.values():
        assert (service["network_mode"], service["read_only"], service["cap_drop"]) == ("none", True, ["ALL"])
        assert not {"privileged", "ipc", "pid", "userns_mode", "devices"} & set(service)
    options = yaml.safe_load((HERE / "compose.yaml").read_text())["volumes"]["imtl"]["driver_opts"]["o"]
    assert f"Options={options}\n" in (HERE / "quadlet/imtl.volume").read_text()
    client = " ".join(services["studio-1"]["command"])
    assert f"Exec={client}\n" in (HERE / "quadlet/studio@.container").read_text()


@pytest.fixture(scope="session")
def generated(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The units that podman makes of the quadlets."""
    found = subprocess.run([ROOT / "tools/vm.d/quadlet"], capture_output=True, text=True)
    if found.returncode:
        pytest.skip(f"no quadlet: {found.stderr.strip()}; not tested: contrib/container/quadlet")
    libraries = Path(found.stdout.strip()) / "usr/lib/x86_64-linux-gnu"
    program = [libraries / "ld-linux-x86-64.so.2", "--library-path", libraries]
    environment = os.environ | {"QUADLET_UNIT_DIRS": str(HERE / "quadlet")}
    generator = [*program, Path(found.stdout.strip()) / "usr/libexec/podman/quadlet", "-dryrun"]
    done = subprocess.run(list(map(str, generator)), env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_quadlets_start_shares_lcores(podman, generated, tmp_path):
    """By their commands, without options for what systemd makes, and for what podman 4.3 does not know."""
    commands = [shlex.split(line) for line in re.findall("^ExecStart=/usr/bin/podman (.*)$", generated, re.MULTILINE)]
    volume, daemon, client = ([word.replace("%t", str(tmp_path)) for word in command] for command in commands)
    elsewhere = {"--cgroups=split", "--ignore", "--replace", "--sdnotify=conmon"}
    started = []
    try:
        podman(*(word for word in volume if word not in elsewhere))
        for command, instance in (daemon, ""), (client, "1"), (client, "2"):
            words = [word.replace("%N", f"unit{instance}").replace("%i", instance) for word in command]
            started.append(podman(*(word for word in words if word not in elsewhere)))
        name = volume[-1]
        segment = f"{podman('volume', 'inspect', '--format={{.Mountpoint}}', name)}/mtlshm"
        eventually(lambda: in_use(segment) == {0, 1})
        eventually(lambda: not podman.try_("healthcheck", "run", "mtlshmd").returncode)
    finally:
        for container in started:
            podman("rm", "--force", "--time=0", container)
        podman("volume", "rm", "--force", volume[-1])
