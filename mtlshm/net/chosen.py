# SPDX-License-Identifier: BSD-3-Clause
"""Which location a driver chose for a rule of ours. This survives our death right after the insertion.

Some drivers choose the location of a rule themselves. Then the ledger cannot have the location before the rule is
inserted, and an administrator's rule may look the same. But ethtool prints the location. Its output goes to a file,
which it writes whether we live or not. The file begins with the locations that were in use before. So the next daemon
can read which rule is ours. If ethtool was killed too, between the insertion and its output, the rule counts as
somebody else's: we only delete rules that are known to be ours.

The files are in the state directory, one for each flow of the ledger without a known location.
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
