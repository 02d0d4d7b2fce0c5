# SPDX-License-Identifier: BSD-3-Clause
"""What is asked of an observer, a process of its own, about real processes."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import psutil
import pytest
import sysv_ipc

from lab.processes import eventually
from mtlshm.daemon import observer
from mtlshm.daemon.observer import Observer
from mtlshm.strangers import Segment


@pytest.fixture
def segment_of_ours() -> Iterator[Segment]:
    memory = sysv_ipc.SharedMemory(None, sysv_ipc.IPC_CREX, size=4096)
    try:
        yield Segment.ours(memory.key, memory.id)
    finally:
        memory.detach()
        memory.remove()


def with_observer(use: Callable[[Observer], Any], **settings: Any) -> Any:
    async def run() -> Any:
        asked = Observer(**settings)
        try:
            return await use(asked)
        finally:
            asked.close()

    return asyncio.run(run())


def children() -> list[psutil.Process]:
    return psutil.Process().children()


def test_observer_lists_attached_processes(segment_of_ours: Segment) -> None:
    async def ask(asked: Observer) -> Any:
        return await asked.ask("census", of=asdict(segment_of_ours), count=1)

    answer = with_observer(ask)
    (found,) = answer["attached"]
    assert (found["pid"], found["inner_pid"], answer["mappings"]) == (os.getpid(), os.getpid(), 1)
    eventually(lambda: not [child for child in children() if child.status() != psutil.STATUS_ZOMBIE])


def test_one_that_does_not_answer_is_killed_and_the_next_question_answered(segment_of_ours: Segment) -> None:
    async def ask(asked: Observer) -> None:
        question = {"of": asdict(segment_of_ours), "count": 1}
        assert await asked.ask("census", **question)
        (process,) = children()
        process.send_signal(signal.SIGSTOP)
        asked.within = 0.1
        assert await asked.ask("census", **question) is None
        asked.within = 60.0
        assert await asked.ask("census", **question)
        assert process not in [child for child in children() if child.status() != psutil.STATUS_ZOMBIE]

    with_observer(ask)


def test_slow_process_is_left_out_for_a_while(
    segment_of_ours: Segment, long_maps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(observer, "_AVOID", 3600.0)

    async def ask(asked: Observer) -> list[Any]:
        question = {"of": asdict(segment_of_ours), "count": 2, "first": [long_maps]}
        return [(await asked.ask("census", **question))["unfinished"] for _ in range(2)]

    first, second = with_observer(ask)
    assert long_maps in first
    assert long_maps not in second
