# SPDX-License-Identifier: BSD-3-Clause
"""Tables, and where they go."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_WIDE = 250  # columns where there is no terminal whose width could be asked: cut nothing off for grep


def console() -> Console:
    """Standard output, without colouring of what only looks like a number or path."""
    from rich.console import Console

    result = Console(highlight=False)
    return result if result.is_terminal else Console(highlight=False, width=_WIDE)


def new_table(*columns: str) -> Table:
    """An empty one."""
    from rich.table import Table

    return Table(*columns, box=None, header_style="bold")


def add_row(table: Table, *cells: object) -> None:
    """Of texts, numbers, yes and no, and what is not known."""
    from rich.text import Text

    words = {None: "-", True: "yes", False: "no"}
    # Not markup, whatever somebody calls himself.
    table.add_row(*(Text(words[cell] if cell is None or isinstance(cell, bool) else str(cell)) for cell in cells))


def show(table: Table, nothing: str, remarks: Iterable[str] = ()) -> None:
    """Print it, or what is to be said if it is empty; and then what there is to remark."""
    from rich.text import Text

    screen = console()
    screen.print(table if table.row_count else nothing)
    for remark in remarks:
        screen.print(Text(remark))
