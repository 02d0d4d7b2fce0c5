# SPDX-License-Identifier: BSD-3-Clause
"""Damage done to a segment on purpose."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from mtlshm._core import ffi, lib

SIZE = ffi.sizeof("struct mtlshm_segment")


def poke(segment: str, *path: str | int, value: int | bytes) -> None:
    """Overwrite a field, as any process may that may write the file: poke(segment, "lcores", 3, "owner", value=1)."""
    kind = ffi.typeof("struct mtlshm_segment")
    for step in path:
        kind = dict(kind.fields)[step].type if isinstance(step, str) else kind.item
    data = value.to_bytes(ffi.sizeof(kind), "little") if isinstance(value, int) else value
    fd = os.open(segment, os.O_WRONLY)
    try:
        os.pwrite(fd, data, ffi.offsetof("struct mtlshm_segment", *path))
    finally:
        os.close(fd)


def peek(segment: str) -> Any:
    """The segment as it is in the file: a struct mtlshm_segment."""
    content = Path(segment).read_bytes()
    table = ffi.new("struct mtlshm_segment *")
    ffi.memmove(table, content, min(SIZE, len(content)))
    return table


def token(index: int, generation: int, kind: int = 3) -> int:
    return int(generation << (lib.MTLSHM_TYPE_BITS + lib.MTLSHM_INDEX_BITS) | index << lib.MTLSHM_TYPE_BITS | kind)


def on_disk(directory: Path) -> str:
    """The path for a segment that would outlive a boot."""
    command = ["stat", "-f", "-c", "%T", str(directory)]
    kind = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    if kind in ("tmpfs", "ramfs"):
        pytest.skip(f"{directory} is on a {kind}; not tested: a segment that outlived a boot")
    return str(directory / "segment")
