# SPDX-License-Identifier: BSD-3-Clause
"""The ResourceSlice of this node: by it the scheduler knows what there is to give.

One slice is enough: a node has a few devices, whatever the number of its lcores. It is written once. After that a watch
waits for others who change it. Kubelet does at each of its starts: it deletes the slices of its node, since it cannot
know whether their drivers still live. Then the slice is written again at once.

The slice must say what we meant. A server that does not know a field drops it without a word, and a device without
allowMultipleAllocations would be given whole to the first claim, which we could not prepare. So what the server has
kept is compared, and a slice that lacks something is taken back.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Mapping
from contextlib import aclosing
from http import HTTPStatus
from typing import Any
from urllib.parse import quote, urlencode

from mtlshm.dra.api import Api, ApiError
from mtlshm.dra.devices import Device
from mtlshm.dra.naming import CAPACITY, DRIVER

log = logging.getLogger(__name__)

SLICES = "/apis/resource.k8s.io/v1/resourceslices"
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 120.0  # seconds after a failure; a cluster has many of us


class Publisher:
    """Keeps the slice of one node as it should be."""

    def __init__(self, api: Api, node: str, devices: Mapping[str, Device]) -> None:
        self._api, self._node = api, node
        self._name = f"{node}-{DRIVER}"
        self._devices = [_published(device) for device in devices.values()]
        self._said = ""
        self._pause = _FIRST_PAUSE

    async def run(self) -> None:
        """For ever."""
        while True:
            began = time.monotonic()
            try:
                version = await self._look()
            except ApiError as error:
                if error.status != HTTPStatus.CONFLICT:  # else somebody was faster, and we look again
                    self._say(str(error))
            except (KeyError, TypeError, AttributeError) as error:
                self._say(f"what the API server says has another form than resource.k8s.io/v1 ({error!r})")
            else:
                self._said = ""
                try:
                    await self._watch(version)
                except ApiError as error:  # the slice is there; whether it still is, we see at once
                    log.debug("%s", error)
            # A server that ends watches at once, or somebody who does not let our slice be, shall not keep us busy.
            if time.monotonic() - began < self._pause:
                await asyncio.sleep(self._pause * random.uniform(0.5, 1))
                self._pause = min(2 * self._pause, _LONGEST_PAUSE)
            else:
                self._pause = _FIRST_PAUSE

    async def _look(self) -> str:
        """See that our slice is there, and no other of ours. From which version on to watch."""
        found = await self._api.get(f"{SLICES}?{self._selector()}")
        slices = {each["metadata"]["name"]: each for each in found["items"]}
        for name in slices.keys() - {self._name}:
            await self._remove(name)
        there = slices.get(self._name)
        if there is None or not self._is_ours(there):
            await self._write(there)
        return str(found["metadata"]["resourceVersion"])

    async def _write(self, there: Mapping[str, Any] | None) -> None:
        node = await self._api.get(f"/api/v1/nodes/{quote(self._node, safe='')}")
        wanted = self._slice(node["metadata"]["uid"], there)
        if there is None:
            written = await self._api.ask("POST", SLICES, wanted)
        else:
            written = await self._api.ask("PUT", f"{SLICES}/{quote(self._name, safe='')}", wanted)
        if not self._is_ours(written):
            await self._remove(self._name)
            raise ApiError("the API server drops fields of our ResourceSlice: has it DRAConsumableCapacity?")
        log.info("ResourceSlice %s is published", self._name)

    async def _remove(self, name: str) -> None:
        try:
            await self._api.ask("DELETE", f"{SLICES}/{quote(name, safe='')}")
        except ApiError as error:
            if error.status != HTTPStatus.NOT_FOUND:
                raise

    async def _watch(self, version: str) -> None:
        """Until our slice is another or gone, or the server ends it."""
        query = urlencode({"watch": "true", "resourceVersion": version})
        async with aclosing(self._api.watch(f"{SLICES}?{self._selector()}&{query}")) as events:
            async for event in events:
                match event:
                    case {"type": "ADDED" | "MODIFIED", "object": dict(there)} if self._is_ours(there):
                        continue
                return

    def _selector(self) -> str:
        return urlencode({"fieldSelector": f"spec.driver={DRIVER},spec.nodeName={self._node}"})

    def _spec(self) -> dict[str, Any]:
        return {
            "driver": DRIVER,
            "nodeName": self._node,
            "pool": {"name": self._node, "resourceSliceCount": 1},
            "devices": self._devices,
        }

    def _slice(self, node_uid: str, there: Mapping[str, Any] | None) -> dict[str, Any]:
        owner = {"apiVersion": "v1", "kind": "Node", "name": self._node, "uid": node_uid}  # it goes with its node
        metadata: dict[str, Any] = {"name": self._name, "ownerReferences": [owner]}
        spec = self._spec()
        generation = 1
        if there is not None:
            metadata["resourceVersion"] = there["metadata"]["resourceVersion"]
            generation = there.get("spec", {}).get("pool", {}).get("generation", 0) + 1
        spec["pool"]["generation"] = generation
        return {"apiVersion": "resource.k8s.io/v1", "kind": "ResourceSlice", "metadata": metadata, "spec": spec}

    def _is_ours(self, there: Mapping[str, Any]) -> bool:
        named = there.get("metadata", {}).get("name") == self._name
        return named and _has(there.get("spec"), self._spec())

    def _say(self, text: str) -> None:
        if text != self._said:  # once, until it is another
            log.error("no ResourceSlice, so no new pods: %s", text)
        self._said = text


def _published(device: Device) -> dict[str, Any]:
    step = str(device.step)
    policy = {"default": step, "validRange": {"min": step, "step": step}}
    return {
        "name": device.name,
        "allowMultipleAllocations": True,
        "attributes": {"numaNode": {"int": device.node}},
        "capacity": {CAPACITY: {"value": str(len(device.lcores)), "requestPolicy": policy}},
    }


def _has(there: Any, wanted: Any) -> bool:
    """Is all that we want there? A server may add fields that later versions have."""
    if isinstance(wanted, dict):
        return isinstance(there, dict) and all(_has(there.get(key), value) for key, value in wanted.items())
    if isinstance(wanted, list):
        return (
            isinstance(there, list)
            and len(there) == len(wanted)
            and all(_has(*pair) for pair in zip(there, wanted, strict=True))
        )
    return bool(there == wanted)
