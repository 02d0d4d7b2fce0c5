# SPDX-License-Identifier: BSD-3-Clause
"""CpuSet: sets of CPU numbers in the notation of the kernel and of DPDK."""

from __future__ import annotations

import pytest

from mtlshm import CpuSet


@pytest.mark.parametrize(
    ("text", "cpus"),
    [("", []), ("0", [0]), ("0-3,8", [0, 1, 2, 3, 8]), ("5-5", [5]), (" 1 , 3 ", [1, 3]), ("3,1-2", [1, 2, 3])],
)
def test_lists_of_cpus_are_read(text: str, cpus: list[int]) -> None:
    assert sorted(CpuSet.parse(text)) == cpus


@pytest.mark.parametrize("text", [",", "1,", "a", "-1", "1-", "-", "3-1", "1--2", "0x1", "1.5", "²"])
def test_malformed_list_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"CPU number|backwards"):
        CpuSet.parse(text)


@pytest.mark.parametrize("text", ["", "0", "0-3,8", "0,2,4-5", "1023"])
def test_text_and_c_give_the_same_set_back(text: str) -> None:
    cpus = CpuSet.parse(text)
    assert str(cpus) == text
    assert CpuSet.from_c(cpus.to_c()) == cpus
    assert eval(repr(cpus)) == cpus


def test_set_arithmetic_gives_such_sets() -> None:
    some = CpuSet.parse("0-3")
    assert str(some | [8]) == "0-3,8"
    assert str(some & {1, 2, 9}) == "1-2"
    assert str(some - CpuSet({0})) == "1-3"


@pytest.mark.parametrize("cpu", [-1, 1024])
def test_a_cpu_that_the_table_has_no_place_for_is_refused(cpu: int) -> None:
    with pytest.raises(ValueError, match=str(cpu)):
        CpuSet({cpu}).to_c()
