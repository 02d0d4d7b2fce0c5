# SPDX-License-Identifier: BSD-3-Clause
"""`status` without its options: what is looked at, and how it is put together. Nothing here needs click or Rich."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from mtlshm import Host, OtherLayout, config
from mtlshm.ctl.cpu_use import CpuUse
from mtlshm.ctl.look import Choice, Look
from mtlshm.ctl.overview import overview
from mtlshm.ctl.table import Paper
from mtlshm.ctl.terminal import paper, show_lines
from mtlshm.errors import reason
from mtlshm.host import default_path
from mtlshm.net import places

if TYPE_CHECKING:
    from mtlshm.ctl.survey import Survey
    from mtlshm.previous_layout import PreviousHost


def open_segment(path: str | None) -> Host | PreviousHost:
    """Also one of the version before this one, which goes on until its last user ends."""
    try:
        return Host(path, create=False, read_only=True)
    except OtherLayout as error:
        from mtlshm.previous_layout import PreviousHost

        with suppress(LookupError):
            found = PreviousHost(path or default_path())
            print(f"mtlshm-ctl: {reason(error)}", file=sys.stderr)
            return found
        raise


def show(path: str | None) -> None:
    """`status` with no option."""
    state = os.environ.get("MTLSHMD_STATE") or config.configured("state") or places.STATE
    pins = os.environ.get("MTLSHMD_PINS") or config.configured("pins") or places.PINS
    with open_segment(path) as host:
        show_lines(View(host, state, pins).lines(paper()))


class View(NamedTuple):
    """What `status` shows, read anew at each call."""

    host: Host | PreviousHost
    state: str  # where the daemon has its ledger
    pins: str
    choice: Choice = Choice()
    wide: bool = False

    def lines(self, paper: Paper, use: CpuUse | None = None) -> Iterator[str]:
        """The lines to print; with CPU use if it was measured."""
        found = self.interfaces()
        look = Look.take(self.host, self.choice, use.take() if use else None)
        yield from overview(look, paper, wide=self.wide)
        if found:
            from mtlshm.ctl.survey import as_lines

            yield from as_lines(found, paper)
        if look.snapshot.daemon:
            from mtlshm.ctl import listening

            for trouble in listening.troubles(look.snapshot.daemon, ask=False):
                yield paper.red(trouble)

    def interfaces(self) -> Survey | None:
        """None: no daemon has served any."""
        if not os.path.exists(os.path.join(self.state, "ledger")):
            return None
        from pathlib import Path

        from mtlshm.ctl.survey import survey_if_any

        return survey_if_any(Path(self.state), Path(self.pins))
