# SPDX-License-Identifier: BSD-3-Clause
"""tools/model finds nothing wrong with the models of the protocol, and something with their mutants."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from proof.models import SEARCHES

ROOT = Path(__file__).parents[2]

MODELS = ROOT / "cffi_build/model"


def model(*arguments: str) -> str:
    """The last line."""
    command = [str(ROOT / "tools/model"), *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    return done.stdout.splitlines()[-1]


@pytest.mark.slow
def test_no_interleaving_and_no_death_breaks_the_protocol() -> None:
    assert model().startswith(f"model: PASSED: {len(SEARCHES)} models, ")


@pytest.mark.slow
@pytest.mark.parametrize("mutant", ["segment-buries-what-is-not-retired", "semaphore-forgets-who-waits"])
def test_it_finds_a_mutant(mutant: str) -> None:
    assert model("--self-test", mutant).startswith("model: PASSED: 1 of 1 mutants found")


def test_every_model_is_searched() -> None:
    assert {path.stem for path in MODELS.iterdir()} == set(SEARCHES)
