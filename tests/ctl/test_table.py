# SPDX-License-Identifier: BSD-3-Clause
"""A table suits its width, whatever is in it."""

from __future__ import annotations

import pytest

from mtlshm.ctl.table import Column, draw, fold, measure

LCORES = ["0-3,8,10,12,14,16,18,20,22,24,26,28,30,32", "4", "-"]
NAMES = ["a label which is rather long", "カメラ" * 8, "e\N{COMBINING ACUTE ACCENT}ncoder"]


def columns() -> list[Column]:
    return [
        Column("lcores", list(LCORES), fold=True),
        Column("owner", list(NAMES), cut=True),
        Column("pid", ["1", "23456", "-"], rank=1),
        Column("user", ["root"] * 3, rank=2),
        Column("container", ["-"] * 3, rank=1),
        Column("", ["", "dead", ""]),
    ]


def test_with_room_enough_a_row_is_a_line_and_nothing_is_cut() -> None:
    title, *rows = draw(columns())
    assert title.split() == ["lcores", "owner", "pid", "user", "container"]
    assert [row.split()[0] for row in rows] == LCORES
    assert all(name in row for name, row in zip(NAMES, rows, strict=True))
    assert {measure(row[: row.index("root")]) for row in rows} == {title.index("user")}


@pytest.mark.parametrize("width", range(1, 120))
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    lines = draw(columns(), width)
    assert width < 30 or max(map(measure, lines)) <= width
    shown = "".join(line.split()[0] for line in lines if "," in line or line.startswith(" 32"))
    assert width < 30 or shown.startswith(LCORES[0])  # lcores are folded, and never cut


def test_what_says_least_goes_first() -> None:
    titles = [draw(columns(), width)[0].split() for width in range(100, 30, -1)]
    gone = []
    for here in titles:
        gone += [title for title in titles[0] if title not in here and title not in gone]
    assert gone == ["container", "user", "pid"]


def test_text_is_folded_at_commas_and_spaces() -> None:
    assert list(fold("0,2,4,6", 4)) == ["0,2,", "4,6"]
    assert list(fold("2 lcores: 1 held", 10)) == ["2 lcores:", "1 held"]
    assert list(fold("", 4)) == [""]
    assert list(fold("indivisible", 4)) == ["indivisible"]
