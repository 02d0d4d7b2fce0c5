# SPDX-License-Identifier: BSD-3-Clause
"""Interfaces as the kernel knows them: their names, drivers and numbers of queues.

AN INTERFACE HAS SEVERAL NAMES: one of up to 15 characters, and alternative ones of up to 127, as udev gives. The system
calls of old, if_nametoindex(3) among them, find the short ones only; netlink finds all.

WHO COUNTS THE QUEUES. A driver may (`ethtool -l`), and says what is set now. One that cannot (ixgbevf, macvlan) has
queues all the same: the kernel counts them in sysfs, and tells by netlink how many it made room for, which may be more.
sysfs shows the network namespace in which it was mounted, which may not be ours; so what it says counts only for an
interface of the same number, and no more than netlink says.

The ioctls that ethtool uses answer at once, with nothing to start.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
import struct
from contextlib import suppress
from pathlib import Path

_LONGEST = 127  # characters of a name: ALTIFNAMSIZ of linux/if.h, without its end
_SIOCETHTOOL = 0x8946  # linux/sockios.h
_GDRVINFO, _GCHANNELS = 0x03, 0x3C  # linux/ethtool.h
_REQUEST = struct.Struct("16sP16x")  # struct ifreq, with a pointer to what is asked
_DRIVER = struct.Struct("I32s160x")  # struct ethtool_drvinfo: the command, the driver's name
_CHANNELS = struct.Struct("9I")  # struct ethtool_channels: the command, four maxima, then rx, tx, other, combined


async def index_of(name: str) -> int:
    """The number of the interface with this name, be it an alternative one. ENODEV if there is none."""
    with suppress(OSError, ValueError):
        return socket.if_nametoindex(name)
    from pyroute2 import AsyncIPRoute  # only here: it is half as big as all the rest of us
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        if len(name) <= _LONGEST and name.isprintable():
            async with AsyncIPRoute() as netlink:
                (link,) = await netlink.link("get", altname=name)
                return int(link["index"])
    except NetlinkError:
        pass
    text = f"there is no interface {name!r} in this network namespace; those there are: ip link"
    raise OSError(errno.ENODEV, text)


async def receive_queues(ifindex: int) -> int:
    """How many it has, as the kernel counts them."""
    from pyroute2 import AsyncIPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        async with AsyncIPRoute() as netlink:
            (link,) = await netlink.link("get", index=ifindex)
    except NetlinkError as error:
        raise OSError(error.code, f"interface {ifindex}: {os.strerror(error.code)}") from None
    most = int(link.get("num_rx_queues") or 1)
    directory = Path("/sys/class/net", link.get("ifname"))
    with suppress(OSError, ValueError):
        if int((directory / "ifindex").read_text()) == ifindex:
            counted = sum(name.startswith("rx-") for name in os.listdir(directory / "queues"))
            return min(counted, most) or most
    return most


async def queues(ifindex: int, name: str) -> int:
    """How many its driver has set up for receiving; if it does not count them, how many the kernel does."""
    with suppress(OSError):
        _, _, _, _, _, rx, _, _, combined = _CHANNELS.unpack(_ask(name, _GCHANNELS, _CHANNELS.size))
        if number := rx + combined:
            return int(number)
    return await receive_queues(ifindex)


def driver(name: str) -> str | None:
    """The name of its driver, if it tells."""
    with suppress(OSError):
        _, said = _DRIVER.unpack(_ask(name, _GDRVINFO, _DRIVER.size))
        return said.partition(b"\0")[0].decode(errors="replace") or None
    return None


def _ask(name: str, command: int, size: int) -> bytes:
    answer = ctypes.create_string_buffer(struct.pack("I", command), size)
    request = _REQUEST.pack(os.fsencode(name)[:15], ctypes.addressof(answer))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as asking:
        fcntl.ioctl(asking, _SIOCETHTOOL, request)
    return answer.raw
