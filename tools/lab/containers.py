# SPDX-License-Identifier: BSD-3-Clause
"""Real containers, run by podman as root, whatever this machine's cgroups are.

Images and containers are kept apart from others: the image is made once and kept, so that the next time podman finds
most of its layers.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from lab.debian import bare_debian, packages, pip_settings
from lab.documents import ROOT
from lab.processes import DEADLINE

UNTESTED = "containers"
IMAGE = "localhost/mtlshm"
ID = 785  # of the image's user and group
BASE = "localhost/debian:bookworm-slim"  # podman takes it for the one that Containerfile names
_STORE = Path("/var/cache/mtlshm-tests")  # also for those who are not root in there
_RUN = Path("/run/mtlshm-tests")  # podman knows by it whether the machine has booted since
_CONTAINERS = """
[containers]
cgroups = "{cgroups}"
default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]
log_driver = "k8s-file"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
lock_type = "file"
runtime = "{runtime}"
tmp_dir = "{run}/libpod"
"""
_STORAGE = """
[storage]
driver = "overlay"
graphroot = "{store}/containers"
runroot = "{run}/containers"
"""


class Podman:
    """Settings of podman for this machine; `environment` has them."""

    def __init__(self, directory: Path, runtime: str, cgroups: str) -> None:
        for name, text in ("containers.conf", _CONTAINERS), ("storage.conf", _STORAGE):
            (directory / name).write_text(text.format(cgroups=cgroups, runtime=runtime, run=_RUN, store=_STORE))
        self.environment = os.environ | {
            "CONTAINERS_CONF": str(directory / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(directory / "storage.conf"),
        }

    def try_(self, *words: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["podman", *map(str, words)],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=3 * DEADLINE,
        )

    def __call__(self, *words: object) -> str:
        done = self.try_(*words)
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def loading(self, directory: Path) -> list[str]:
        """Options of `podman build` with which it reaches what this machine reaches."""
        mounts = {**pip_settings(directory), packages(): "/var/cache/apt/archives"}
        return ["--network=host", "--isolation=chroot", *(f"--volume={here}:{there}" for here, there in mounts.items())]

    def build(self, directory: Path) -> None:
        """The image, of these sources."""
        version = (ROOT / "VERSION").read_text().strip()
        file = ROOT / "contrib/container/Containerfile"
        how = ("--format=docker", f"--build-arg=VERSION={version}", f"--file={file}", f"--tag={IMAGE}")
        self("build", *self.loading(directory), *how, ROOT)
        self("image", "prune", "--force", "--filter=label=org.opencontainers.image.title=mtlshm")


def podman(directory: Path) -> Podman:
    """Skip if there is none, or if it runs nothing here."""
    if not shutil.which("podman"):
        pytest.skip(f"no podman; tools/setup --containers installs it; not tested: {UNTESTED}")
    _STORE.mkdir(exist_ok=True)
    for runtime, cgroups in ("crun", "enabled"), ("runc", "enabled"), ("crun", "disabled"):
        made = Podman(directory, runtime, cgroups)
        with (_STORE / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if made.try_("image", "exists", BASE).returncode:
                made("import", "--quiet", bare_debian(UNTESTED), BASE)
        if not (done := made.try_("run", "--rm", "--network=none", BASE, "true")).returncode:
            return made
    pytest.skip(f"podman runs no container here; not tested: {UNTESTED}\n{done.stderr}")


class Container:
    """One that runs in the background. It has no privilege, and shares a directory of the host."""

    def __init__(self, podman: Podman, directory: Path, options: tuple[str, ...], command: tuple[str, ...]) -> None:
        self._podman = podman
        self.name = f"mtlshm-test-{uuid.uuid4().hex[:12]}"
        root = () if "--rootfs" in options else (IMAGE,)
        podman("run", "--detach", f"--name={self.name}", *modest(directory), *options, *root, *command)

    def tell(self, format: str) -> str:
        """What `podman inspect` says."""
        return self._podman("inspect", "--format", format, self.name)

    @property
    def pid(self) -> int:
        """On this host."""
        return int(self.tell("{{.State.Pid}}"))

    def logs(self) -> str:
        done = self._podman.try_("logs", self.name)
        return done.stdout + done.stderr

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """In it, beside its own process."""
        return self._podman.try_("exec", self.name, *command)

    def end(self, number: signal.Signals = signal.SIGKILL) -> int:
        """Send its first process a signal as `docker kill -s` does; returns the exit status."""
        self._podman("kill", f"--signal={number.name}", self.name)
        return int(self._podman("wait", self.name))

    def start(self) -> None:
        """Again, after its end."""
        self._podman("start", self.name)

    def remove(self) -> None:
        """Whether it runs or not."""
        self._podman("rm", "--force", "--time=0", self.name)


@contextmanager
def user_namespace(podman: Podman) -> Iterator[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Options for containers in a user namespace where all numbers are others' on the host, with a group of the image's
    number, and without.

    The image's files are copied for them: podman 4.3 cannot give them these numbers where they are.
    """
    places = ("--env=MTLSHM_PATH=/run/imtl/mtlshm", "--env=MTL_MANAGER_SOCK_PATH=/run/imtl/mtl_manager.sock")
    users = (*places, "--uidmap=0:100000:65536", f"--user={ID}:{ID}")
    groups = ("--gidmap=0:100000:785", "--gidmap=785:785:1", "--gidmap=786:100786:64750")
    root = tempfile.mkdtemp(dir=_STORE)
    try:
        os.chmod(root, 0o755)
        subprocess.run(["cp", "-a", f"{podman('image', 'mount', IMAGE)}/.", root], check=True)
        podman("image", "umount", IMAGE)
        subprocess.run(["chown", "-Rh", "--from=0:0", "100000:100000", root], check=True)
        yield (*users, *groups, "--rootfs", root), (*users, "--gidmap=0:100000:65536", "--rootfs", root)
    finally:
        shutil.rmtree(root)


def modest(directory: Path) -> tuple[str, ...]:
    """Options of `podman run`: what contrib/container has, with a directory of the test's own."""
    privilege = ("--cap-drop=all", "--security-opt=no-new-privileges")
    return ("--network=none", "--read-only", "--read-only-tmpfs=false", *privilege, f"--volume={directory}:/run/imtl")


@contextmanager
def containers(podman: Podman, directory: Path) -> Iterator[Callable[..., Container]]:
    """Starts some: started(*command, options=...); all are gone at the end."""
    started: list[Container] = []

    def start(*command: str, options: tuple[str, ...] = ()) -> Container:
        started.append(new := Container(podman, directory, options, command))
        return new

    try:
        yield start
    finally:
        for each in started:
            with suppress(AssertionError):  # a test has removed it
                each.remove()
