# SPDX-License-Identifier: BSD-3-Clause
"""top shows cores, owners and their use, as Textual's own pilot sees it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from textual.pilot import Pilot
from textual.widgets import Static

from mtlshm import EventKind, Host, Topology
from mtlshm.ctl.look import ORDERS
from mtlshm.ctl.top_screen import LEAST, Top
from mtlshm.ctl.view import View, open_segment

Act = Callable[["Pilot[None]"], Awaitable[None]]


@pytest.fixture
def watch(segment: str, tmp_path: Path) -> Callable[..., list[str]]:
    """Runs top, does something and returns the text of its parts."""

    def run(act: Act, size: tuple[int, int] = (100, 40)) -> list[str]:
        async def in_a_loop() -> list[str]:
            with open_segment(segment) as host:
                top = Top(View(host, str(tmp_path), str(tmp_path)), 3600)
                async with top.run_test(size=size) as pilot:
                    await act(pilot)
                    await pilot.pause()
                    await top._look()
                    parts = [top.query_one(name, Static) for name in ("#cores", "#owners", "#events")]
                    return [
                        "\n".join(line.text for line in part.render_lines(part.region.reset_offset)) for part in parts
                    ]

        return asyncio.run(in_a_loop())

    return run


def keys(*names: str) -> Act:
    async def act(pilot: Pilot[None]) -> None:
        await pilot.press(*names)

    return act


def test_it_shows_all_cpus_and_their_owners(watch, segment, own_cpus):
    with Host(segment) as host, host.register("encoder [b]") as me, host.register("idle"):
        me.claim(own_cpus[0])
        cores, owners, _ = watch(keys())
    assert {str(cpu) for cpu in Topology.read().online} <= set(cores.split())
    assert "socket" in cores
    assert "%" in cores
    assert " 1 held, 0 lent," in owners
    assert "encoder [b]" in owners
    assert "CPU %" in owners
    assert "idle" in owners


def test_keys_sort_and_filter(watch, segment, own_cpus):
    with Host(segment) as host, host.register("encoder") as me, host.register("idle"):
        me.claim(own_cpus[0])
        assert f"sorted by {list(ORDERS)[1]}" in watch(keys("s"))[1]
        owners = watch(keys("slash", *"idle", "enter"))[1]
        assert "only idle" in owners
        assert "encoder" not in owners
        assert "encoder" in watch(keys("slash", *"idle", "enter", "escape"))[1]


@pytest.mark.parametrize("size", [(LEAST[0] - 1, 40), (100, LEAST[1] - 1)])
def test_a_terminal_that_is_too_small_gets_a_clear_message(watch, segment, size):
    Host(segment).close()
    cores, owners, events = watch(keys(), size)
    assert f"has {size[0]} columns and {size[1]} lines" in " ".join(cores.split())
    assert owners.strip() == events.strip() == ""


def test_it_shows_what_happened_last(watch, segment):
    with Host(segment) as host:
        for number in range(20):
            host.tell(EventKind.NIC, "eth0", f"change {number} [b]")
        lines = watch(keys())[2].splitlines()
    assert [
        line.strip().endswith(f"interface eth0: change {number} [b]") for number, line in enumerate(lines[1:9], 12)
    ] == [True] * 8


def test_without_a_terminal_it_says_what_to_run_instead(ctl, segment):
    Host(segment).close()
    done = ctl("top")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "mtlshm-ctl status --watch" in done.stderr
    assert os.path.exists(segment)
