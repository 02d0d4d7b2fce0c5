# SPDX-License-Identifier: BSD-3-Clause
"""The daemon's surroundings: groups, the BPF file system, the unit, and who stands in its way."""

from __future__ import annotations

import grp
import os
import pwd
import re
import shutil
import stat
from contextlib import suppress
from pathlib import Path

from mtlshm.ctl.host.place import Place
from mtlshm.ctl.logind import deletes_files_of, removes_ipc
from mtlshm.ctl.verdict import State, Verdict
from mtlshm.segment import GROUP

_BPFFS = "/sys/fs/bpf"
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_UNIT_DIRECTORIES = ("etc", "run", "usr/local/lib", "usr/lib", "lib")
_SYSTEMD = "run/systemd/system"  # sd_booted(3)
_LONGEST = 4096  # bytes of a command line that a stranger may make as long as he likes


def bpffs(place: Place) -> Verdict:
    """A BPF file system is mounted where pins go, and only root can write there."""
    mounts = re.findall(r"^\S+ \S+ \S+ \S+ (\S+) .* - (\S+) ", place.read("proc/self/mountinfo") or "", re.MULTILINE)
    above = [(point, kind) for point, kind in mounts if place.pins.is_relative_to(point)]
    # Of those at one place the last one is seen.
    point, kind = max(reversed(above), key=lambda mount: len(mount[0]), default=("/", ""))
    if kind != "bpf":
        text = f"no BPF file system is mounted at {place.pins.parent}: interfaces are not served"
        advice = f"mount -t bpf -o mode=0700 bpf {_BPFFS}" if place.pins.is_relative_to(_BPFFS) else None
        return Verdict("bpffs", State.WARNING, text, advice)
    mode = stat.S_IMODE((place.root / point.lstrip("/")).stat().st_mode)
    try:
        pins = (place.root / str(place.pins).lstrip("/")).stat()
    except FileNotFoundError:
        if mode & _OTHERS_WRITE:
            text = f"the mode of {point} is {mode:04o}: anybody may make {place.pins} before the daemon does"
            return Verdict("bpffs", State.WARNING, text, f"mkdir --mode=0700 {place.pins}")
    else:
        if pins.st_uid:
            text = f"{place.pins} belongs to uid {pins.st_uid}, not to root: interfaces are not served"
            return Verdict("bpffs", State.WARNING, text, "see what is in it, then move it away")
        if pins.st_mode & _OTHERS_WRITE:
            text = f"{place.pins} can be written by others: interfaces are not served"
            return Verdict("bpffs", State.WARNING, text, f"chmod go-w {place.pins}")
    return Verdict("bpffs", State.OK, f"{point} has mode {mode:04o}")


def group(place: Place) -> Verdict:
    """The group exists, and this user is a member."""
    try:
        found = grp.getgrnam(GROUP)
    except KeyError:
        text = f"there is no group {GROUP}: only root and the segment's owner are served"
        return Verdict("group", State.WARNING, text, f"groupadd --system {GROUP}")
    if os.geteuid() == 0 or found.gr_gid in {os.getegid(), *os.getgroups()}:
        return Verdict("group", State.OK, f"group {GROUP} is gid {found.gr_gid}")
    try:
        name = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return Verdict("group", State.WARNING, f"uid {os.geteuid()} is not in group {GROUP}")
    if name in found.gr_mem:
        return Verdict("group", State.WARNING, f"{name} is in group {GROUP} since after this login", "log in again")
    text = f"{name} is not in group {GROUP}"
    return Verdict("group", State.WARNING, text, f"as root, then log in again: usermod -aG {GROUP} {name}")


def segment_group(place: Place) -> Verdict:
    """The group of the segment's file."""
    return _group_of("segment-group", place.segment, GROUP, "mtlshm-ctl doctor --repair")


def socket_group(place: Place) -> Verdict:
    """The group of the manager socket."""
    if place.socket is None:
        return Verdict("socket-group", State.OK, "no socket is served, by the settings")
    advice = f"chgrp {place.socket_group} {place.socket}; and restart mtlshmd once it has no client"
    return _group_of("socket-group", place.socket, place.socket_group, advice)


