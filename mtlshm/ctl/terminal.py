# SPDX-License-Identifier: BSD-3-Clause
"""Tables, and where they go."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

from mtlshm.ctl.table import Paper

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_WIDE = 10_000  # columns where there is no terminal: a row is a line, for grep
_DUMB = {"", "dumb", "unknown"}  # terminals, by $TERM, that move no cursor and know no colour


def console() -> Console:
    """Standard output, without colouring of what only looks like a number or path.

    What it can show depends on what it is, not on what the environment says of terminals in general: FORCE_COLOR and
    COLUMNS, say, come from somewhere else (a CI runner, a parent shell).
    """
    from rich.console import Console

    plain = not can_redraw() or bool(os.environ.get("NO_COLOR"))
    return Console(
        highlight=False,
        width=_width(),
        force_terminal=can_redraw(),
        color_system=None if plain else "auto",
        _environ={name: os.environ[name] for name in ("TERM", "COLORTERM") if name in os.environ},
    )


def _width() -> int | None:
    """None for Rich to ask the terminal again whenever it draws; of a dumb one it does not ask."""
    if not _is_terminal():
        return _WIDE
    return None if can_redraw() else _columns()


def can_redraw() -> bool:
    """Whether standard output is a terminal with a movable cursor."""
    return _is_terminal() and os.environ.get("TERM", "") not in _DUMB


def _is_terminal() -> bool:
    return sys.stdout is not None and sys.stdout.isatty()


def replace_what_it_cannot_show() -> None:
    """A label may have letters that standard output has no code for: that costs a glyph, not the whole table."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def paper() -> Paper:
    """Standard output, for what draws itself."""
    return Paper(_columns() if _is_terminal() else None, can_redraw() and not os.environ.get("NO_COLOR"))


def _columns() -> int | None:
    """The width of the terminal; None if unknown."""
    return os.get_terminal_size(sys.stdout.fileno()).columns or None


def show_lines(lines: Iterable[str]) -> None:
    """Print them."""
    print(*lines, sep="\n", flush=True)


def new_table(*columns: str) -> Table:
    """An empty one."""
    from rich.table import Table

    return Table(*columns, box=None, header_style="bold")


def add_row(table: Table, *cells: object) -> None:
    """Adds a row of texts, numbers, booleans and unknown values."""
    from rich.text import Text

    # Not markup, whatever somebody calls himself.
    table.add_row(*(Text(text(cell)) for cell in cells))


def text(cell: object) -> str:
    """A cell as text: from a text, a number, a boolean or None for unknown."""
    return {None: "-", True: "yes", False: "no"}[cell] if cell is None or isinstance(cell, bool) else str(cell)


def show(table: Table, nothing: str, remarks: Iterable[str] = ()) -> None:
    """Print it, or what is to be said if it is empty; and then what there is to remark."""
    from rich.text import Text

    screen = console()
    screen.print(table if table.row_count else nothing)
    for remark in remarks:
        screen.print(Text(remark))
