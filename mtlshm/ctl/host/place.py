# SPDX-License-Identifier: BSD-3-Clause
"""Where checks look."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mtlshm import CpuSet


@dataclass(frozen=True)
class Place:
    """A host. `root` is where its /proc, /sys, /run and /etc are."""

    segment: str
    socket: str | None  # None: none is served, by the settings
    socket_group: str
    state: Path
    pins: Path
    root: Path = Path("/")

    def read(self, path: str) -> str | None:
        """A file of the kernel's or the system's; None if it is not there."""
        try:
            return (self.root / path).read_text(errors="replace").strip()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def cpus(self, path: str) -> CpuSet | None:
        """The same, of a list of CPUs; one that says something else is empty, as the kernel's `(null)`."""
        text = self.read(path)
        if text is None:
            return None
        try:
            return CpuSet.parse(text)
        except ValueError:
            return CpuSet()
