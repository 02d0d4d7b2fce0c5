# SPDX-License-Identifier: BSD-3-Clause
"""Claims become reservations, and end.

THE TABLE IS THE ONLY MEMORY. A claim's reservation has the claim's UID as its key, so whoever asks a second time finds
what there is: kubelet after a restart, or we after one. Between any two steps anybody may be killed:

    prepare     object read | reservation made, or found | CDI file written | answered
    unprepare   reservation ended | CDI file removed | answered

As long as kubelet has no answer it asks again, and each step that is done already does nothing. The reservation comes
before the file and goes before it: a file alone names a lease that is void, and gives nobody an lcore.

From the table to the file there is no await: a call that kubelet cancels is cancelled before that or after it. While a
call awaits the claim's object, the claim may be unprepared, by the next kubelet. Such a call prepares nothing any more.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from mtlshm import CpuSet, Host, MtlshmError, Smt
from mtlshm.cpuset import counted
from mtlshm.dra import cdi, naming
from mtlshm.dra.api import Api, ApiError
from mtlshm.dra.claim import Wanted, wanted
from mtlshm.dra.condition import Condition
from mtlshm.dra.devices import Device
from mtlshm.dra.messages import Claim, Prepared, Unprepared
from mtlshm.dra.messages import Device as PreparedDevice
from mtlshm.dra.refusal import Refused
from mtlshm.errors import about, reason
from mtlshm.snapshot import printable

log = logging.getLogger(__name__)

_NOT_FOUND = 404


@dataclass(eq=False, slots=True)
class _Call:
    """One claim that is being prepared."""

    uid: str
    void: bool = False


@dataclass(frozen=True, slots=True)
class Driver:
    """For one node."""

    node: str
    devices: dict[str, Device]
    api: Api
    cdi: Path
    segment: str | None = None  # opened for each claim, as there may be a new one
    sysfs: str | None = None
    condition: Condition = field(default_factory=Condition)
    _calls: set[_Call] = field(default_factory=set)

    async def prepare(self, claims: list[Claim]) -> dict[str, Prepared]:
        """Each claim for itself, whatever becomes of the others."""
        unique = {claim.uid: claim for claim in claims}
        return dict(zip(unique, await asyncio.gather(*map(self._prepare, unique.values())), strict=True))

    async def unprepare(self, claims: list[Claim]) -> dict[str, Unprepared]:
        """The same."""
        return {claim.uid: self._unprepare(claim) for claim in claims}

    async def _prepare(self, claim: Claim) -> Prepared:
        call = _Call(claim.uid)
        self._calls.add(call)
        try:
            uid = naming.checked(claim.uid)
            wish = wanted(await self._object(claim), uid, self.node, self.devices)
            if call.void:
                raise Refused("it was unprepared meanwhile")
            lcores = self._reserve(uid, f"{claim.namespace}/{claim.name}", wish)
        except (Refused, ApiError) as error:
            return Prepared(error=_failed("prepared", claim, str(error)))
        except OSError as error:
            self.condition.bad(about(error))
            return Prepared(error=_failed("prepared", claim, about(error)))
        finally:
            self._calls.remove(call)
        self.condition.good()
        log.info("%s: prepared with lcores %s", _name(claim), lcores)
        ids = [naming.cdi_id(uid)]
        return Prepared(
            [PreparedDevice([share.request], self.node, share.device, ids, share.id) for share in wish.shares]
        )

    def _unprepare(self, claim: Claim) -> Unprepared:
        """Asks no API server: the claim's object may be gone."""
        for call in self._calls:
            call.void |= call.uid == claim.uid
        try:
            uid = naming.checked(claim.uid)
            with Host(self.segment, sysfs=self.sysfs) as host:
                if there := host.reservation(naming.key(uid)):
                    host.end(there.owner)
            cdi.remove(self.cdi, uid)
        except Refused as error:
            return Unprepared(_failed("unprepared", claim, str(error)))
        except OSError as error:
            self.condition.bad(about(error))
            return Unprepared(_failed("unprepared", claim, about(error)))
        self.condition.good()
        log.info("%s: unprepared, lcores %s are free", _name(claim), there.lcores if there else "none")
        return Unprepared()

    async def _object(self, claim: Claim) -> dict[str, object]:
        namespace, name = quote(claim.namespace, safe=""), quote(claim.name, safe="")
        if not namespace or not name:
            raise Refused("it has no namespace or no name")
        try:
            return await self.api.get(f"/apis/resource.k8s.io/v1/namespaces/{namespace}/resourceclaims/{name}")
        except ApiError as error:
            if error.status == _NOT_FOUND:
                raise Refused("the API server has no such claim") from None
            raise

    def _reserve(self, uid: str, label: str, wish: Wanted) -> CpuSet:
        """The claim's lcores, from before or from now. If its containers cannot be told, from before only."""
        counts = wish.counts()
        total = sum(counts.values())
        with Host(self.segment, sysfs=self.sysfs) as host:
            key = naming.key(uid)
            there = host.reservation(key)
            if there is None:
                there = host.reserve(key, total, label=label, cpus=self._choose(host, counts))
            if len(there.lcores) != total:
                text = f"{counted(len(there.lcores))} are reserved for it ({there.lcores}), and it is to have {total}"
                raise Refused(f"{text}; when its pods are gone: mtlshm-ctl end {key}")
            try:
                cdi.write(self.cdi, uid, wish.name, there.lcores, host.lease(there.owner))
            except OSError:
                if not there.found:
                    host.end(there.owner)
                raise
            return there.lcores

    def _choose(self, host: Host, counts: dict[str, int]) -> CpuSet:
        chosen = CpuSet()
        for name, count in counts.items():
            device = self.devices[name]
            try:
                chosen |= host.choose(count, cpus=device.lcores, smt=Smt.WHOLE)
            except MtlshmError as error:
                if error.errno != errno.EBUSY:
                    raise
                text = f"{counted(count)} of {name} ({device.lcores}) are not free: {reason(error)}"
                raise Refused(f"{text}; mtlshm-ctl status says who has them") from None
        return chosen


def _name(claim: Claim) -> str:
    return printable(f"claim {claim.namespace}/{claim.name}")


def _failed(what: str, claim: Claim, why: str) -> str:
    text = f"{_name(claim)} is not {what}: {why}"
    log.error("%s", text)
    return text
