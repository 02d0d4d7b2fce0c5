# SPDX-License-Identifier: BSD-3-Clause
"""Where a driver has put a rule of ours, if it chose the place itself: known even if we are killed before we note it.

Such a rule cannot be entered in the ledger with its place before it is inserted, and an administrator may have one
that reads the same. But ethtool prints the place. So what it prints goes to a file, which it writes whether we live or
not; and below a line with the places that were taken before. Whoever comes next finds there which rule is ours. What
ethtool did not say (it was killed as well, in the moment between insertion and word) is nobody's for us: a rule is
deleted only if it is known to be ours.

The files are in the state directory, one for each flow of the ledger whose place is not known.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PREFIX = "chosen-"
_TAKEN = "taken before: "
_TOLD = re.compile(r"^Added rule with ID ([0-9]{1,10})$", re.MULTILINE)


def told(output: str) -> int | None:
    """The place that ethtool names in what it printed, if it was not taken before."""
    match = _TOLD.search(output)
    return int(match[1]) if match and int(match[1]) not in taken(output) else None


def taken(output: str) -> set[int]:
    """The places of which the first line says so."""
    first, _, _ = output.partition("\n")
    return {int(word) for word in first.removeprefix(_TAKEN).split() if word.isdecimal()}


class Chosen:
    """The files in a directory. A flow has the number that it was entered with in the ledger."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    @contextmanager
    def file(self, ifindex: int, flow: int, before: Iterable[int]) -> Iterator[int]:
        """A descriptor, for ethtool to print to. The file stays until forget()."""
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(self._path(ifindex, flow), flags, 0o600)
        try:
            os.write(descriptor, f"{_TAKEN}{' '.join(map(str, before))}\n".encode())
            yield descriptor
        finally:
            os.close(descriptor)

    def read(self, ifindex: int, flow: int) -> str:
        """The content of the flow's file; '' if there is none."""
        with suppress(OSError):
            return self._path(ifindex, flow).read_text(errors="replace")
        return ""

    def forget(self, ifindex: int, flow: int) -> None:
        """It is known to the ledger, or was withdrawn."""
        self._path(ifindex, flow).unlink(missing_ok=True)

    def forget_all_but(self, flows: Iterable[tuple[int, int]]) -> None:
        """Removes the files of flows that no longer exist: their daemon was killed before forget()."""
        wanted = {self._path(*flow) for flow in flows}
        for path in self._directory.glob(f"{_PREFIX}*"):
            if path not in wanted:
                path.unlink(missing_ok=True)

    def _path(self, ifindex: int, flow: int) -> Path:
        return self._directory / f"{_PREFIX}{ifindex}-{flow}"
