# SPDX-License-Identifier: BSD-3-Clause
"""Sets of CPU numbers, in the notation of the kernel and of DPDK: 0-3,8."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any

from mtlshm._core import ffi, lib

_WORD = 64


class CpuSet(frozenset[int]):
    """An immutable set of CPU numbers; str() gives `0-3,8`, which libmtl and DPDK take as a core list."""

    @classmethod
    def parse(cls, text: str) -> CpuSet:
        """Read `0-3,8`; the empty string is the empty set. ValueError says which part is wrong."""
        cpus: set[int] = set()
        for part in text.strip().split(",") if text.strip() else ():
            first, dash, last = part.strip().partition("-")
            if not (first.isdecimal() and (last.isdecimal() or not dash)):
                raise ValueError(f"{part!r} is neither a CPU number nor a range such as 0-3")
            low, high = int(first), int(last or first)
            if high < low:
                raise ValueError(f"the range {part!r} runs backwards")
            if high >= lib.MTLSHM_LCORES:
                raise ValueError(f"{part!r} is out of range: CPU numbers end at {lib.MTLSHM_LCORES - 1}")
            cpus.update(range(low, high + 1))
        return cls(cpus)

    @classmethod
    def from_c(cls, cpuset: Any) -> CpuSet:
        """From a `struct mtlshm_cpuset`."""
        return cls(
            base * _WORD + bit
            for base, word in enumerate(cpuset.bits)
            if word
            for bit in range(_WORD)
            if word >> bit & 1
        )

    def to_c(self) -> Any:
        """A new `struct mtlshm_cpuset *`; ValueError for a number that cannot be in it."""
        cpuset = ffi.new("struct mtlshm_cpuset *")
        for cpu in self:
            if not 0 <= cpu < len(cpuset.bits) * _WORD:
                raise ValueError(f"CPU {cpu} is out of range: the table is built for {len(cpuset.bits) * _WORD}")
            cpuset.bits[cpu // _WORD] |= 1 << cpu % _WORD
        return cpuset

    def ranges(self) -> Iterator[tuple[int, int]]:
        """The set as (first, last) pairs, ascending."""
        for _, run in groupby(enumerate(sorted(self)), lambda pair: pair[1] - pair[0]):
            cpus = [cpu for _, cpu in run]
            yield cpus[0], cpus[-1]

    def __or__(self, other: Iterable[int]) -> CpuSet:  # type: ignore[override]
        return CpuSet(super().__or__(frozenset(other)))

    def __and__(self, other: Iterable[int]) -> CpuSet:  # type: ignore[override]
        return CpuSet(super().__and__(frozenset(other)))

    def __sub__(self, other: Iterable[int]) -> CpuSet:  # type: ignore[override]
        return CpuSet(super().__sub__(frozenset(other)))

    def __str__(self) -> str:
        return ",".join(f"{first}-{last}" if last > first else f"{first}" for first, last in self.ranges())

    def __repr__(self) -> str:
        return f"CpuSet.parse({str(self)!r})"


def counted(count: int) -> str:
    """So many lcores, in words."""
    return "1 lcore" if count == 1 else f"{count} lcores"
