# SPDX-License-Identifier: BSD-3-Clause
"""The core's modules are in layers: each uses those below it, in what it includes and in what it calls."""

from __future__ import annotations

import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

CORE = Path(__file__).parents[2] / "cffi_build"
FILES = [path for path in sorted(CORE.glob("*.[ch]")) if not path.name.startswith("mtlshm._core")]
INCLUDED = re.compile(r'^#include "(\w+)\.h"', re.MULTILINE)
COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
DEFINED = re.compile(r"^[\w ]+[ *](mtlshm_\w+)\([^;{]*\)\n\{", re.MULTILINE)

Graph = dict[str, set[str]]


def includes(files: list[Path]) -> Graph:
    """x.c and x.h are one module."""
    graph: Graph = {path.stem: set() for path in files}
    for path in files:
        graph[path.stem] |= set(INCLUDED.findall(path.read_text()))
    return {module: used - {module} for module, used in graph.items()}


def calls(files: list[Path]) -> Graph:
    """Includes, and who calls a public function, which mtlshm.h declares whatever module it is in."""
    texts = {path.stem: COMMENT.sub("", path.read_text()) for path in files if path.suffix == ".c"}
    home = {function: module for module, text in texts.items() for function in DEFINED.findall(text)}
    graph = includes(files)
    for module, text in texts.items():
        called = {home[function] for function in re.findall(r"\b(mtlshm_\w+)\(", text) if function in home}
        graph[module] |= called - {module}
    return graph


@pytest.mark.parametrize("graph", [includes(FILES), calls(FILES)], ids=["includes", "calls"])
def test_the_modules_of_the_core_are_in_layers(graph: Graph) -> None:
    TopologicalSorter(graph).prepare()  # or it names the circle


def test_every_public_function_has_a_home() -> None:
    header = (CORE / "mtlshm.h").read_text()
    declared = set(re.findall(r"^(?:const )?\w+ \*?(mtlshm_\w+)\(", header, re.MULTILINE))
    assert {function for path in FILES for function in DEFINED.findall(path.read_text())} == declared


def test_a_circle_is_found(tmp_path: Path) -> None:
    for name, text in {
        "low.h": "",
        "low.c": '#include "low.h"\n#include "mtlshm.h"\nint mtlshm_low(void)\n{\n\treturn mtlshm_high();\n}\n',
        "high.c": '#include "low.h"\nint mtlshm_high(void)\n{\n\treturn 0;\n}\n',
        "mtlshm.h": "",
    }.items():
        (tmp_path / name).write_text(text)
    files = sorted(tmp_path.iterdir())
    TopologicalSorter(includes(files)).prepare()
    with pytest.raises(CycleError):
        TopologicalSorter(calls(files)).prepare()
