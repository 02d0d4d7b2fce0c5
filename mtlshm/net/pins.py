# SPDX-License-Identifier: BSD-3-Clause
"""Pins of our XDP programs and their maps: a directory for each interface, in a BPF file system.

That an interface has a directory says that the programs with our names there are ours (xdp.py). So nobody else may be
able to make one, nor a link in its place: see trusted.py. Directories are held open while something is done in them;
nothing is removed but what has one of our names, and nothing below that.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from mtlshm.net import bpf
from mtlshm.net.places import BPFFS
from mtlshm.net.trusted import open_directory

_MAGIC = 0xCAFE4A11  # BPF_FS_MAGIC
_MODE = 0o700
_libc = ctypes.CDLL(None, use_errno=True)


class Pinned:
    """The directory of one interface, held open until close()."""

    def __init__(self, path: Path, fd: int, known: Iterable[str]) -> None:
        self.path = path
        self._fd = fd
        self._known = frozenset(known)

    def names(self) -> list[str]:
        """All names in the directory, ours or not, sorted."""
        return sorted(os.listdir(self._fd))

    def program(self, name: str) -> bpf.Program:
        """OSError if there is none."""
        return bpf.Program.pinned(self.path / name, self._fd)

    def pin(self, held: bpf.Program | bpf.Map, name: str) -> None:
        """Pin it there, instead of whatever else is."""
        try:
            with type(held).pinned(self.path / name, self._fd) as there:
                if there.info.id == held.info.id:
                    return
        except OSError:
            pass  # nothing, or something of another type
        self.unpin(name)
        held.pin(self.path / name, self._fd)

    def unpin(self, name: str) -> None:
        """If it is there. A directory must be empty."""
        with suppress(FileNotFoundError):
            try:
                os.unlink(name, dir_fd=self._fd)
            except IsADirectoryError:
                os.rmdir(name, dir_fd=self._fd)

    def keep_only(self, names: Iterable[str]) -> None:
        """Removes our other pins. Leaves foreign names alone."""
        for name in self._known.difference(names):
            self.unpin(name)

    def close(self) -> None:
        """Close the directory; what is pinned stays."""
        os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self.close()


class Pins:
    """All those directories, in `path`; `known` are the names of pins. PermissionError if others can write there."""

    def __init__(self, path: Path, known: Iterable[str]) -> None:
        self.path = path
        self._known = frozenset(known)

    def find(self, ifindex: int) -> Pinned | None:
        """None if we have not begun to load the interface."""
        try:
            above = open_directory(self.path)
        except FileNotFoundError:
            return None
        try:
            return self._open(above, _name(ifindex))
        except FileNotFoundError:
            return None
        finally:
            os.close(above)

    def make(self, ifindex: int) -> Pinned:
        """Or find it. ENODEV if that is in no BPF file system."""
        above = open_directory(self.path, _make)
        try:
            _check_type(above, self.path)
            name = _name(ifindex)
            with suppress(FileExistsError):
                os.mkdir(name, _MODE, dir_fd=above)
            return self._open(above, name)
        finally:
            os.close(above)

    def remove(self, ifindex: int) -> None:
        """The pins of an interface, and its directory. ENOTEMPTY if somebody has put something else there."""
        if (pinned := self.find(ifindex)) is None:
            return
        with pinned:
            pinned.keep_only(())
        above = open_directory(self.path)
        try:
            os.rmdir(_name(ifindex), dir_fd=above)
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:
                raise
            text = f"{pinned.path} cannot be removed, as there is something else in it that is not ours"
            raise OSError(errno.ENOTEMPTY, f"{text}: see ls -l {pinned.path}") from None
        finally:
            os.close(above)

    def remove_all(self) -> None:
        """The directory of all, if it is empty."""
        with suppress(OSError):
            os.close(open_directory(self.path))
            self.path.rmdir()

    def interfaces(self) -> list[int]:
        """The indices of interfaces of our network namespace that have a directory."""
        try:
            above = open_directory(self.path)
        except FileNotFoundError:
            return []
        try:
            names = os.listdir(above)
        finally:
            os.close(above)
        pattern = re.compile(rf"{_namespace()}-(\d+)")
        return sorted(int(match[1]) for match in map(pattern.fullmatch, names) if match)

    def _open(self, above: int, name: str) -> Pinned:
        path = self.path / name
        try:
            fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above)
        except NotADirectoryError:
            raise NotADirectoryError(errno.ENOTDIR, f"{path} is no directory; move it away") from None
        found = os.fstat(fd)
        if found.st_uid not in (0, os.geteuid()) or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            os.close(fd)
            raise PermissionError(errno.EPERM, f"{path} can be written by others than root; move it away")
        return Pinned(path, fd, self._known)


def check_libxdps() -> None:
    """That libxdp's own pins are root's, where others can write in the BPF file system."""
    path = Path(BPFFS, "xdp")

    def make(above: int, name: str) -> None:
        # libxdp would do it the next moment; but others could be first.
        if not _is_bpf(above):
            raise FileNotFoundError(errno.ENOENT, f"{path} does not exist")
        with suppress(FileExistsError):
            os.mkdir(name, _MODE, dir_fd=above)

    with suppress(FileNotFoundError):
        os.close(open_directory(path, make))


def _make(above: int, name: str) -> None:
    _check_type(above, Path(os.readlink(f"/proc/self/fd/{above}"), name))
    with suppress(FileExistsError):
        os.mkdir(name, _MODE, dir_fd=above)


def _check_type(directory: int, path: Path) -> None:
    if not _is_bpf(directory):
        reason = f"no BPF file system is mounted there; as root: mount -t bpf -o mode=0700 bpf {BPFFS}"
        raise OSError(errno.ENODEV, f"{path}: {reason}")


def _is_bpf(directory: int) -> bool:
    # Asked of the descriptor: the table of mounts is as long as others like. Its first word is the type.
    answer = (ctypes.c_long * 64)()
    if _libc.fstatfs(directory, ctypes.byref(answer)):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return answer[0] & 0xFFFFFFFF == _MAGIC


def _name(ifindex: int) -> str:
    # The same index may be in use in each network namespace, and they may share the BPF file system.
    return f"{_namespace()}-{ifindex}"


def _namespace() -> int:
    """The inode of our network namespace."""
    return os.stat("/proc/thread-self/ns/net").st_ino
