# SPDX-License-Identifier: BSD-3-Clause
"""The source tree: imports run one way, and a module is short enough to be read at once."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MOST_LINES = 450
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in (ROOT / "mtlshm").rglob("*.py")
}
PRODUCT = [
    path
    for folder, kinds in {"mtlshm": ("py",), "cffi_build": ("c", "py"), "bpf": ("c", "h")}.items()
    for kind in kinds
    for path in sorted((ROOT / folder).rglob(f"*.{kind}"))
    if path.name != "mtlshm._core.c"  # cffi made it
]


def imported(path: Path) -> set[str]:
    """The modules of mtlshm that one imports by name, for type checkers only and within functions included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in names}
    return found & MODULES.keys()


def test_imports_make_no_circle() -> None:
    # Raises CycleError, which names one.
    tuple(TopologicalSorter({name: imported(path) for name, path in MODULES.items()}).static_order())


def test_imports_are_absolute() -> None:
    """Or imported() would not see them."""
    nodes = ((name, node) for name, path in MODULES.items() for node in ast.walk(ast.parse(path.read_text())))
    assert not [name for name, node in nodes if isinstance(node, ast.ImportFrom) and node.level]


def test_the_library_knows_neither_daemon_nor_command_line() -> None:
    above = ("mtlshm.daemon", "mtlshm.ctl", "mtlshm.dra")
    users = {name: imported(path) for name, path in MODULES.items() if not name.startswith(above)}
    assert not {name for name, modules in users.items() if any(module.startswith(above) for module in modules)}


def test_nobody_else_needs_the_driver_for_kubernetes() -> None:
    users = {name for name, path in MODULES.items() if any(each.startswith("mtlshm.dra") for each in imported(path))}
    assert all(name.startswith("mtlshm.dra") for name in users), users


@pytest.mark.parametrize("path", PRODUCT, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_is_read_at_once(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MOST_LINES
