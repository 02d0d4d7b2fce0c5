# SPDX-License-Identifier: BSD-3-Clause
"""Takes all that is ours off the interfaces, for when mtlshm is to leave a host."""

from __future__ import annotations

import logging
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
        used = [use.ifindex for use in ledger.uses()]
        nics = Nics(ledger, tools, lambda *_: None)  # what is in maps goes with them
        gone = [await nics.drop(owner.id) for owner in ledger.owners()]
        for ifindex in used:
            ledger.unkeep(ifindex)
        for ifindex in loader.interfaces():
            try:
                await loader.unload(ifindex)
            except OSError as error:
                log.error("interface %d: %s", ifindex, error.strerror or error)
                gone.append(False)
        for ifindex in used:
            if text := await loader.unknown(ifindex):  # the ledger knows of it, so it may well be ours
                log.error("%s", text)
                gone.append(False)
        if not all(gone):
            return False
        ledger.remove()
    loader.remove_pins()  # unless another network namespace has some there
    return True
