# SPDX-License-Identifier: BSD-3-Clause
"""Whether kubelet leaves the pool alone.

With the CPU manager's policy `static` kubelet gives whole CPUs to pods itself, any but those in `reservedSystemCPUs`.
It knows nothing of ours, so the pool must lie in them. With the policy `none` it gives nobody a CPU.
"""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

from mtlshm import CpuSet
from mtlshm.dra.devices import NoPool
from mtlshm.errors import reason

log = logging.getLogger(__name__)

_RESERVED = re.compile(r"""^reservedSystemCPUs:[ \t]*["']?([0-9, -]*)["']?[ \t]*(?:#.*)?$""", re.MULTILINE)


def check_reserved(directory: Path, pool: CpuSet) -> None:
    """NoPool if kubelet may give lcores of the pool to others."""
    try:
        policy = json.loads((directory / "cpu_manager_state").read_text())["policyName"]
    except (OSError, ValueError, KeyError, TypeError):  # no kubelet yet, or one without a CPU manager
        return
    if policy == "none":
        return
    settings = directory / "config.yaml"
    try:
        found = _RESERVED.search(settings.read_text(errors="replace"))
        reserved = CpuSet.parse(found[1]) if found else None
    except OSError as error:
        log.warning("%s: %s; see for yourself that reservedSystemCPUs has the pool %s", settings, reason(error), pool)
        return
    except ValueError as error:
        raise NoPool(f"{settings}: reservedSystemCPUs: {error}") from None
    if outside := pool - (reserved or ()):
        text = f"{pool}: kubelet's CPU policy {policy} may give {outside} to other pods"
        raise NoPool(f"{text}; have the pool in reservedSystemCPUs of {settings}")
