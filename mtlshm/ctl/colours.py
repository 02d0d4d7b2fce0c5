# SPDX-License-Identifier: BSD-3-Clause
"""A colour for each owner, the same in pictures and on terminals."""

from __future__ import annotations

import colorsys
from collections.abc import Iterable

from mtlshm import InstanceInfo, Kind

FREE, LENT = "#ffffff", "#c8c8c8"


def colours(owners: Iterable[InstanceInfo]) -> dict[int, str]:
    """By owner; of those that hold something."""
    holders = [info for info in owners if info.lcores]
    return {info.owner: LENT if info.kind == Kind.POOL else _colour(n) for n, info in enumerate(holders)}


def _colour(n: int) -> str:
    """One that is light enough for black letters, and far from those before it."""
    red, green, blue = colorsys.hls_to_rgb(n * 0.381966 % 1, 0.74 - n % 3 * 0.06, 0.7)
    return f"#{round(red * 255):02x}{round(green * 255):02x}{round(blue * 255):02x}"
