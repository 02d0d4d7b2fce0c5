# SPDX-License-Identifier: BSD-3-Clause
from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lab.api_stand_in import ApiServer, api_server
from lab.kubelet_stand_in import Kubelet, kubelet
from lab.processes import Daemon, ended
from lab.sysfs import Machine

NODE = "node-1"

# As the command does it, on a machine that has more lcores than this one.
DRIVER = """
import logging, sys
from pathlib import Path
from mtlshm import CpuSet
from mtlshm.dra.app import Settings, run
logging.basicConfig(format="%(levelname)s %(message)s", level="INFO")
node, pool, segment, api, account, kubelet, cdi, sysfs = sys.argv[1:]
sys.exit(run(Settings(node, CpuSet.parse(pool), segment, api, Path(account), Path(kubelet), Path(cdi), sysfs)))
"""


@pytest.fixture
def api() -> Iterator[ApiServer]:
    with api_server() as server:
        yield server


@pytest.fixture
def place() -> Iterator[Path]:
    """Kubelet's directory. Not in tmp_path, which may be longer than unix(7) allows."""
    with tempfile.TemporaryDirectory(prefix="mtlshm-test-") as directory:
        yield Path(directory)


@pytest.fixture
def node(place: Path) -> Iterator[Kubelet]:
    with kubelet(place) as made:
        yield made


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """Two NUMA nodes of four cores with two threads: 0-7 and 8-15."""
    return Machine(sockets=2, cores=4, threads=2).write(tmp_path / "sysfs")


@pytest.fixture
def cdi(tmp_path: Path) -> Path:
    return tmp_path / "cdi"


@pytest.fixture
def driver(
    segment: str, api: ApiServer, place: Path, machine: Path, cdi: Path, tmp_path: Path
) -> Iterator[Callable[..., Daemon]]:
    """Starts drivers; driver() is ready, for the lcores 4-7 and 8-15."""
    with ended() as started:

        def start(
            *, pool: str = "4-15", node: str = NODE, ready: bool = True, account: Path = tmp_path, where: Path = place
        ) -> Daemon:
            command = [sys.executable, "-c", DRIVER]
            command += map(str, (node, pool, segment, api.url, account, where, cdi, machine))
            started.append(new := Daemon(command, tmp_path / f"dra-{len(started)}.log", {}))
            if ready:
                new.await_log("ready")
            return new

        yield start
