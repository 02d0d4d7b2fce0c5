# SPDX-License-Identifier: BSD-3-Clause
from __future__ import annotations

import asyncio
import inspect
import os
import sys
from pathlib import Path

import pytest

from stand_in import StandIn


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run tests that are coroutines in an event loop of their own."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    arguments = inspect.signature(pyfuncitem.obj).parameters
    asyncio.run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in arguments}))
    return True


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """Puts the stand-in on PATH, for processes that the test starts as well."""
    source = Path(__file__).parent / "ethtool_stand_in.py"
    program = tmp_path / "bin/ethtool"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable} -SE\n{source.read_text()}")  # without site-packages: it starts faster
    program.chmod(0o755)
    (tmp_path / "devices").mkdir()
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("MTLSHM_ETHTOOL_STAND_IN", str(tmp_path / "devices"))
    return StandIn(source)
