# SPDX-License-Identifier: BSD-3-Clause
from __future__ import annotations

import asyncio
import inspect
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.processes import UNPRIVILEGED
from mtlshm.net.ledger import Ledger


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run tests that are coroutines in an event loop of their own."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    arguments = inspect.signature(pyfuncitem.obj).parameters
    asyncio.run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in arguments}))
    return True


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path / "state") as ledger:
        yield ledger


@pytest.fixture
def open_path(tmp_path: Path) -> Iterator[Path]:
    """A state directory that others may look into, as /run/mtlshm is, with a ledger that their group may read."""
    state = Path("/run") / f"mtlshm-test-{os.getpid()}-{random.getrandbits(32):x}"
    state.mkdir(mode=0o755)
    Ledger(state, gid=UNPRIVILEGED).close()
    yield state
    for path in state.iterdir():
        path.unlink()
    state.rmdir()
