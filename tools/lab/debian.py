# SPDX-License-Identifier: BSD-3-Clause
"""A bare Debian of this machine's release, as a tar archive: made once of what apt's mirror has, and kept."""

from __future__ import annotations

import fcntl
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from lab.documents import ROOT
from lab.processes import DEADLINE

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mtlshm"


def bare_debian(untested: str) -> Path:
    """Skip, saying what is not tested then, if there can be none."""
    release = platform.freedesktop_os_release()
    archive = CACHE / f"debian-{release.get('VERSION_CODENAME')}.tar"
    if release["ID"] != "debian" or not shutil.which("mmdebstrap"):
        pytest.skip(f"needs Debian, and mmdebstrap from tools/setup --containers; not tested: {untested}")
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "debian.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not archive.exists() and (failure := _make(archive, release["VERSION_CODENAME"])):
            pytest.skip(f"mmdebstrap failed; not tested: {untested}\n{failure}")
    return archive


def _make(archive: Path, codename: str) -> str:
    """Returns why it could not."""
    uris = subprocess.run(["apt-get", "--print-uris", "update"], capture_output=True, text=True).stdout
    mirror = re.search(rf"^'(.*)/dists/{codename}/InRelease'", uris, re.MULTILINE)
    if not mirror:
        return "apt's sources name no mirror of it"
    new = archive.with_name("new.tar")
    command = ["mmdebstrap", "--quiet", "--variant=minbase", codename, new, f"deb {mirror[1]} {codename} main"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode:
        return done.stderr
    new.rename(archive)
    return ""


def packages() -> Path:
    """Where apt-get keeps what it has loaded, for such a Debian to find in /var/cache/apt/archives."""
    directory = CACHE / "archives"
    (directory / "partial").mkdir(parents=True, exist_ok=True)
    return directory


def pip_settings(directory: Path) -> dict[Path, str]:
    """Files of this machine with which pip reaches its index from there, and their places: made in `directory`."""
    listed = subprocess.run(["pip", "config", "list"], capture_output=True, text=True).stdout
    authorities = re.search(r"\.cert='(.*)'", listed)
    files = {}
    if authorities:
        there = "/etc/authorities.pem"
        settings = directory / "pip.conf"
        settings.write_text(f"[global]\ncert = {there}\n")
        files = {settings: "/etc/pip.conf", Path(authorities[1]).resolve(): there}
    return files


# $1: an empty directory. $2: the archive. $3: where apt-get keeps packages. $4: what to run. The rest: a file of this
# machine, its place there, another file, and so on.
_ENTER = r"""
set -eu
mount -t tmpfs none "$1"
tar -C "$1" -xf "$2"
mkdir -p "$1/src" "$1/var/cache/apt/archives"
tar --exclude=./.git --exclude=./.venv --exclude=./build --exclude='*.so' --exclude=__pycache__ -cf - . |
	tar -C "$1/src" -xf -
mount --bind "$3" "$1/var/cache/apt/archives"
script=$4
cd "$1"
shift 4
while [ $# -gt 0 ]; do
	cp "$1" "./$2"
	shift 2
done
rm -f etc/resolv.conf
cp /etc/resolv.conf etc/resolv.conf
mount -t proc proc proc
mount -t sysfs sys sys
mount --rbind /dev dev
mount -t tmpfs -o mode=1777 none dev/shm
mount -t tmpfs -o mode=0755 none run
exec chroot . /usr/bin/env -i HOME=/root USER=root LANG=C.UTF-8 DEBIAN_FRONTEND=noninteractive \
	PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin bash -euo pipefail -c "cd /src; $script"
"""


def in_bare_debian(script: str, directory: Path, untested: str, files: dict[Path, str] | None = None) -> str:
    """Run it there by root, with the sources as its working directory; returns what it said. All is gone at its end."""
    archive = bare_debian(untested)
    files = {**pip_settings(directory), **(files or {})}
    (directory / "debian").mkdir()
    namespaces = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--ipc", "--uts")
    words = [directory / "debian", archive, packages(), script, *(word for pair in files.items() for word in pair)]
    done = subprocess.run(
        [*namespaces, "bash", "-c", _ENTER, "enter", *map(str, words)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        timeout=5 * DEADLINE,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout
