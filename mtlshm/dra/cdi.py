# SPDX-License-Identifier: BSD-3-Clause
"""What the container runtime puts into a claim's containers: one CDI file for each claim.

The runtime reads the directory when it makes a container, and we may be killed at any moment. So a file is there whole
or not at all: it is written under a name that the runtime does not read, and renamed. The name is always the same for
one claim; a half-written file is overwritten by the next try, or removed with the claim.

TWO CLAIMS IN ONE CONTAINER overwrite each other's variables. So each claim has variables that carry its name, besides
the two that programs look for, which are then those of one of them.
"""

from __future__ import annotations

import json
import os
import re
from contextlib import suppress
from pathlib import Path

from mtlshm import CpuSet
from mtlshm.dra.naming import DRIVER

_VERSION = "0.6.0"  # of the specification; no newer feature is used


def write(directory: Path, uid: str, name: str, lcores: CpuSet, lease: str) -> None:
    """Have containers of that claim know their lcores. Idempotent. OSError if that cannot be written."""
    suffix = re.sub(r"[^A-Z0-9]", "_", name.upper())
    variables = {
        "MTLSHM_LCORES": str(lcores),
        "MTLSHM_LEASE": lease,
        f"MTLSHM_LCORES_{suffix}": str(lcores),
        f"MTLSHM_LEASE_{suffix}": lease,
    }
    edits = {"env": [f"{variable}={value}" for variable, value in variables.items()]}
    spec = {
        "cdiVersion": _VERSION,
        "kind": f"{DRIVER}/claim",
        "devices": [{"name": uid, "containerEdits": edits}],
    }
    _replace(_path(directory, uid), json.dumps(spec, indent=2).encode() + b"\n")


def remove(directory: Path, uid: str) -> None:
    """Idempotent. OSError if it cannot be removed."""
    path = _path(directory, uid)
    for each in (_unread(path), path):
        each.unlink(missing_ok=True)


def _path(directory: Path, uid: str) -> Path:
    return directory / f"{DRIVER}-claim-{uid}.json"


def _unread(path: Path) -> Path:
    return path.with_name(f".{path.name}.new")


def _replace(path: Path, data: bytes) -> None:
    with suppress(FileNotFoundError):
        if path.read_bytes() == data:
            return
    path.parent.mkdir(parents=True, exist_ok=True)
    new = _unread(path)
    try:
        new.write_bytes(data)
        os.replace(new, path)
    except OSError:
        with suppress(OSError):
            new.unlink(missing_ok=True)
        raise
