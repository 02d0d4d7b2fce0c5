# SPDX-License-Identifier: BSD-3-Clause
"""Which container a process is in, as far as its cgroup tells. No container runtime is asked."""

from __future__ import annotations

import re
from contextlib import suppress

from mtlshm.snapshot import printable

# Docker, Podman, containerd, CRI-O and Kubernetes put the container's id of 64 hexadecimal digits into the path of its
# cgroup. People know the first 12 of them.
_ID = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{52}\b")
# systemd-nspawn has a scope or a unit for each machine, LXC a cgroup; these have names.
_NAME = re.compile(r"/(?:machine-|systemd-nspawn@|lxc\.payload\.)([^/\n]+?)(?:\.scope|\.service)?(?:/|$)", re.MULTILINE)
_ESCAPED = re.compile(r"\\x([0-9a-f]{2})")  # systemd.unit(5)
_LONGEST_PATH = 4096
_LONGEST_NAME = 64


def container(pid: int) -> str:
    """The first 12 digits of the id of the container that a process is in, or its name; '': none, or not known here."""
    with suppress(OSError), open(f"/proc/{pid}/cgroup", errors="replace") as file:
        return in_path(file.read(_LONGEST_PATH))
    return ""


def in_path(text: str) -> str:
    """The same, of what proc(5) cgroup says. A container in a container is named, not the outer one."""
    if found := _ID.findall(text):
        return str(found[-1])
    if found := _NAME.findall(text):
        name = _ESCAPED.sub(lambda code: chr(int(code[1], 16)), found[-1])
        return printable(name)[:_LONGEST_NAME]
    return ""
