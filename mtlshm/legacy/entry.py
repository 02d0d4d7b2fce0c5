# SPDX-License-Identifier: BSD-3-Clause
"""The bytes of an entry of the legacy table.

WHAT WE WRITE is a RESERVATION: an active entry that no process takes for its own. Its host name and user are none
that a host or a user has, and its PID is 0, for which kill() never fails.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from mtlshm.snapshot import printable

# Native byte order and alignment, as in any C program on this machine.
_ENTRY = struct.Struct("64s32s64s4xii?3x")
_NAMES = struct.Struct("64s32s64s4xii")  # an entry without `active`
SIZE = _ENTRY.size
ACTIVE = _NAMES.size  # the offset of that byte

_HOSTNAME, _USER = b"[mtlshm]", b"[mtlshmd]"  # of reservations
_RESERVED, _RECLAIMED = b"reserved", b"reclaimed"
_APP_ALLOCATED = 3


@dataclass(frozen=True, slots=True)
class Entry:
    """One lcore that is active in the legacy table."""

    hostname: str
    user: str
    comm: str
    pid: int  # as the process sees itself
    type: int  # LcoreType, if it is sound

    @property
    def owner(self) -> tuple[str, str, int]:
        """Names the process among those who hold entries."""
        return self.hostname, self.user, self.pid

    @property
    def reserved(self) -> bool:
        """Whether the entry is ours, so that no legacy process can take it."""
        return self.hostname == RESERVATION.hostname

    @property
    def reclaimed(self) -> bool:
        """Reserved by an operator, who does not want it lent?"""
        return self.reserved and self.comm == _RECLAIMED.decode()


RESERVED = _NAMES.pack(_HOSTNAME, _USER, _RESERVED, 0, _APP_ALLOCATED)  # up to ACTIVE
RECLAIMED = _NAMES.pack(_HOSTNAME, _USER, _RECLAIMED, 0, _APP_ALLOCATED)
RESERVATION = Entry(_HOSTNAME.decode(), _USER.decode(), _RESERVED.decode(), 0, _APP_ALLOCATED)


def unpack(data: bytes, offset: int) -> Entry | None:
    """The entry at that offset; None if it is not active."""
    # Most are ours; unpacking each would take milliseconds.
    if not data[offset + ACTIVE]:
        return None
    if data.startswith(RESERVED, offset):
        return RESERVATION
    hostname, user, comm, pid, kind, _ = _ENTRY.unpack_from(data, offset)
    return Entry(_text(hostname), _text(user), _text(comm), pid, kind)


def _text(chars: bytes) -> str:
    return printable(chars.partition(b"\0")[0].decode(errors="replace"))
