# SPDX-License-Identifier: BSD-3-Clause
"""BPF programs and maps, by way of libbpf.

A thin layer: each call is one of bpf(2)'s, and what it refuses is an OSError. libbpf rather than the system call
itself, as it knows every kernel's structures; it is there wherever xdp-loader is.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from collections.abc import Iterator
from ctypes import POINTER, byref, c_char, c_char_p, c_int, c_uint8, c_uint32, c_uint64, c_void_p, sizeof
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

PROGRAM_XDP = 6
PROGRAM_EXTENSION = 28  # "freplace": takes the place of a function of another program, as libxdp's chain does
MAP_ARRAY = 2
MAP_XSKMAP = 17
_LINK_TRACING = 2  # how the kernel files an extension's link


class _ProgramInfo(ctypes.Structure):
    _fields_ = (
        ("type", c_uint32),
        ("id", c_uint32),
        ("tag", c_uint8 * 8),
        ("jited_length", c_uint32),
        ("translated_length", c_uint32),
        ("jited", c_uint64),
        ("translated", c_uint64),
        ("load_time", c_uint64),
        ("uid", c_uint32),
        ("map_count", c_uint32),
        ("map_ids", c_uint64),
        ("name", c_char * 16),
    )


class _MapInfo(ctypes.Structure):
    _fields_ = (
        ("type", c_uint32),
        ("id", c_uint32),
        ("key_size", c_uint32),
        ("value_size", c_uint32),
        ("max_entries", c_uint32),
        ("flags", c_uint32),
        ("name", c_char * 16),
    )


class _LinkInfo(ctypes.Structure):
    _fields_ = (
        ("type", c_uint32),
        ("id", c_uint32),
        ("program_id", c_uint32),
        ("_", c_uint32),
        ("attach_type", c_uint32),
        ("target_id", c_uint32),
    )


_FUNCTIONS: dict[str, tuple[Any, ...]] = {  # what they take; they return an int
    "bpf_obj_get": (c_char_p,),
    "bpf_obj_pin": (c_int, c_char_p),
    "bpf_obj_get_info_by_fd": (c_int, c_void_p, POINTER(c_uint32)),
    "bpf_prog_get_fd_by_id": (c_uint32,),
    "bpf_map_get_fd_by_id": (c_uint32,),
    "bpf_link_get_fd_by_id": (c_uint32,),
    "bpf_link_get_next_id": (c_uint32, POINTER(c_uint32)),
    "bpf_map_lookup_elem": (c_int, c_char_p, c_char_p),
    "bpf_map_update_elem": (c_int, c_char_p, c_char_p, c_uint64),
    "bpf_map_delete_elem": (c_int, c_char_p),
    "libbpf_probe_bpf_prog_type": (c_int, c_void_p),
    "libbpf_set_print": (c_void_p,),
}


@cache
def _library() -> ctypes.CDLL:
    """Loaded when it is first needed: most daemons have no interface to care for."""
    try:
        library = ctypes.CDLL("libbpf.so.1", use_errno=True)
    except OSError as error:
        reason = f"{error}; on Debian: apt-get install xdp-tools, which needs it too"
        raise FileNotFoundError(errno.ENOENT, reason) from None
    for name, takes in _FUNCTIONS.items():
        function = getattr(library, name)
        function.argtypes = takes
    library.libbpf_set_print(None)  # what is wrong is said by exceptions
    return library


def _call(subject: str, name: str, *arguments: object) -> int:
    """Call it, or raise what it refused."""
    result: int = getattr(_library(), name)(*arguments)
    if result < 0:
        raise OSError(-result, f"{subject}: {os.strerror(-result)}")
    return result


def _info(fd: int, info: Any) -> Any:
    _call("BPF object", "bpf_obj_get_info_by_fd", fd, byref(info), byref(c_uint32(sizeof(info))))
    return info


def _at(path: Path, directory: int | None) -> bytes:
    # bpf(2) takes a directory's descriptor only from Linux 6.5 on.
    return os.fsencode(path if directory is None else f"/proc/self/fd/{directory}/{path.name}")


def may_extend() -> bool | None:
    """Whether this kernel can chain XDP programs. Tries to load one; None if the kernel loads none for this process."""
    if _call("XDP programs", "libbpf_probe_bpf_prog_type", PROGRAM_XDP, None) != 1:
        return None
    return _call("extensions", "libbpf_probe_bpf_prog_type", PROGRAM_EXTENSION, None) == 1


class _Held:
    """A descriptor of a BPF object; the object lives at least as long."""

    kind: ClassVar[str]
    _by_id: ClassVar[str]

    def __init__(self, fd: int) -> None:
        self.fd = fd

    @classmethod
    def by_id(cls, number: int) -> Self:
        """ENOENT if there is none; needs CAP_SYS_ADMIN."""
        return cls(_call(f"BPF {cls.kind} {number}", cls._by_id, number))

    @classmethod
    def pinned(cls, path: Path, directory: int | None = None) -> Self:
        """ENOENT if nothing is pinned there, EINVAL if it is something else. For `directory` see pin()."""
        fd = _call(str(path), "bpf_obj_get", _at(path, directory))
        # Nothing else tells the types apart: what the kernel says of a map reads like what it says of a program.
        if os.readlink(f"/proc/self/fd/{fd}") != f"anon_inode:bpf-{cls.kind}":
            os.close(fd)
            raise OSError(errno.EINVAL, f"{path}: not a BPF {cls.kind}")
        return cls(fd)

    def pin(self, path: Path, directory: int | None = None) -> None:
        """In the directory that `directory` is a descriptor of, if that is given: `path` then names it for people."""
        _call(str(path), "bpf_obj_pin", self.fd, _at(path, directory))

    def close(self) -> None:
        os.close(self.fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self.close()


@dataclass(frozen=True)
class ProgramInfo:
    """A program as the kernel describes it: struct bpf_prog_info."""

    id: int
    type: int
    name: str
    tag: str  # a hash of its instructions
    map_ids: tuple[int, ...]


class Program(_Held):
    """A program in the kernel."""

    kind = "prog"
    _by_id = "bpf_prog_get_fd_by_id"

    @property
    def info(self) -> ProgramInfo:
        """Asked anew each time. OSError if it cannot be had."""
        count = _info(self.fd, _ProgramInfo()).map_count
        ids = (c_uint32 * count)()
        info = _info(self.fd, _ProgramInfo(map_count=count, map_ids=ctypes.addressof(ids)))
        return ProgramInfo(info.id, info.type, info.name.decode(errors="replace"), bytes(info.tag).hex(), tuple(ids))


@dataclass(frozen=True)
class MapInfo:
    """A map as the kernel describes it: struct bpf_map_info. Sizes are in bytes."""

    id: int
    type: int
    name: str
    key_size: int
    value_size: int
    max_entries: int


class Map(_Held):
    """A map in the kernel. Keys and values are bytes, in the machine's order."""

    kind = "map"
    _by_id = "bpf_map_get_fd_by_id"

    @property
    def info(self) -> MapInfo:
        """Asked anew each time. OSError if it cannot be had."""
        info = _info(self.fd, _MapInfo())
        name = info.name.decode(errors="replace")
        return MapInfo(info.id, info.type, name, info.key_size, info.value_size, info.max_entries)

    def lookup(self, key: bytes) -> bytes:
        """ENOENT if it is not there."""
        value = ctypes.create_string_buffer(self.info.value_size)
        _call("BPF map", "bpf_map_lookup_elem", self.fd, key, value)
        return value.raw

    def update(self, key: bytes, value: bytes) -> None:
        """Set the value of a key, which is added if it is new; E2BIG if there is no room or no such index."""
        _call("BPF map", "bpf_map_update_elem", self.fd, key, value, 0)

    def delete(self, key: bytes) -> None:
        """ENOENT if it is not there."""
        _call("BPF map", "bpf_map_delete_elem", self.fd, key)

    def mapped(self) -> mmap.mmap:
        """All values of an array that may be mapped, such as the global variables of a program."""
        info = self.info
        return mmap.mmap(self.fd, info.max_entries * -(-info.value_size // 8) * 8)


def extensions_of(program_id: int) -> Iterator[int]:
    """The ids of the programs that take the place of functions of another one: those in a dispatcher's chain."""
    return (extension for extension, target in _extensions() if target == program_id)


def target_of(program_id: int) -> int | None:
    """The id of the program of which it takes the place of a function; or None, as when its link is gone."""
    return next((target for extension, target in _extensions() if extension == program_id), None)


def _extensions() -> Iterator[tuple[int, int]]:
    """Each with the program that it extends."""
    for number in _link_ids():
        try:
            link = _call(f"BPF link {number}", "bpf_link_get_fd_by_id", number)
        except (FileNotFoundError, BlockingIOError):
            continue  # gone since; or, with EAGAIN, whoever makes it is not done with that
        try:
            info = _info(link, _LinkInfo())
        finally:
            os.close(link)
        if info.type == _LINK_TRACING:
            yield info.program_id, info.target_id


def _link_ids() -> Iterator[int]:
    number = c_uint32(0)
    while True:
        try:
            _call("BPF links", "bpf_link_get_next_id", number, byref(number))
        except FileNotFoundError:
            return
        yield number.value
