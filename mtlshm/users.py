# SPDX-License-Identifier: BSD-3-Clause
"""The processes that have a segment in their memory, as far as /proc shows them: for messages to people."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mtlshm.containers import container
from mtlshm.snapshot import printable
from mtlshm.strangers import Unfinished, memory_map


@dataclass(frozen=True, slots=True)
class User:
    """A process that has a segment of that name in its memory."""

    pid: int
    comm: str
    inode: int
    removed: bool  # it has no name any more
    container: str = ""  # the first 12 digits of its id, or its name; empty: none is known

    def __str__(self) -> str:
        where = f", container {self.container}" if self.container else ""
        return f"{self.comm} (pid {self.pid}{where})"


def users(path: str) -> Iterator[User]:
    """Those that use it or one that was there before, as far as we may see."""
    # From the start of the line: there can be any bytes, and such numbers, in the names of other files.
    name = re.escape(os.fsencode(path))
    pattern = re.compile(rb"^\S+ \S+ \S+ \S+ (\d+) +" + name + rb"( \(deleted\))?$", re.MULTILINE)
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with suppress(OSError, Unfinished):  # gone, not ours to see, or as long as a stranger likes
                pieces = memory_map(int(entry.name))
                found = {(int(n), bool(gone)) for maps in pieces for n, gone in pattern.findall(maps)}
                for inode, removed in sorted(found):
                    comm = printable((entry / "comm").read_text(errors="replace").strip())
                    yield User(int(entry.name), comm, inode, removed, container(int(entry.name)))
