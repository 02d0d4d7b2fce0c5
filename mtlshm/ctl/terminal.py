# SPDX-License-Identifier: BSD-3-Clause
"""Where tables go."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

_WIDE = 250  # columns where there is no terminal whose width could be asked: cut nothing off for grep


def console() -> Console:
    """Standard output, without colouring of what only looks like a number or path."""
    from rich.console import Console

    result = Console(highlight=False)
    return result if result.is_terminal else Console(highlight=False, width=_WIDE)
