# SPDX-License-Identifier: BSD-3-Clause
"""Damage of a segment in plain words, and its repair: cffi_build/examine.c finds it, mend.c repairs it."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from enum import IntEnum

from mtlshm import segment
from mtlshm._core import ffi, lib
from mtlshm.errors import check

_SETTLES = 0.1  # seconds: transient states, such as a registration, are over by then
_SETTLES_SLOWLY = (0.5, 2.0)  # seconds: the same on a loaded host, where a process may be kept from its CPU in between


class What(IntEnum):
    """Kinds of damage."""

    FOREIGN = lib.MTLSHM_DAMAGE_FOREIGN
    LAYOUT = lib.MTLSHM_DAMAGE_LAYOUT
    SHORT = lib.MTLSHM_DAMAGE_SHORT
    HEADER = lib.MTLSHM_DAMAGE_HEADER
    BOOT = lib.MTLSHM_DAMAGE_BOOT
    STATE = lib.MTLSHM_DAMAGE_STATE
    RETIRED = lib.MTLSHM_DAMAGE_RETIRED
    SEMAPHORE = lib.MTLSHM_DAMAGE_SEMAPHORE
    RECORD = lib.MTLSHM_DAMAGE_RECORD
    HIDDEN = lib.MTLSHM_DAMAGE_HIDDEN
    KIND = lib.MTLSHM_DAMAGE_KIND
    DEAD = lib.MTLSHM_DAMAGE_DEAD
    TOKEN = lib.MTLSHM_DAMAGE_TOKEN


_SIZE = int(ffi.sizeof("struct mtlshm_segment"))
_FIELDS = {
    int(ffi.offsetof("struct mtlshm_header", name)): words
    for name, words in (
        ("magic", "the magic is wrong"),
        ("version", f"the layout version says {{}}, not {lib.MTLSHM_LAYOUT_VERSION}"),
        ("size", f"the size in the header says {{}}, not {_SIZE}"),
        ("lcores", f"the number of lcores says {{}}, not {lib.MTLSHM_LCORES_MIN} to {lib.MTLSHM_LCORES}"),
    )
}


@dataclass(frozen=True, slots=True)
class Damage:
    """One thing that is wrong with a segment."""

    what: What
    index: int
    value: int

    @property
    def passing(self) -> bool:
        """Whether it only means that a process was killed. The next process that needs its lcores repairs it."""
        return self.what == What.DEAD or (self.what == What.SEMAPHORE and self.index == 1)

    def __str__(self) -> str:
        match self.what:
            case What.FOREIGN:
                return "not a mtlshm segment"
            case What.LAYOUT:
                return f"a segment of another build or version (it says {self.value}), or its fingerprint is damaged"
            case What.SHORT:
                return f"truncated to {self.value} of {_SIZE} bytes: what its users held is lost"
            case What.HEADER:
                return f"{_FIELDS[self.index].format(self.value)}: no new process can open it"
            case What.BOOT:
                return "its header names another boot or another host: no new process can open it"
            case What.STATE:
                return f"it is neither in use nor retired, but {self.value}: no process can register"
            case What.RETIRED:
                return "retired by a process that died before it removed the file: no process can register"
            case What.SEMAPHORE if self.passing:
                return f"the semaphore was left by {self.value:#x}, which is dead: whoever wants it takes it over"
            case What.SEMAPHORE:
                return f"the semaphore is held by {self.value:#x}, which is unknown"
            case What.RECORD:
                return f"record {self.index} has an unknown state ({self.value:#x})"
            case What.HIDDEN:
                return f"record {self.index} says {self.value:#x}, but its owner lives: others can take its lcores"
            case What.KIND:
                return f"the instance in record {self.index} has an unknown kind ({self.value})"
            case What.DEAD:
                return f"the instance in record {self.index} ({self.value:#x}) is dead and not collected"
            case What.TOKEN:
                return f"lcore {self.index} is held by an unknown owner ({self.value:#x})"


def glance(path: str) -> list[Damage]:
    """All damage at this moment, transient states included. OSError if the file cannot be read."""
    found = ffi.new("struct mtlshm_damage[]", lib.MTLSHM_DAMAGES)
    count = lib.mtlshm_examine(os.fsencode(path), found)
    if count < 0:
        raise segment.refused(path, count)
    return [Damage(What(one.kind), one.index, one.value) for one in found[0:count]]


def examine(path: str) -> list[Damage]:
    """The damage that persists: seen twice, a moment apart. OSError if the file cannot be read.

    A process that is just registering looks like one whose record lost its owner. So that is looked at twice more.
    """
    found = glance(path)
    for pause in (_SETTLES, *_SETTLES_SLOWLY):
        if not found or (pause != _SETTLES and all(damage.what != What.HIDDEN for damage in found)):
            break
        time.sleep(pause)
        now = set(glance(path))
        found = [damage for damage in found if damage in now]
    return found


def mend(path: str, damage: Damage) -> None:
    """Repair it. Busy: a live process would lose something. errno EOPNOTSUPP: no repair is known; ESRCH: it is gone."""
    c = ffi.new("struct mtlshm_damage *", {"kind": damage.what, "index": damage.index, "value": damage.value})
    check(lib.mtlshm_mend(os.fsencode(path), c), str(damage))
