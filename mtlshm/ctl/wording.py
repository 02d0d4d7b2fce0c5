# SPDX-License-Identifier: BSD-3-Clause
"""Instances and times in words."""

from __future__ import annotations

import pwd

from mtlshm import Event, InstanceInfo, Kind, Process, namespaces

_SHORT = 24  # characters of a label beside others
_NO_UID = 2**32 - 1  # of a process that the daemon does not see


def user(uid: int) -> str:
    """The user's name, or the number if this host has none for it."""
    if uid == _NO_UID:
        return "an unknown user"
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def state(info: InstanceInfo) -> str:
    """alive, dead (not yet collected) or unknown."""
    return {True: "alive", False: "dead", None: "unknown"}[info.alive]


def process(info: InstanceInfo | Process | Event) -> str:
    """Its pid, marked if that is a number of another PID namespace."""
    try:
        here = namespaces.own("pid")
    except OSError:
        here = 0
    return str(info.pid) if info.pid_namespace == here else f"{info.pid} in namespace {info.pid_namespace}"


def describe(info: InstanceInfo) -> str:
    """The owner in one line."""
    return f"{name(info)}, {state(info)}, registered {duration(info.age)} ago"


def name(info: InstanceInfo | Process) -> str:
    """The name that the process gave itself."""
    if isinstance(info, InstanceInfo) and info.kind == Kind.RESERVATION:
        return f"reservation {info.key}"
    return f"{info.label} (pid {process(info)}, {info.comm}) of {user(info.uid)} on {info.hostname}"


def short(info: InstanceInfo) -> str:
    """The same, for a cell of a table: the label of `run` is a whole command."""
    label = info.label if len(info.label) <= _SHORT else f"{info.label[: _SHORT - 3]}..."
    return label if info.kind == Kind.RESERVATION else f"{label} ({process(info)})"


def duration(seconds: float) -> str:
    """Short, in two units at most."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60}s"
    if whole < 86400:
        return f"{whole // 3600}h {whole % 3600 // 60}m"
    return f"{whole // 86400}d {whole % 86400 // 3600}h"