def _group_of(check: str, path: str, name: str, advice: str) -> Verdict:
    try:
        gid = os.stat(path).st_gid
    except FileNotFoundError:
        return Verdict(check, State.UNKNOWN, f"{path} is not there")
    try:
        wanted = grp.getgrnam(name).gr_gid
    except KeyError:
        return Verdict(check, State.UNKNOWN, f"{path} has gid {gid}, and there is no group {name}")
    if gid == wanted:
        return Verdict(check, State.OK, f"{path} has group {name}")
    text = f"{path} has gid {gid}, not that of group {name}, {wanted}: its members cannot use it"
    return Verdict(check, State.WARNING, text, advice)


def mtlmanager(place: Place) -> Verdict:
    """Upstream's MtlManager does not run. Ours of that name is a script, so its process has an interpreter's name."""
    for directory in (place.root / "proc").iterdir():
        if not directory.name.isdecimal():
            continue
        with suppress(OSError):  # it has ended
            if (directory / "comm").read_text(errors="replace").strip() != "MtlManager":
                continue
            with (directory / "cmdline").open(errors="replace") as file:
                program = file.read(_LONGEST).partition("\0")[0]
            if Path(program).name == "MtlManager":
                text = f"upstream's MtlManager (pid {directory.name}) runs: two managers grant lcores twice"
                return Verdict("MtlManager", State.WARNING, text, f"end its clients, then: kill {directory.name}")
    return Verdict("MtlManager", State.OK, "upstream's MtlManager is not seen")


def remove_ipc(place: Place) -> Verdict:
    """Would logind delete a segment that a user makes?"""
    if not (place.root / _SYSTEMD).exists():
        return Verdict("RemoveIPC", State.OK, "systemd is not the first process: no logind deletes segments")
    if not place.segment.startswith("/dev/shm/") or not removes_ipc(place.root):
        return Verdict("RemoveIPC", State.OK, "logind deletes no segment")
    with suppress(FileNotFoundError):
        uid = os.stat(place.segment).st_uid
        if not deletes_files_of(uid):
            return Verdict("RemoveIPC", State.OK, f"{place.segment} belongs to uid {uid}: logind does not delete it")
    if _is_enabled(place, "mtlshmd") or _is_enabled(place, "mtlshm-segment"):
        return Verdict("RemoveIPC", State.OK, "root makes the segment at boot: logind does not delete it")
    text = "RemoveIPC=yes: logind deletes a segment that a user has made when that user logs out"
    installed = _unit(place, "mtlshm-segment")
    advice = "systemctl enable --now mtlshm-segment" if installed else "as root: mtlshm-ctl create"
    return Verdict("RemoveIPC", State.WARNING, text, advice)


def unit(place: Place) -> Verdict:
    """The service is installed completely, and enabled."""
    if not (place.root / _SYSTEMD).exists():
        return Verdict("unit", State.OK, "systemd is not the first process: no unit is needed")
    file = _unit(place, "mtlshmd")
    if file is None:
        return Verdict("unit", State.WARNING, "mtlshmd.service is not installed", "meson install -C build")
    started = re.search(r"^ExecStart=[-@:+!|]*(\S+)", file.read_text(errors="replace"), re.MULTILINE)
    if started and not (place.root / started[1].lstrip("/")).exists():
        there = shutil.which("mtlshmd")
        advice = f"ln -s {there} {started[1]}" if there else None
        return Verdict("unit", State.WARNING, f"{file} names {started[1]}, which is not there", advice)
    if not _is_enabled(place, "mtlshmd"):
        text = f"{file} is not enabled: mtlshmd does not start at boot"
        return Verdict("unit", State.WARNING, text, "systemctl enable mtlshmd")
    if not os.path.lexists(place.root / "run/systemd/units/invocation:mtlshmd.service"):
        return Verdict("unit", State.WARNING, "mtlshmd.service is not started", "systemctl start mtlshmd")
    return Verdict("unit", State.OK, f"{file} is enabled and started")


def _unit(place: Place, name: str) -> Path | None:
    files = (place.root / each / f"systemd/system/{name}.service" for each in _UNIT_DIRECTORIES)
    return next((file for file in files if file.exists()), None)


def _is_enabled(place: Place, name: str) -> bool:
    for each in ("etc", "run"):
        directory = place.root / each / "systemd/system"
        if any(os.path.lexists(wants / f"{name}.service") for wants in directory.glob("*.wants")):
            return True
    return False
