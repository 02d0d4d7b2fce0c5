# SPDX-License-Identifier: BSD-3-Clause
"""BPF programs loaded from a file by libbpf and attached nowhere, to be looked at and run on packets.

The product loads by xdp-loader only, so this is not part of it.
"""

from __future__ import annotations

import ctypes
import errno
import os
from ctypes import byref, c_char_p, c_int, c_size_t, c_uint32, c_void_p
from functools import cache
from pathlib import Path
from typing import Self

from mtlshm.net import bpf


class _TestRun(ctypes.Structure):
    _fields_ = (
        ("size", c_size_t),
        ("data_in", c_char_p),
        ("data_out", c_void_p),
        ("data_size_in", c_uint32),
        ("data_size_out", c_uint32),
        ("ctx_in", c_void_p),
        ("ctx_out", c_void_p),
        ("ctx_size_in", c_uint32),
        ("ctx_size_out", c_uint32),
        ("retval", c_uint32),
        ("repeat", c_int),
        ("duration", c_uint32),
        ("flags", c_uint32),
        ("cpu", c_uint32),
        ("batch_size", c_uint32),
    )


@cache
def _libbpf() -> ctypes.CDLL:
    library = ctypes.CDLL("libbpf.so.1", use_errno=True)
    library.libbpf_set_print(None)
    library.bpf_object__open_file.argtypes = (c_char_p, c_void_p)
    library.bpf_object__open_file.restype = c_void_p
    for kind in "program", "map":
        find = getattr(library, f"bpf_object__find_{kind}_by_name")
        find.argtypes, find.restype = (c_void_p, c_char_p), c_void_p
    for name in "bpf_object__load", "bpf_object__close", "bpf_program__fd", "bpf_map__fd":
        getattr(library, name).argtypes = (c_void_p,)
    return library


class Object:
    """The programs and maps of an ELF file, in the kernel until this is closed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._object = _libbpf().bpf_object__open_file(os.fsencode(path), None)
        if not self._object:
            raise OSError(ctypes.get_errno(), f"{path}: libbpf cannot read it")
        if (result := _libbpf().bpf_object__load(self._object)) < 0:
            self.close()
            raise OSError(-result, f"{path}: the kernel does not load it")

    def program(self, name: str) -> bpf.Program:
        return bpf.Program(self._find(name, "program"))

    def map(self, name: str) -> bpf.Map:
        return bpf.Map(self._find(name, "map"))

    def _find(self, name: str, kind: str) -> int:
        found = getattr(_libbpf(), f"bpf_object__find_{kind}_by_name")(self._object, name.encode())
        if not found:
            raise OSError(errno.ENOENT, f"{self._path}: has no {kind} {name}")
        return os.dup(getattr(_libbpf(), f"bpf_{kind}__fd")(found))

    def close(self) -> None:
        _libbpf().bpf_object__close(self._object)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def run_on(program: bpf.Program, packet: bytes, repeat: int = 1) -> tuple[int, int]:
    """Run it on a packet, BPF_PROG_TEST_RUN: its answer, and the mean time in ns."""
    run = _TestRun(size=ctypes.sizeof(_TestRun), data_in=packet, data_size_in=len(packet), repeat=repeat)
    if (result := _libbpf().bpf_prog_test_run_opts(program.fd, byref(run))) < 0:
        raise OSError(-result, f"BPF_PROG_TEST_RUN: {os.strerror(-result)}")
    return run.retval, run.duration
