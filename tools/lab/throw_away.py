# SPDX-License-Identifier: BSD-3-Clause
"""A throw-away copy of this machine: all that a command changes in files is gone with it, and so are its processes.

It has this machine's files below an overlay, a fresh copy of the sources as its working directory, namespaces of its
own and a BPF file system. It has the host's network, or an interface eth0 that is one end of a wire.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lab.documents import ROOT
from lab.processes import BIN

_NAMESPACES = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--ipc", "--uts")

# $1: an empty directory. $2: the checkout. $3: the PATH. $4: what to run. $5: not empty: the host's network.
_ENTER = r"""
set -eu
mount -t tmpfs none "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" none "$1/root"
cd "$1/root"
mkdir -p proc sys dev "./$2" src
mount -t proc proc proc
mount -t sysfs sys sys
mount -t bpf -o mode=0700 bpf sys/fs/bpf
mount --rbind /dev dev
mount -t tmpfs -o mode=1777 none dev/shm
mount -t tmpfs -o mode=1777 none tmp
mount -t tmpfs -o mode=0755 none run
mount --bind "$2" "./$2"
mount -o remount,bind,ro "./$2"
tar -C "$2" --exclude=./.git --exclude=./.venv --exclude=./build --exclude='*.so' --exclude=__pycache__ -cf - . |
	tar -C src -xf -
rm -rf usr/local/bin/mtlshm* usr/local/bin/MtlManager opt/mtlshm etc/mtlshm etc/systemd/system/mtlshm*
sed -i '/^mtl:/d' etc/group
if [ -n "$5" ]; then
	rm -f etc/resolv.conf
	cp /etc/resolv.conf etc/resolv.conf # it may be a link to /run
else
	ip link add eth0 numtxqueues 4 numrxqueues 4 type veth peer name far numtxqueues 4 numrxqueues 4
	ip link set eth0 up
	ip link set far up
fi
exec chroot . /usr/bin/env -u MTLSHM_PATH -u MTLSHMD_CONFIG HOME=/root USER=root COLUMNS=120 LANG=C.UTF-8 \
	PATH="/usr/local/bin:$3" bash -euo pipefail -c "cd /src; $4"
"""


@contextmanager
def machine(directory: Path, *, network: bool) -> Iterator[Callable[[str], list[object]]]:
    """Makes commands that run something there."""
    probe = [
        *_NAMESPACES,
        "sh",
        "-c",
        'mount -t tmpfs none "$1" && mkdir "$1/u" "$1/w" "$1/m" && mount -t overlay -o '
        '"lowerdir=/,upperdir=$1/u,workdir=$1/w" none "$1/m"',
        "sh",
        str(directory),
    ]
    if subprocess.run(probe, capture_output=True).returncode:
        pytest.skip("no overlay file system can be mounted here; not tested: commands that change the machine")
    path = f"{BIN}:{os.environ['PATH']}:/usr/sbin:/sbin"
    namespaces = [*_NAMESPACES, *["--net"] * (not network)]
    yield lambda text: [*namespaces, "bash", "-c", _ENTER, "enter", directory, ROOT, path, text, "yes" * network]
