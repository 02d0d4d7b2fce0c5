# SPDX-License-Identifier: BSD-3-Clause
"""The kernel's messages about interfaces that we serve."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from typing import Any, Protocol

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.rtnl import RTMGRP_LINK

log = logging.getLogger("mtlshmd")

_FOLLOW_AGAIN = 0.5  # seconds


class Follower(Protocol):
    """The receiver of news. If it raises OSError, the news counts as missed."""

    def concerns(self, ifindex: int) -> bool:
        """Whether the receiver wants news of this interface."""

    async def changed(self, ifindex: int) -> None:
        """Something of the interface has changed: its name, its state or its XDP programs."""

    async def lost(self, ifindex: int, place: str) -> None:
        """`place` says for people where it is now; empty if it was not moved but removed."""

    async def missed(self) -> None:
        """Anything may have happened."""


async def follow(follower: Follower, following: asyncio.Future[None]) -> None:
    """For ever. `following` is done once nothing is missed any more, or OSError if we cannot listen.

    Whatever keeps us from it later, such as more news than there was room for, is made up for by missed().
    """
    while True:
        try:
            async with AsyncIPRoute() as netlink:
                await netlink.bind(groups=RTMGRP_LINK)
                if following.done():
                    await follower.missed()
                else:
                    following.set_result(None)
                while True:
                    async for message in netlink.get():  # ends after each
                        ifindex = message.get("index", 0)
                        if not follower.concerns(ifindex):
                            continue
                        if message["event"] == "RTM_DELLINK":
                            await follower.lost(ifindex, _new_place(message))
                        else:
                            await follower.changed(ifindex)
        except (OSError, NetlinkError) as error:
            if not following.done():
                following.set_exception(OSError(errno.EIO, f"cannot listen to the kernel's news of links: {error}"))
                return
            log.warning("interfaces: missed what happened to them (%s); looking", error)
        await asyncio.sleep(_FOLLOW_AGAIN)


def _new_place(message: Any) -> str:
    nsid = message.get("new_netnsid")
    if nsid is None:
        return ""
    nsid = socket.ntohl(nsid)  # pyroute2 takes it for a number from the network
    return f"as interface {message.get('new_ifindex')} of the network namespace with nsid {nsid} (ip netns list-id)"
