# SPDX-License-Identifier: BSD-3-Clause
from __future__ import annotations

import asyncio
import inspect
import os
import random
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lab.networks import Veth
from lab.processes import DEADLINE, UNPRIVILEGED
from mtlshm.net.ledger import Ledger
from mtlshm.net.tool import Tools
from mtlshm.net.xdp import Loader


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


@pytest.fixture
def loader(tmp_path: Path, link: Veth) -> Loader:
    return Loader(Tools(tmp_path, timeout=DEADLINE))


@pytest.fixture(scope="session")
def foreign(build_once: Callable[..., Path]) -> Path:
    """A program of somebody else's."""

    def compile(target: Path) -> None:
        code = '__attribute__((section("xdp"), used)) int somebody(void *context) { (void)context; return 2; }'
        command = ["clang", "-O2", "-g", "-target", "bpf", "-x", "c", "-c", "-", "-o", target]
        subprocess.run(command, input=code, text=True, check=True)

    return build_once("foreign.o", compile)
