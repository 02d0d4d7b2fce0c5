# SPDX-License-Identifier: BSD-3-Clause
"""What a ResourceClaim asks of this node.

The object comes from the API server, which has checked its form; a user wrote it, and the scheduler allocated it. What
does not fit this node is refused with a line that the user can act upon. kubelet asks again every few seconds, as long
as the pod is there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mtlshm.cpuset import counted
from mtlshm.dra.devices import Device
from mtlshm.dra.naming import CAPACITY, DRIVER
from mtlshm.dra.refusal import Refused
from mtlshm.snapshot import printable

# The server writes 1000 as 1k, and 1024 as 1Ki if it was written so.
_QUANTITY = re.compile(r"([0-9]{1,6})(|k|Ki)")
_UNITS = {"": 1, "k": 1000, "Ki": 1024}
_POD_CLAIM = "resource.kubernetes.io/pod-claim-name"


@dataclass(frozen=True, slots=True)
class Share:
    """The part of one device that one request of the claim gets."""

    request: str
    device: str
    count: int
    id: str  # of the share; a device may be given to one claim twice


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a claim is to get here."""

    name: str  # by which the author of the pod knows it
    shares: tuple[Share, ...]

    def counts(self) -> dict[str, int]:
        """Lcores of each device."""
        found: dict[str, int] = {}
        for share in self.shares:
            found[share.device] = found.get(share.device, 0) + share.count
        return found


def wanted(claim: Mapping[str, Any], uid: str, node: str, devices: Mapping[str, Device]) -> Wanted:
    """What the object says. Refused if that cannot be done here."""
    try:
        return _wanted(claim, uid, node, devices)
    except (KeyError, TypeError, AttributeError) as error:
        raise Refused(f"its object has another form than resource.k8s.io/v1 ({error!r})") from None


def _wanted(claim: Mapping[str, Any], uid: str, node: str, devices: Mapping[str, Device]) -> Wanted:
    metadata = claim["metadata"]
    if metadata["uid"] != uid:
        raise Refused(f"the claim of that name has the UID {printable(str(metadata['uid']))} now: it was made anew")
    allocation = claim.get("status", {}).get("allocation")
    if not allocation:
        raise Refused("it is not allocated; the scheduler does that")
    for config in allocation["devices"].get("config", ()):
        if config.get("opaque", {}).get("driver") == DRIVER:
            raise Refused(f"it has parameters for {DRIVER}, which takes none: remove `config` from claim and class")
    ours = [result for result in allocation["devices"].get("results", ()) if result["driver"] == DRIVER]
    if not ours:
        raise Refused(f"it has no device of {DRIVER}")
    found = Wanted(
        name=metadata.get("annotations", {}).get(_POD_CLAIM) or metadata["name"],
        shares=tuple(_share(result, node, devices) for result in ours),
    )
    for name, count in found.counts().items():
        if count > len(devices[name].lcores):
            raise Refused(f"it is to have {counted(count)} of {name}, which has {len(devices[name].lcores)}")
    return found


def _share(result: Mapping[str, Any], node: str, devices: Mapping[str, Device]) -> Share:
    name = result["device"]
    if result["pool"] != node:
        raise Refused(f"it is allocated to the pool {printable(str(result['pool']))}, and this node is {node}")
    if name not in devices:
        raise Refused(f"there is no device {printable(str(name))} on this node, but {', '.join(devices)}")
    count = _count((result.get("consumedCapacity") or {}).get(CAPACITY))
    if count <= 0:
        raise Refused(f"it is to have no lcore of {name}; ask for a capacity of {CAPACITY}, from 1")
    if count % devices[name].step:
        raise Refused(f"it is to have {counted(count)} of {name}, whose cores have {devices[name].step} each")
    return Share(result["request"], name, count, result.get("shareID") or "")


def _count(quantity: Any) -> int:
    if quantity is None:
        text = f"it does not say how many {CAPACITY} it consumes; does the API server have DRAConsumableCapacity?"
        raise Refused(text)
    if not (found := _QUANTITY.fullmatch(str(quantity))):
        raise Refused(f"{printable(str(quantity)[:40])!r} is no number of lcores")
    return int(found[1]) * _UNITS[found[2]]
