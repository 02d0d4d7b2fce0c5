# SPDX-License-Identifier: BSD-3-Clause
"""What was handed out is counted as long as anyone has it, and not a moment longer."""

from __future__ import annotations

import mmap
import os
import resource
from collections.abc import Iterator
from contextlib import closing

import pytest

from mtlshm.net.umem import Memories

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="not root; not tested: which memory is still there")

SIZE, UID = 1 << 20, 1000


@pytest.fixture
def memories() -> Iterator[Memories]:
    with closing(Memories()) as made:
        yield made


def handed_out(memories: Memories, uid: int = UID) -> int:
    memfd = os.memfd_create("umem")
    os.ftruncate(memfd, SIZE)
    memories.hand_out(uid, memfd, SIZE)
    return memfd


def test_it_is_there_while_somebody_has_it_open_or_mapped(memories: Memories) -> None:
    memfd = handed_out(memories)
    with mmap.mmap(memfd, SIZE):
        assert memories.size(UID) == SIZE
        os.close(memfd)
        assert memories.size(UID) == SIZE
    assert memories.size(UID) == 0


def test_memory_is_counted_by_user(memories: Memories) -> None:
    first, second = handed_out(memories), handed_out(memories, UID + 1)
    assert (memories.size(UID), memories.size(UID + 1), memories.size(UID + 2)) == (SIZE, SIZE, 0)
    os.close(first)
    assert (memories.size(UID), memories.size(UID + 1)) == (0, SIZE)
    os.close(second)


def test_it_is_not_taken_for_gone_when_no_descriptor_is_left_to_look(memories: Memories) -> None:
    memfd = handed_out(memories)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        assert memories.size(UID) == SIZE
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert memories.size(UID) == SIZE
    os.close(memfd)
    assert memories.size(UID) == 0
