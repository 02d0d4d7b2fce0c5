# SPDX-License-Identifier: BSD-3-Clause
"""What a legacy process can claim, and what our table says of it."""

from __future__ import annotations

import errno
import time

import psutil

from lab.processes import (
    Daemon,
    Puppet,
    eventually,
    look,
    namespaces,
)
from mtlshm import Kind

NOTHING_LEFT = -errno.ENOSPC


EVERYTHING = range(128)


def of_legacy(segment: str) -> dict[int, int]:
    """The lcores of legacy processes in our table, with the PIDs."""
    return {lcore.number: lcore.owner.pid for lcore in look(segment).lcores if lcore.owner.kind == Kind.LEGACY}


def lent(segment: str) -> set[int]:
    return {lcore.number for lcore in look(segment).lcores if lcore.owner.kind == Kind.POOL}


def claim_all(process: Puppet) -> list[int]:
    """Everything that a legacy process can get."""
    got: list[int] = []
    while (lcore := process.claim(0)) != NOTHING_LEFT:
        assert lcore >= 0
        got.append(lcore)
    return got


def available(process: Puppet) -> set[int]:
    """What a legacy process could take."""
    return {lcore for lcore in EVERYTHING if not process.active(lcore)}


def container(name: str = "container") -> tuple[str, ...]:
    """The prefix of a command that runs with PIDs and a host name of its own, and with the memory of all."""
    return (*namespaces("pid", "uts"), "sh", "-c", f'hostname {name} && exec "$@"', "sh")


def falls_asleep(server: Daemon) -> bool:
    """Is there a while in which it does not wake?"""
    process = psutil.Process(server.pid)

    def slept() -> bool:
        before = process.num_ctx_switches()
        asleep = process.status() == psutil.STATUS_SLEEPING  # else it only waits for a CPU
        time.sleep(0.3)
        return bool(asleep and process.num_ctx_switches() == before)

    return bool(eventually(slept))
