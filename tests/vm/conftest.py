# SPDX-License-Identifier: BSD-3-Clause
from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.networks import sandbox
from lab.processes import DEADLINE
from lab.vm_nic import Nic
from lab.vm_nic import nic as made_nic
from mtlshm.net.tool import Tools
from mtlshm.net.xdp import Loader

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker("vm")
            if "MTLSHM_VM" not in os.environ:
                item.add_marker(pytest.mark.skip(reason="only in a virtual machine: tools/test --vm"))


@pytest.fixture
def nic() -> Iterator[Nic]:
    with sandbox(), made_nic() as nic:
        yield nic


@pytest.fixture
def loader(tmp_path: Path, nic: Nic) -> Loader:
    return Loader(Tools(tmp_path, timeout=DEADLINE))  # an emulated CPU takes its time
