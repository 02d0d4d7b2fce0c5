# SPDX-License-Identifier: BSD-3-Clause
"""AF_XDP sockets that the daemon opens for clients, each on a queue that becomes the client's.

A user has one socket opened at a time: that takes a CPU while it lasts, and the memory is counted before it. All others
are served meanwhile.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress

from mtlshm import wire
from mtlshm.net.gate import Gate
from mtlshm.net.ledger import Ledger, LedgerOwner, QueueNumber
from mtlshm.net.nic import Nics
from mtlshm.net.opener import Opener
from mtlshm.net.umem import Memories
from mtlshm.net.xsk import Layout, XskSocket

log = logging.getLogger(__name__)

# The kernel drops a dead owner's UMEM late, and until then its queue cannot be bound.
_BIND_AGAIN = (0.02, 0.2, 1.0, 2.0)  # seconds


class Sockets:
    """Opens them until close(). `gate` finds the programs of an interface, or raises OSError.

    `umem_limit` is the size in bytes of the largest UMEM that a client may have. A user has at most that for each of
    his queues, memory of sockets whose queue was given back included.
    """

    def __init__(self, ledger: Ledger, nics: Nics, gate: Callable[[int], Gate], umem_limit: int) -> None:
        self._ledger = ledger
        self._nics = nics
        self._gate = gate
        self._umem_limit = umem_limit
        self._memories = Memories()
        self._opener = Opener()
        self._turns: defaultdict[int, asyncio.Lock] = defaultdict(asyncio.Lock)  # by uid

    def close(self) -> None:
        """Stop. Sockets that were handed out stay with their clients."""
        self._opener.close()
        self._memories.close()

    def check(self, layout: Layout) -> None:
        """OSError if no client may have such a one."""
        layout.check(self._umem_limit)

    async def open(
        self, owner: Callable[[], LedgerOwner], uid: int, ifindex: int, layout: Layout
    ) -> tuple[wire.Xsk, XskSocket]:
        """A queue, which becomes the owner's, and a socket bound to it; or OSError. The interface is in use by the
        owner, who is asked for each time anew: its process may die meanwhile."""
        for pause in _BIND_AGAIN:
            with suppress(BlockingIOError):
                return await self._open_in_turn(owner, uid, ifindex, layout)
            await asyncio.sleep(pause)
        return await self._open_in_turn(owner, uid, ifindex, layout)

    async def _open_in_turn(
        self, owner: Callable[[], LedgerOwner], uid: int, ifindex: int, layout: Layout
    ) -> tuple[wire.Xsk, XskSocket]:
        async with self._turns[uid]:
            self._check_memory(uid, layout.size)
            return await self._open(owner(), uid, ifindex, layout)

    async def _open(self, owner: LedgerOwner, uid: int, ifindex: int, layout: Layout) -> tuple[wire.Xsk, XskSocket]:
        """On the first queue that is free in the ledger and can be bound. BlockingIOError if that is none just now."""
        passed_by: list[QueueNumber] = []
        try:
            while True:
                try:
                    most = self._gate(ifindex).queues
                    passed_by.append(await self._nics.claim_queue(owner, ifindex, most))
                except OSError as error:
                    if passed_by and error.errno == errno.ENOSPC:
                        text = f"interface {ifindex}: of queues {passed_by}, which nobody owns, others have sockets"
                        raise BlockingIOError(errno.EAGAIN, text) from error
                    raise
                try:
                    xsk = await self._opener.open(ifindex, passed_by[-1], layout)
                except OSError as error:
                    if error.errno == errno.EBUSY:
                        continue
                    raise
                try:
                    if passed_by[-1] not in {each.queue for each in self._ledger.queues(ifindex, owner)}:
                        raise OSError(errno.ESRCH, f"owner {owner} or interface {ifindex} has gone meanwhile")
                    self._gate(ifindex).set_socket(passed_by[-1], xsk.socket)
                except BaseException:
                    xsk.close()
                    raise
                self._memories.hand_out(uid, xsk.umem, layout.size)
                return wire.Xsk(passed_by.pop(), ifindex), xsk
        finally:
            for queue in passed_by:
                try:
                    await self._nics.put_queue(owner, ifindex, queue)
                except OSError as error:  # the owner's end gives it back
                    log.error("queue %d of interface %d: %s", queue, ifindex, error.strerror or error)

    def _check_memory(self, uid: int, size: int) -> None:
        """BlockingIOError if a user keeps that of sockets whose queues were given back: he could have any amount."""
        owners = {owner.id for owner in self._ledger.owners() if owner.process.uid == uid}
        queues = sum(queue.owner in owners for queue in self._ledger.queues())
        if (kept := self._memories.size(uid)) + size > (queues + 1) * self._umem_limit:
            text = f"uid {uid} keeps {kept} bytes of UMEMs, for {queues} queues; close and unmap what is needed no more"
            raise BlockingIOError(errno.EAGAIN, text)
