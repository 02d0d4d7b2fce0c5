# SPDX-License-Identifier: BSD-3-Clause
"""Lcores that are lent to legacy processes, when a client of the manager socket asks for one."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Protocol

from mtlshm import Host, Instance, Kind
from mtlshm.daemon.eal import Lcores


class Loans(Protocol):
    """The duty that lends lcores to legacy processes; see legacy.py."""

    async def hand_over(self, lcore: int, to: Instance, kind: int) -> bool:
        """Give an lcore that is lent and unused to an instance. False if that cannot be done soon."""


def is_lent(host: Host, cpu: int | None) -> bool:
    """Whether a CPU is lent to legacy processes, and none of them has it."""
    if cpu is None:
        return False
    with suppress(OSError):
        owner, _ = host.holder(cpu)
        info = host.inspect(owner) if owner else None
        return info is not None and info.kind == Kind.POOL
    return False


def has_choice(host: Host, lcores: Lcores | None, pid: int) -> bool:
    """Whether any CPU of the client's workers is free, or, if these are unknown, any CPU of its affinity mask."""
    cpus = {cpu for _, where in lcores.workers for cpu in where} if lcores else set()
    with suppress(OSError):
        cpus = cpus or os.sched_getaffinity(pid)
    size = host.snapshot().size
    return any(cpu < size and not host.holder(cpu)[0] for cpu in cpus)
