# SPDX-License-Identifier: BSD-3-Clause
"""The observer's record, witness.h, as Python sees it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from cffi import FFI

from proof.proof import HERE

_HEADER = re.sub(r"^#.*$|_Noreturn ", "", (HERE / "witness.h").read_text(), flags=re.MULTILINE)

_ffi = FFI()
_ffi.cdef(_HEADER)
_constants: Any = _ffi.dlopen(None)

_NAMES = _ffi.typeof("enum witness_kind").elements
KINDS = tuple(_NAMES[kind].removeprefix("WITNESS_").lower() for kind in range(_constants.WITNESS_KINDS))


class Witness:
    """The record in `file`, which is made if it is missing; `library` is witness.c, compiled."""

    def __init__(self, library: Path, file: Path) -> None:
        self._lib: Any = _ffi.dlopen(str(library))
        if not file.exists():
            file.write_bytes(bytes(_ffi.sizeof("struct witness")))
        self.record: Any = self._lib.witness_open(str(file).encode())
        if not self.record:
            raise OSError(f"{file} cannot be mapped")

    def vacate(self, slot: int) -> None:
        self._lib.witness_vacate(slot)

    def condemn(self, slot: int) -> None:
        self._lib.witness_condemn(slot)

    def report(self, line: str) -> None:
        self._lib.witness_report(line.encode())

    def count(self, counter: str, kind: int) -> None:
        self._lib.witness_count(getattr(self.record, counter) + kind)

    def figures(self) -> dict[str, Any]:
        """Everything that is counted."""
        by_kind = {
            name: dict(zip(KINDS, list(getattr(self.record, name)), strict=True))
            for name in ("granted", "killed", "ended", "stopped")
        }
        return by_kind | {
            name: getattr(self.record, name)
            for name in ("forked", "executed", "inherited", "lendings", "returns", "orphaned", "semaphores")
        }

    def wrongs(self) -> list[str]:
        """What was wrong; the first few of it."""
        lines = list(self.record.wrong)[: self.record.wrongs]
        return [_ffi.string(line).decode(errors="replace") for line in lines]
