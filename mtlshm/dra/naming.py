# SPDX-License-Identifier: BSD-3-Clause
"""The names by which others know us and what is ours."""

from __future__ import annotations

import re

from mtlshm.dra.refusal import Refused
from mtlshm.snapshot import printable

DRIVER = "dra.mtlshm"  # in ResourceSlices, DeviceClasses and claims; also the vendor of our CDI devices
CAPACITY = "lcores"  # of a device

# The UID becomes part of a key in the table, of a file's name and of a CDI device's name.
_UID = re.compile(r"[0-9A-Za-z]([0-9A-Za-z-]{0,54}[0-9A-Za-z])?")


def checked(uid: str) -> str:
    """The UID of a claim. Refused if it can be none."""
    if not _UID.fullmatch(uid):
        raise Refused(f"{printable(uid[:64])!r} is no UID of a claim")
    return uid


def key(uid: str) -> str:
    """Of the reservation that a claim has in the table."""
    return f"claim-{uid}"


def cdi_id(uid: str) -> str:
    """By what name a container runtime finds what a claim's containers get."""
    return f"{DRIVER}/claim={uid}"
