# SPDX-License-Identifier: BSD-3-Clause
"""The owners of queues, flow rules and ports, and the interfaces in use; see ledger.py."""

from mtlshm.net.ledger.ledger import Ledger
from mtlshm.net.ledger.rows import (
    CHOSEN_BY_DRIVER,
    Flow,
    LedgerOwner,
    Owner,
    PortReference,
    Queue,
    QueueNumber,
    State,
    Use,
    number_at,
)
from mtlshm.net.ledger.store import Locked, patiently

__all__ = [
    "CHOSEN_BY_DRIVER",
    "Flow",
    "Ledger",
    "LedgerOwner",
    "Locked",
    "Owner",
    "PortReference",
    "Queue",
    "QueueNumber",
    "State",
    "Use",
    "number_at",
    "patiently",
]
