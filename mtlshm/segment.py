# SPDX-License-Identifier: BSD-3-Clause
"""The segment as a file: finding it by name, reading what it is, removing it. Making and mapping it is the C core's.

One in /dev/shm has a POSIX name and is handled by that; one elsewhere (orchestrators share /run/imtl) is a plain file.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections import Counter
from contextlib import suppress
from typing import Any

from mtlshm._core import ffi, lib
from mtlshm.errors import MtlshmError, error, failure
from mtlshm.kinds import Kind

GROUP = "mtl"  # whose members may use it, as the core names it

_SHM_DIRECTORY = "/dev/shm/"
_MOST_RECORDS, _LARGEST_RECORD = 4096, 4096  # of any layout


def _posix_name(path: str) -> str | None:
    name = path.removeprefix(_SHM_DIRECTORY)
    return f"/{name}" if name != path and name and "/" not in name else None


def open_for_reading(path: str) -> int:
    """A descriptor of the segment's file, read-only and close-on-exec; OSError as from open(2)."""
    name = _posix_name(path)
    if name is None:
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    import posix_ipc

    try:
        fd = int(posix_ipc.SharedMemory(name, read_only=True).fd)
    except posix_ipc.ExistentialError:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path) from None
    except posix_ipc.PermissionsError:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path) from None
    os.set_inheritable(fd, False)
    return fd


def unlink(path: str) -> None:
    """Remove the name; those who have it mapped keep their mapping. Host.unlink() is the safe way."""
    name = _posix_name(path)
    if name is None:
        os.unlink(path)
        return
    import posix_ipc

    try:
        posix_ipc.unlink_shared_memory(name)
    except posix_ipc.ExistentialError:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path) from None
    except posix_ipc.PermissionsError:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path) from None


def change(path: str, inode: tuple[int, int], *, mode: int | None = None, gid: int | None = None) -> None:
    """Change the file of that device and inode; not one that somebody has put there since, nor what a link leads to."""
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        status = os.fstat(fd)
        if (status.st_dev, status.st_ino) != inode:
            raise OSError(errno.ESTALE, "somebody has replaced it")
        if gid is not None:
            os.chown(f"/proc/self/fd/{fd}", -1, gid)
        if mode is not None:
            os.chmod(f"/proc/self/fd/{fd}", mode)
    finally:
        os.close(fd)


def refused(path: str, code: int) -> MtlshmError:
    """The exception for a segment that the core has just refused to open, with what its file looks like."""
    failed = failure(code)
    detail = failed.removeprefix(f"{path} ")  # it is the subject
    if code == -errno.EACCES and (path in failed or os.path.join(os.path.dirname(path), "") in failed):
        detail = _who_may(path)
    elif not failed and code in (-errno.EPROTO, -errno.EBADMSG):
        detail = _what_it_is(path)
    return error(code, f"segment {path}", detail)


