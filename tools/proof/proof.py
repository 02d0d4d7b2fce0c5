# SPDX-License-Identifier: BSD-3-Clause
"""What the tools that prove share: programs built with the core, bugs planted in it or not, and the verdict."""

from __future__ import annotations

import argparse
import json
import subprocess
from collections.abc import Collection
from pathlib import Path
from typing import Any

from proof.plants import Plant, planted

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent

FLAGS = ["-std=c11", "-D_GNU_SOURCE", "-O2", "-g", "-pthread", "-Wall", "-Wextra"]


def build(program: Path, folder: Path, plant: Plant | None, *flags: str) -> Path:
    """Compile a program of ours, whose sources are in the folder, with the core's. `program`.src is made for these."""
    core = planted(ROOT / "cffi_build", plant, program.with_suffix(".src"))
    sources = [*sorted(folder.glob("*.c")), *(core / name for name in (core / "sources.txt").read_text().split())]
    # A bug may leave a function without use.
    strict = ["-Wno-unused"] if plant else ["-Werror"]
    command = ["cc", *FLAGS, *strict, *flags, "-I", core, "-o", program, *sources]
    subprocess.run(list(map(str, command)), check=True)
    return program


def arguments(description: str | None, name: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"tools/{name}", description=description)
    parser.add_argument("--directory", type=Path, required=True, help=argparse.SUPPRESS)  # from tools/enclosed
    parser.add_argument("--seed", type=int, default=1, help="of what is random; a failure names it (1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--self-test", action="store_true", help="plant bugs in copies of the core, and find them")
    return parser


def check_names(parser: argparse.ArgumentParser, wanted: list[str], known: Collection[str]) -> list[str]:
    if unknown := set(wanted) - set(known):
        parser.error(f"not known: {' '.join(sorted(unknown))} (there are: {' '.join(known)})")
    return wanted or list(known)


def verdict(name: str, passed: bool, sentence: str, figures: dict[str, Any], file: Path | None) -> int:
    """The last line, and the exit status."""
    if file:
        file.write_text(json.dumps({"tool": name, "passed": passed, **figures}, indent=2) + "\n")
    print(f"{name}: {'PASSED' if passed else 'FAILED'}: {sentence}", flush=True)
    return int(not passed)
