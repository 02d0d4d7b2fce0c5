# SPDX-License-Identifier: BSD-3-Clause
"""What kubelet calls: at the registration socket, and at the driver's own."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from grpclib import GRPCError, Status
from grpclib.const import Cardinality, Handler
from grpclib.encoding.base import CodecBase
from grpclib.server import Stream

from mtlshm.dra import messages, naming, protobuf
from mtlshm.dra.driver import Driver
from mtlshm.snapshot import printable

log = logging.getLogger(__name__)

_Request = TypeVar("_Request")
_Reply = TypeVar("_Reply")

_DRA = "/k8s.io.kubelet.pkg.apis.dra.v1.DRAPlugin"
_REGISTRATION = "/pluginregistration.Registration"
_HEALTH_VERSIONS = ("v1alpha1", "v1")
VERSIONS = ["v1.DRAPlugin", *(f"{version}.DRAResourceHealth" for version in _HEALTH_VERSIONS)]


_FOR_EVER = 2**31 - 1  # seconds for which kubelet believes it; while the stream lasts we say what changes


class Codec(CodecBase):
    """Messages of ours as grpclib wants them."""

    __content_subtype__ = "proto"

    def encode(self, message: Any, message_type: Any) -> bytes:
        """The bytes of a message."""
        return protobuf.encode(message)

    def decode(self, data: bytes, message_type: Any) -> Any:
        """The message. GRPCError, for the caller, if it is none."""
        try:
            return protobuf.decode(message_type, data)
        except ValueError as error:
            raise GRPCError(Status.INVALID_ARGUMENT, str(error)) from None


class Registration:
    """Tells kubelet of the driver."""

    def __init__(self, endpoint: str) -> None:
        self._info = messages.PluginInfo("DRAPlugin", naming.DRIVER, endpoint, VERSIONS)

    async def _get_info(self, _: messages.InfoRequest) -> messages.PluginInfo:
        return self._info

    async def _notify(self, status: messages.RegistrationStatus) -> messages.RegistrationStatusResponse:
        if status.plugin_registered:
            log.info("kubelet has registered %s", naming.DRIVER)
        else:
            log.error("kubelet does not register %s: %s", naming.DRIVER, printable(status.error))
        return messages.RegistrationStatusResponse()

    def __mapping__(self) -> dict[str, Handler]:
        return {
            f"{_REGISTRATION}/GetInfo": _unary(self._get_info, messages.InfoRequest, messages.PluginInfo),
            f"{_REGISTRATION}/NotifyRegistrationStatus": _unary(
                self._notify, messages.RegistrationStatus, messages.RegistrationStatusResponse
            ),
        }


class Claims:
    """Prepares claims and ends them."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    async def _prepare(self, request: messages.PrepareRequest) -> messages.PrepareResponse:
        return messages.PrepareResponse(await self._driver.prepare(request.claims))

    async def _unprepare(self, request: messages.UnprepareRequest) -> messages.UnprepareResponse:
        return messages.UnprepareResponse(await self._driver.unprepare(request.claims))

    def __mapping__(self) -> dict[str, Handler]:
        return {
            f"{_DRA}/NodePrepareResources": _unary(self._prepare, messages.PrepareRequest, messages.PrepareResponse),
            f"{_DRA}/NodeUnprepareResources": _unary(
                self._unprepare, messages.UnprepareRequest, messages.UnprepareResponse
            ),
        }


class Health:
    """Says how the devices are. Without it kubelet would ask again every five seconds, and log that it failed."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    async def _watch(self, stream: Stream[messages.WatchRequest, messages.WatchResponse]) -> None:
        await stream.recv_message()
        async for trouble in self._driver.condition.changes():
            health = messages.Health.UNHEALTHY if trouble else messages.Health.HEALTHY
            now = int(time.time())
            devices = [
                messages.DeviceHealth(
                    messages.DeviceIdentifier(self._driver.node, name), health, now, _FOR_EVER, trouble
                )
                for name in self._driver.devices
            ]
            await stream.send_message(messages.WatchResponse(devices))

    def __mapping__(self) -> dict[str, Handler]:
        handler = Handler(self._watch, Cardinality.UNARY_STREAM, messages.WatchRequest, messages.WatchResponse)
        return {f"/{version}.DRAResourceHealth/NodeWatchResources": handler for version in _HEALTH_VERSIONS}


def _unary(
    answer: Callable[[_Request], Awaitable[_Reply]], request_type: type[_Request], reply_type: type[_Reply]
) -> Handler:
    async def handle(stream: Stream[_Request, _Reply]) -> None:
        request = await stream.recv_message()
        if request is None:
            raise GRPCError(Status.INVALID_ARGUMENT, "there is no message in this call")
        await stream.send_message(await answer(request))

    return Handler(handle, Cardinality.UNARY_UNARY, request_type, reply_type)
