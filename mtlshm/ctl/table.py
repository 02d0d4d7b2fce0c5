# SPDX-License-Identifier: BSD-3-Clause
"""Tables of text that suit the width there is. Where there is little room, a column goes rather than a row's meaning.

Rich draws such tables, too. To import it takes longer than all that `status` does, and it needs seconds for a thousand
rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

_COMFORT = 16  # columns of the terminal for a cell that may be cut or folded: for less, other columns go first
_GAP = 2


class Column(NamedTuple):
    """Title and cells. All columns of a table have as many cells."""

    title: str
    cells: list[str]
    rank: int = 0  # where there is no room, the column with the highest rank goes first; 0: it stays
    cut: bool = False  # to its beginning, where there is no room
    fold: bool = False  # at commas, likewise

    @property
    def empty(self) -> bool:
        """Whether all its cells are empty."""
        return all(cell in ("", "-") for cell in self.cells)


class Paper(NamedTuple):
    """Where a table is written: its width and colours."""

    width: int | None = None  # None: as wide as it needs
    colour: bool = False

    def bold(self, text: str) -> str:
        """The text as a title."""
        return f"\033[1m{text}\033[0m" if self.colour else text

    def red(self, text: str) -> str:
        """The text as an error."""
        return f"\033[1;31m{text}\033[0m" if self.colour else text

    def lines(self, text: str) -> Iterator[str]:
        """Folded if need be."""
        return fold(text, self.width) if self.width else iter([text])

    def table(self, columns: list[Column]) -> Iterator[str]:
        """The titles, and a line for each row."""
        title, *rows = draw(columns, self.width)
        yield self.bold(title)
        for row in rows:
            yield self.red(row) if row.endswith(" dead") else row


def draw(columns: list[Column], width: int | None = None) -> list[str]:
    """The title and a line for each row; if it has to fit into `width`, several for cells that are folded."""
    columns = [column for column in columns if column.title or not column.empty]
    widths = _fit(columns, width)
    lines = [_line([column.title for column in columns], widths)]
    for row in zip(*(column.cells for column in columns), strict=True):
        lines += _row(columns, row, widths)
    return lines


def measure(text: str) -> int:
    """How many columns of a terminal a text takes."""
    if text.isascii():
        return len(text)
    return sum(_cells(char) for char in text)


def fold(text: str, width: int) -> Iterator[str]:
    """In pieces of at most that width, where there are commas or spaces enough."""
    piece = ""
    for part in text.replace(",", ",\0").replace(" ", " \0").split("\0"):
        if piece and measure(piece + part.rstrip()) > width:
            yield piece.rstrip()
            piece = ""
        piece += part
    yield piece.rstrip()


def _fit(columns: list[Column], width: int | None) -> list[int]:
    """The width of each column. Removes those for which there is no room."""
    natural = {column.title: max(map(measure, [column.title, *column.cells])) for column in columns}
    if width is None:
        return [natural[column.title] for column in columns]

    def least(column: Column) -> int:
        return min(natural[column.title], _COMFORT) if column.cut or column.fold else natural[column.title]

    def room() -> int:
        return width - 1 - sum(map(least, columns)) - _GAP * (len(columns) - 1)

    while room() < 0 and (optional := [column for column in columns if column.rank]):
        columns.remove(max(optional, key=lambda column: (column.empty, column.rank)))
    widths = [least(column) for column in columns]
    flexible = [n for n, column in enumerate(columns) if column.cut or column.fold]
    for _ in range(-room()) if flexible else ():
        widths[max(flexible, key=lambda n: widths[n])] -= 1
    for _ in range(room()):
        if growing := [n for n in flexible if widths[n] < natural[columns[n].title]]:
            widths[min(growing, key=lambda n: widths[n])] += 1
    return [max(width, 1) for width in widths]


def _row(columns: list[Column], row: tuple[str, ...], widths: list[int]) -> Iterator[str]:
    pieces = []
    for column, cell, width in zip(columns, row, widths, strict=True):
        pieces.append(list(fold(cell, width)) if column.fold else [_cut(cell, width) if column.cut else cell])
    for n in range(max(map(len, pieces))):
        yield _line([piece[n] if n < len(piece) else "" for piece in pieces], widths)


def _line(cells: list[str], widths: list[int]) -> str:
    padded = (cell + " " * (width - measure(cell)) for cell, width in zip(cells, widths, strict=True))
    return " " + (" " * _GAP).join(padded).rstrip()


def _cut(text: str, width: int) -> str:
    if measure(text) <= width:
        return text
    kept = 0
    for n, char in enumerate(text):
        kept += _cells(char)
        if kept > width - 3:
            return text[:n] + "..."
    return text


def _cells(char: str) -> int:
    """The width of one character: 0 if it combines with the previous one, 2 if it is wide."""
    import unicodedata  # most texts have no such letters

    if unicodedata.combining(char):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1
