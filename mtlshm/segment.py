# SPDX-License-Identifier: BSD-3-Clause
"""The segment as a file: finding it by name, reading what it is, removing it. Making and mapping it is the C core's.

One in /dev/shm has a POSIX name and is handled by that; one elsewhere (orchestrators share /run/imtl) is a plain file.
"""

from __future__ import annotations

import errno
import os
import stat

from mtlshm._core import ffi, lib

GROUP = "mtl"  # whose members may use it, as the core names it

_SHM_DIRECTORY = "/dev/shm/"


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


def diagnose(path: str, error: int) -> str:
    """What can be said about a segment that the core refused with `error`, beyond what the errno says; else ''."""
    if error == errno.EACCES:
        return _who_may(path)
    if error in (errno.EPROTO, errno.EBADMSG):
        return _what_it_is(path)
    return ""


def _who_may(path: str) -> str:
    import grp
    import pwd

    try:
        user = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        user = f"uid {os.geteuid()}"
    try:
        status = os.stat(path)
    except OSError:
        return f"{user} may not use the directory {os.path.dirname(path)}: name another path"
    what = f"{user} may not use it: mode {stat.filemode(status.st_mode)}"
    try:
        group = grp.getgrgid(status.st_gid).gr_name
    except KeyError:
        group = ""
    if not group or status.st_gid in (0, os.getegid(), *os.getgroups()):
        whose = f"group {group}" if group else f"gid {status.st_gid}, which has no name"
        return (
            f"{what}, {whose}; make a group for MTL's users (groupadd --system mtl), stop all who use the segment, "
            "remove the file and start again"
        )
    return f"{what}, group {group}; become a member (usermod -aG {group} {user}) and log in again"


def _what_it_is(path: str) -> str:
    header = ffi.new("struct mtlshm_header *")
    try:
        if not stat.S_ISREG(os.lstat(path).st_mode):  # asked first: to open a FIFO can take for ever
            return "not a regular file, so no mtlshm segment: name another path"
        fd = open_for_reading(path)
    except OSError:
        return ""
    try:
        size = os.fstat(fd).st_size
        ffi.memmove(header, (data := os.pread(fd, ffi.sizeof(header[0]), 0)), len(data))
    finally:
        os.close(fd)
    advice = "stop all its users, then remove the file"
    if not bytes(ffi.buffer(header.magic)).startswith(b"MTLSHM"):
        return f"not a mtlshm segment ({size} bytes): name another path, or remove the file"
    if header.version != lib.MTLSHM_LAYOUT_VERSION:
        return f"layout version {header.version}, and this library knows {lib.MTLSHM_LAYOUT_VERSION}: {advice}"
    if size < header.size:
        return f"truncated to {size} of {header.size} bytes: {advice}"
    return f"the layout of another build of version {header.version}, or damaged: {advice}"
