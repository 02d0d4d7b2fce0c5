# SPDX-License-Identifier: BSD-3-Clause
"""What `mtlshm-ctl doctor` looks at on the host: a function a check, each of which only looks.

NO CHECK MAY HANG US. Not all that they read and run is ours: a name service, a file on a server that is away, a
program. So they run in a child, one after the other, and each has _PATIENCE seconds. One that takes longer is given up
together with the child, and another child goes on with the next. The child is killed, and not waited for, since what
hangs in the kernel does not die.
"""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from mtlshm.ctl.host import cpus, kernel, programs, service
from mtlshm.ctl.host.place import Place
from mtlshm.ctl.verdict import State, Verdict
from mtlshm.errors import about

__all__ = ["CHECKS", "Place", "look"]

_PATIENCE = 10.0  # seconds; a machine may have much to do

Check = Callable[[Place], Verdict]

CHECKS: tuple[Check, ...] = (
    kernel.ofd_locks,
    kernel.pidfd,
    kernel.so_peerpidfd,
    kernel.freplace,
    programs.xdp_loader,
    programs.ethtool,
    programs.iproute2,
    programs.bpf_objects,
    programs.library,
    service.bpffs,
    service.group,
    service.segment_group,
    service.socket_group,
    service.mtlmanager,
    service.remove_ipc,
    service.unit,
    cpus.lent_lcores,
    cpus.hugepages,
    cpus.isolated_cpus,
    cpus.nohz_full,
    cpus.irq_affinity,
    cpus.governor,
)


def look(place: Place, checks: Sequence[Check] = CHECKS, patience: float = _PATIENCE) -> list[Verdict]:
    """A verdict for each check, in their order."""
    found: list[Verdict] = []
    while len(found) < len(checks):
        rest = checks[len(found) :]
        told = _in_a_child(place, rest, patience)
        found += told
        if len(told) < len(rest):
            found.append(Verdict(_name(rest[len(told)]), State.UNKNOWN, f"given up: not done within {patience:g} s"))
    return found


def _name(check: Check) -> str:
    return check.__name__.replace("_", "-")


def _in_a_child(place: Place, checks: Sequence[Check], patience: float) -> list[Verdict]:
    """The verdicts that came in time, up to the first check that hung."""
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        try:
            logging.disable()
            for check in checks:
                os.write(writer, json.dumps(_run(check, place).as_json()).encode() + b"\n")
        finally:
            os._exit(0)
    os.close(writer)
    try:
        return _listen(reader, len(checks), patience)
    finally:
        os.close(reader)
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        for _ in range(100):  # else it is somebody else's to bury, once the kernel lets it go
            if os.waitpid(child, os.WNOHANG)[0]:
                break
            time.sleep(0.001)


def _listen(reader: int, count: int, patience: float) -> list[Verdict]:
    found: list[Verdict] = []
    data = b""
    while len(found) < count and select.select([reader], [], [], patience)[0]:
        piece = os.read(reader, 65536)
        if not piece:
            break
        *lines, data = (data + piece).split(b"\n")
        for each in map(json.loads, lines):
            found.append(Verdict(each["check"], State(each["state"]), each["text"], each["advice"]))
    return found


def _run(check: Check, place: Place) -> Verdict:
    try:
        return check(place)
    except OSError as error:
        return Verdict(_name(check), State.UNKNOWN, about(error))
    except ValueError as error:  # the kernel says something that no kernel has said yet
        return Verdict(_name(check), State.UNKNOWN, f"not understood: {error}")
