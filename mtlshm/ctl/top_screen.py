# SPDX-License-Identifier: BSD-3-Clause
"""What `top` shows, with Textual."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding
from textual.containers import VerticalScroll
from textual.widgets import Footer, Input, Static

from mtlshm import Event, Follower, Host, Topology
from mtlshm.ctl.colours import colours
from mtlshm.ctl.cpu_use import CpuUse
from mtlshm.ctl.event_text import line
from mtlshm.ctl.layout import Part, layout
from mtlshm.ctl.look import ORDERS, Choice, Look
from mtlshm.ctl.overview import overview
from mtlshm.ctl.survey import Survey, as_lines
from mtlshm.ctl.table import Paper
from mtlshm.ctl.view import View
from mtlshm.errors import reason
from mtlshm.topology import unknown

LEAST = 40, 12  # columns and lines
_EVENTS = 8  # the last so many are shown
_CELL = 9  # columns of a hardware thread: its number and the use of its CPU


class _News(NamedTuple):
    look: Look
    topology: Topology
    interfaces: Survey | None


class Top(App[None]):
    """Looks every `interval` seconds."""

    CSS = "Input { dock: bottom; display: none; } #cores, #owners, #events { height: auto; margin-bottom: 1; }"
    BINDINGS = [  # noqa: RUF012 - as Textual wants it
        Binding("s", "sort", "sort"),
        Binding("slash", "filter", "filter", key_display="/"),
        Binding("escape", "clear", "show all"),
        Binding("q", "quit", "quit"),
    ]
    ENABLE_COMMAND_PALETTE = False

    def __init__(self, view: View, interval: float) -> None:
        super().__init__()
        self._view, self._interval = view, interval
        self._choice = view.choice
        self._use = CpuUse()
        self._news: _News | None = None
        self._follower = Follower(view.host.events) if isinstance(view.host, Host) else None  # other layouts have none
        self._events: deque[Event] = deque(maxlen=_EVENTS)
        self._looking = asyncio.Lock()

    def compose(self) -> ComposeResult:
        """The parts of the screen."""
        with VerticalScroll():
            yield Static(id="cores")
            yield Static(id="owners")
            yield Static(id="events")
        yield Input(placeholder="PID, or part of a name", id="filter")
        yield Footer()

    async def on_mount(self) -> None:
        """Begin."""
        self.set_interval(self._interval, self._look)
        await self._look()

    async def _look(self) -> None:
        """In a thread: it reads files, and asks the kernel about interfaces."""
        async with self._looking:
            try:
                self._news = await asyncio.to_thread(self._gather)
            except OSError as error:  # such as a segment that was truncated; it may get better
                self._news = None
                self.query_one("#cores", Static).update(Text(reason(error), style="bold red"))
                for part in "#owners", "#events":
                    self.query_one(part, Static).update("")
        self._show()

    def _gather(self) -> _News:
        if self._follower:
            self._events.extend(self._follower.look())
        return _News(
            Look.take(self._view.host, self._choice, self._use.take()), Topology.read(), self._view.interfaces()
        )

    def on_resize(self) -> None:
        """The terminal has another size."""
        self._show()

    def _show(self) -> None:
        cores, owners, events = (self.query_one(part, Static) for part in ("#cores", "#owners", "#events"))
        if self.size.width < LEAST[0] or self.size.height < LEAST[1]:
            cores.update(Text(f"The terminal has {self.size.width} columns and {self.size.height} lines. {_NEEDED}"))
            owners.update("")
            events.update("")
        elif self._news:
            width = self.size.width - 4
            chart = list(_chart(self._news, width))
            if remark := unknown():
                chart.insert(0, Text(remark, style="bold"))
            cores.update(Text("\n").join(chart))
            owners.update(Text.from_ansi("\n".join(_text(self._news, width, self._choice)), no_wrap=True))
            told = "\n".join(["last events:", *map(line, self._events)] if self._events else [])
            events.update(Text(told, no_wrap=True, overflow="ellipsis"))

    async def action_sort(self) -> None:
        """By the next criterion."""
        orders = list(ORDERS)
        self._choice = self._choice._replace(order=orders[(orders.index(self._choice.order) + 1) % len(orders)])
        await self._look()

    def action_filter(self) -> None:
        """Ask for whom."""
        asked = self.query_one("#filter", Input)
        asked.display = True
        asked.focus()

    async def action_clear(self) -> None:
        """Show all owners."""
        await self._choose("")

    async def on_input_submitted(self, event: Input.Submitted) -> None:
        """Show one owner."""
        await self._choose(event.value)

    async def _choose(self, owner: str) -> None:
        asked = self.query_one("#filter", Input)
        asked.display = False
        asked.value = owner
        self.set_focus(None)
        self._choice = Choice(self._choice.order, owner)
        await self._look()


_NEEDED = f"top needs {LEAST[0]} columns and {LEAST[1]} lines."


def _text(news: _News, width: int, choice: Choice) -> Iterator[str]:
    paper = Paper(width, colour=True)
    yield from overview(news.look, paper, wide=False)
    yield ""
    yield f"sorted by {choice.order}" + (f"; only {choice.owner}" if choice.owner else "")
    if news.interfaces:
        yield from as_lines(news.interfaces, paper)


def _chart(news: _News, width: int) -> Iterator[Text]:
    """A line or more for each cache; SMT siblings stand beside each other, and cores apart."""
    owned = {lcore.number: lcore.owner.owner for lcore in news.look.snapshot.lcores}
    shown = colours(news.look.shown)
    for socket in layout(news.topology).parts:
        for node in socket.parts:
            yield Text(f"{socket.name}, {node.name}", style="bold")
            for cache in node.parts:
                line = Text(" ")
                for core in cache.parts:
                    cell = Text(" ").join(
                        _thread(thread, news.look, shown.get(owned.get(thread.number, 0))) for thread in core.parts
                    )
                    if line.cell_len + cell.cell_len > width and line.cell_len > 1:
                        yield line
                        line = Text(" ")
                    line += cell + Text("  ")
                yield line


def _thread(thread: Part, look: Look, colour: str | None) -> Text:
    busy = look.use.get(thread.number) if look.use else None
    text = f"{thread.number:>4} {'-' if busy is None else f'{busy:.0f}%':>4}".ljust(_CELL)
    return Text(text, style=f"black on {colour}" if colour else "")
