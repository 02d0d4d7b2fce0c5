# SPDX-License-Identifier: BSD-3-Clause
"""Takes all that is ours off the interfaces, for when mtlshm is to leave a host."""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path

from mtlshm.net.ledger import Ledger
from mtlshm.net.nic import Nics
from mtlshm.net.tool import Tools
from mtlshm.net.xdp import Loader

log = logging.getLogger("mtlshmd")


async def tear_down(state: Path, pins: Path) -> bool:
    """Flow rules, programs, pins and the ledger; whoever uses them loses them. OSError (EBUSY) if a daemon serves.

    False if something could not be removed, which is logged. The ledger stays then, for what is left is known from it.
    """
    tools = Tools(state)
    loader = Loader(tools, pins)
    with Ledger(state) as ledger:
        ledger.serve()
        nics = Nics(ledger, tools, lambda *_: None)  # what is in maps goes with them
        gone = [await nics.drop(owner.id) for owner in ledger.owners()]
        for use in ledger.uses():
            ledger.unkeep(use.ifindex)
        for ifindex in loader.interfaces():
            try:
                await loader.unload(ifindex)
            except OSError as error:
                log.error("interface %d: %s", ifindex, error.strerror or error)
                gone.append(False)
        if not all(gone):
            return False
        ledger.remove()
    with suppress(OSError):  # another network namespace has pins there
        pins.rmdir()
    return True
