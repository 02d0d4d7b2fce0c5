# SPDX-License-Identifier: BSD-3-Clause
"""The enumerations of the table: kinds of instances, types of lcores, and policies for SMT siblings."""

from __future__ import annotations

from enum import IntEnum
from typing import NewType

from mtlshm._core import lib

TableOwner = NewType("TableOwner", int)
"""Names an instance in the table: record index and generation in one number. It is no owner's number in the ledger."""

NOBODY = TableOwner(0)


class Kind(IntEnum):
    """How an instance came into the table."""

    SHM = lib.MTLSHM_KIND_SHM
    DAEMON = lib.MTLSHM_KIND_DAEMON
    SOCKET = lib.MTLSHM_KIND_SOCKET  # a client of the daemon's socket, which keeps it for the client
    LEGACY = lib.MTLSHM_KIND_LEGACY  # a process on libmtl's System V table, likewise
    POOL = lib.MTLSHM_KIND_POOL  # the lcores lent to that table
    RESERVATION = lib.MTLSHM_KIND_RESERVATION  # no process: lcores held for tenants until somebody ends it


class LcoreType(IntEnum):
    """What an lcore is for; the values are libmtl's."""

    SCH = lib.MTLSHM_LCORE_SCH
    TAP = lib.MTLSHM_LCORE_TAP
    RXV_RING = lib.MTLSHM_LCORE_RXV_RING
    APP = lib.MTLSHM_LCORE_APP
    SCH_USER = lib.MTLSHM_LCORE_SCH_USER
    LEASE = lib.MTLSHM_LCORE_LEASE  # held for tenants, not libmtl's


class Smt(IntEnum):
    """What a claim by policy does about SMT siblings."""

    ANY = lib.MTLSHM_SMT_ANY  # they do not matter
    AVOID = lib.MTLSHM_SMT_AVOID  # none whose sibling is held by anybody, nor two on one physical core
    WHOLE = lib.MTLSHM_SMT_WHOLE  # whole physical cores; all their siblings count