def _user(uid: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def _is_member(uid: int, group: Any) -> bool:
    """Of an entry of group(5)."""
    import pwd

    with suppress(KeyError):
        user = pwd.getpwuid(uid)
        return user.pw_gid == group.gr_gid or user.pw_name in group.gr_mem
    return False


def _who_may(path: str) -> str:
    """Why we may not, and what lets us. The group gets no stranger's file: the group is what its users trust."""
    import grp

    user = _user(os.geteuid())
    try:
        status = os.stat(path)
    except OSError:
        return f"{user} is not permitted to use the directory {os.path.dirname(path)}: name another path"
    try:
        group = grp.getgrgid(status.st_gid).gr_name
    except KeyError:
        group = ""
    group_name = group or f"gid {status.st_gid}"
    owner, mode = _user(status.st_uid), stat.filemode(status.st_mode)
    what = f"{user} is not permitted to use it: it belongs to {owner}, group {group_name}, mode {mode}"
    open_to_group = status.st_mode & 0o060 == 0o060
    if group and open_to_group and status.st_gid not in (0, os.getegid(), *os.getgroups()):
        return f"{what}; become a member (usermod -aG {group} {user}) and log in again"
    give = f"chgrp {GROUP} {path} && chmod 660 {path}"
    try:
        users = grp.getgrnam(GROUP)
    except KeyError:
        people = user if status.st_uid == 0 else f"{owner} and {user}"
        return (
            f"{what}; there is no group {GROUP}: make it (groupadd --system {GROUP}), put {people} into it "
            f"(usermod -aG {GROUP} NAME), give it the file ({give}) and log in again"
        )
    if status.st_uid != 0 and not _is_member(status.st_uid, users):
        return f"{what}; the group {GROUP} exists, but {owner} is no member, so ask root whose file this is"
    join = "" if users.gr_gid in (os.getegid(), *os.getgroups()) else f"become a member (usermod -aG {GROUP} {user}), "
    return f"{what}; the group {GROUP} exists: {join}have root or {owner} give it the file ({give}) and log in again"


def _what_it_is(path: str) -> str:
    header = ffi.new("struct mtlshm_header *")
    try:
        if not stat.S_ISREG(os.lstat(path).st_mode):  # asked first: to open a FIFO can take for ever
            return ""
        fd = open_for_reading(path)
    except OSError:
        return ""
    try:
        size = os.fstat(fd).st_size
        ffi.memmove(header, (data := os.pread(fd, ffi.sizeof(header[0]), 0)), len(data))
        kept = _kept(fd, header)
    finally:
        os.close(fd)
    advice = "stop all its users, then remove the file"
    replaced = f"{'; '.join(_users(path, kept))}. Then start anew: what nobody uses is replaced"
    if not bytes(ffi.buffer(header.magic)).startswith(b"MTLSHM"):
        return f"not a mtlshm segment ({size} bytes): name another path, or remove the file"
    if header.version != lib.MTLSHM_LAYOUT_VERSION:
        return f"layout version {header.version}, and this library knows {lib.MTLSHM_LAYOUT_VERSION}; {replaced}"
    if size < header.size:
        return f"truncated to {size} of {header.size} bytes: {advice}"
    return f"the layout of another build of version {header.version}, or damaged; {replaced}"


def _kept(fd: int, header: Any) -> Counter[Kind]:
    """Of what kinds the records are that no process keeps alive by a lock: in every layout where the header says."""
    at, size, count, kind_at = header.records_at, header.record_size, header.records, header.kind_at
    if header.version == 1:
        at, size, count, kind_at = 256, 256, 256, 16
    found = Counter[Kind]()
    if not 8 <= kind_at <= size - 4 <= _LARGEST_RECORD or count > _MOST_RECORDS:  # it is no header
        return found
    data = os.pread(fd, size * count, at)
    for record in range(0, len(data) - size + 1, size):
        control, kind = (
            int.from_bytes(data[record + begin : record + end], sys.byteorder)
            for begin, end in ((0, 8), (kind_at, kind_at + 4))
        )
        if control & 0xFF == lib.MTLSHM_PROXIED and kind in set(Kind):
            found[Kind(kind)] += 1
    return found


def _users(path: str, kept: Counter[Kind]) -> list[str]:
    """Who they are, and how to end them."""
    from mtlshm.users import users  # it needs much that is needed only here

    said = []
    try:
        inode = os.stat(path).st_ino
        seen = [str(user) for user in users(path) if user.inode == inode and not user.removed]
    except OSError:
        seen = []
    if seen:
        said.append(f"used by {', '.join(seen)}: stop them")
    if number := kept[Kind.RESERVATION]:
        what = "1 reservation is" if number == 1 else f"{number} reservations are"
        said.append(f"{what} in it: end each with the mtlshm-ctl that made it (mtlshm-ctl end NAME)")
    if number := kept[Kind.SOCKET] + kept[Kind.LEGACY]:
        what = "1 process is" if number == 1 else f"{number} processes are"
        said.append(f"{what} in it that a daemon keeps: stop them while mtlshmd of that version runs")
    return said or [
        "a process uses it that cannot be seen from here: in a container, ask mtlshm-ctl doctor on the host, as root"
    ]
