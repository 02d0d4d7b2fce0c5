# SPDX-License-Identifier: BSD-3-Clause
"""The host's CPUs and their owners as an SVG picture, for a wall."""

from __future__ import annotations

import math
import os
import stat
import tempfile
from contextlib import suppress
from typing import NamedTuple
from xml.etree import ElementTree

from mtlshm import Lcore, Topology
from mtlshm.ctl import wording
from mtlshm.ctl.colours import FREE, LENT, colours
from mtlshm.ctl.layout import Part, layout
from mtlshm.ctl.look import Look, purpose_and_lease
from mtlshm.ctl.table import measure

_CELL = 88, 52  # of a hardware thread
_GAP, _TITLE, _ROW = 8, 22, 26
_LETTERS = 12  # of an owner's name in a cell
_FILL = {"socket": "#dfe5ec", "NUMA node": "#e8edf2", "cache": "#f1f4f7", "core": "#fafbfc"}


class _Box(NamedTuple):
    part: Part
    width: int
    height: int
    inside: list[tuple[int, int, _Box]]  # with their places in it


class Picture:
    """A picture of a host. `look` has the owners, if there is a segment."""

    def __init__(self, topology: Topology, look: Look | None, title: str) -> None:
        self._held = {lcore.number: lcore for lcore in look.snapshot.lcores} if look else {}
        owners = [info for info in look.shown if info.lcores] if look else []
        self._colours = colours(owners)
        plan = _plan(layout(topology))
        legend = [(self._colours[info.owner], f"{info.lcores}: {wording.name(info)}") for info in owners]
        legend.append((FREE, "free" if look else "no segment: owners are not known"))
        width = max(plan.width, 640) + 2 * _GAP
        height = 2 * _ROW + plan.height + _ROW * (len(legend) + 1)
        self._svg = ElementTree.Element(
            "svg", xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {width} {height}", style="font-family: sans-serif"
        )
        _rect(self._svg, 0, 0, width, height, "#ffffff", "none")
        _text(self._svg, _GAP, _ROW, title, 20, bold=True)
        self._draw(plan, _GAP, _ROW + _GAP)
        for n, (colour, text) in enumerate(legend):
            y = _ROW + 2 * _GAP + plan.height + n * _ROW
            _rect(self._svg, _GAP, y, 32, _ROW - 6, colour)
            _text(self._svg, _GAP + 42, y + 16, text, 15)

    def write(self, path: str) -> None:
        """All of it or nothing. OSError names the path."""
        try:
            _replace(path, ElementTree.tostring(self._svg, encoding="unicode") + "\n")
        except OSError as error:
            error.filename, error.filename2 = path, None
            raise

    def _draw(self, box: _Box, x: int, y: int) -> None:
        part = box.part
        if part.cpu:
            self._draw_thread(part.number, part.cpu.isolated, x, y)
        elif part.level != "host":
            _rect(self._svg, x, y, box.width, box.height, _FILL[part.level])
            if part.level != "core":
                _text(self._svg, x + _GAP, y + 16, part.name, 14, bold=part.level == "socket")
        for dx, dy, inner in box.inside:
            self._draw(inner, x + dx, y + dy)

    def _draw_thread(self, number: int, isolated: bool, x: int, y: int) -> None:
        lcore = self._held.get(number)
        group = ElementTree.SubElement(self._svg, "g", {"class": "thread", "data-cpu": str(number)})
        colour = self._colours.get(lcore.owner.owner, LENT) if lcore else FREE
        frame = _rect(group, x, y, *_CELL, colour, "#333333")
        if isolated:
            frame.set("stroke-dasharray", "4 2")
        ElementTree.SubElement(group, "title").text = _said(number, lcore) + " (isolated)" * isolated
        _text(group, x + 6, y + 22, str(number), 18, bold=True)
        if lcore:
            _text(group, x + 6, y + 42, _cut(lcore.owner.key or lcore.owner.label), 11)


def _plan(part: Part) -> _Box:
    """Puts boxes side by side until the picture is about as wide as a wall."""
    if part.cpu:
        return _Box(part, *_CELL, [])
    boxes = [_plan(inner) for inner in part.parts]
    width, height = max(box.width for box in boxes), max(box.height for box in boxes)
    columns = len(boxes)
    if part.level != "core":
        columns = min(len(boxes), max(1, math.ceil(math.sqrt(1.6 * len(boxes) * (height + _GAP) / (width + _GAP)))))
    top = _GAP if part.level in ("core", "host") else _TITLE + _GAP // 2
    inside = [
        (_GAP + n % columns * (width + _GAP), top + n // columns * (height + _GAP), box) for n, box in enumerate(boxes)
    ]
    rows = math.ceil(len(boxes) / columns)
    return _Box(part, _GAP + columns * (width + _GAP), top + rows * (height + _GAP), inside)


def _said(number: int, lcore: Lcore | None) -> str:
    if lcore is None:
        return f"lcore {number}: free"
    return f"lcore {number}: {purpose_and_lease(lcore)}, {lcore.owner.key or lcore.owner.label}"


def _cut(text: str) -> str:
    while measure(text) > _LETTERS:
        text = text[:-1]
    return text


def _rect(
    parent: ElementTree.Element, x: int, y: int, width: int, height: int, fill: str, stroke: str = "#8a94a0"
) -> ElementTree.Element:
    place = {"x": str(x), "y": str(y), "width": str(width), "height": str(height)}
    return ElementTree.SubElement(parent, "rect", place | {"rx": "4", "fill": fill, "stroke": stroke})


def _text(parent: ElementTree.Element, x: int, y: int, text: str, size: int, *, bold: bool = False) -> None:
    weight = {"font-weight": "bold"} if bold else {}
    ElementTree.SubElement(parent, "text", {"x": str(x), "y": str(y), "font-size": str(size)} | weight).text = text


def _replace(path: str, text: str) -> None:
    if os.path.exists(path) and not stat.S_ISREG(os.stat(path).st_mode):  # such as /dev/stdout, which has to stay
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        return
    target = os.path.realpath(path)  # what a link leads to, not the link
    fd, temporary = tempfile.mkstemp(prefix=".mtlshm-", suffix=".svg", dir=os.path.dirname(target))
    try:
        with open(fd, "w", encoding="utf-8") as file:
            file.write(text)
            os.umask(mask := os.umask(0))
            os.fchmod(file.fileno(), 0o666 & ~mask)
        os.replace(temporary, target)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
