# SPDX-License-Identifier: BSD-3-Clause
"""A planted bug is one change in one file, or an error: what was not planted cannot be found."""

from __future__ import annotations

from pathlib import Path

import pytest

from proof.models import MUTANTS
from proof.plants import CORE, FUZZ_SEGMENT, FUZZ_SELECTOR, FUZZ_SOCKET, FUZZ_TEXT, PROCESSES, Plant, planted

ROOT = Path(__file__).parents[2]

SOURCES = {
    "cffi_build": CORE | PROCESSES | FUZZ_SEGMENT | FUZZ_SELECTOR,
    "cffi_build/model": MUTANTS,
    "mtlshm": FUZZ_SOCKET | FUZZ_TEXT,
}


@pytest.mark.parametrize(
    ("source", "plant"),
    [pytest.param(source, plant, id=bug) for source, plants in SOURCES.items() for bug, plant in plants.items()],
)
def test_every_bug_can_still_be_planted(source: str, plant: Plant, tmp_path: Path) -> None:
    copy = planted(ROOT / source, plant, tmp_path / "copy")
    # Not what Python compiles, meanwhile perhaps.
    files = {str(path.relative_to(copy)) for path in copy.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    changed = {file for file in files if (copy / file).read_bytes() != (ROOT / source / file).read_bytes()}
    assert changed == {plant.file}


def test_a_bug_that_does_not_fit_any_more_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "claim_many.c").write_text("something else\n")
    with pytest.raises(SystemExit, match=r"0 times in claim_many\.c, not once"):
        CORE["takes-half"].into(tmp_path)
