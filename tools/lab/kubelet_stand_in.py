# SPDX-License-Identifier: BSD-3-Clause
"""A STAND-IN for kubelet: finds a driver's registration socket and calls it as kubelet does.

It speaks through another implementation of gRPC and of protocol buffers than the driver does.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
from pydra.core.generated.dra import dra_pb2, dra_pb2_grpc
from pydra.core.generated.pluginregistration import pluginregistration_pb2, pluginregistration_pb2_grpc

from lab.processes import DEADLINE, eventually
from mtlshm.dra import messages, protobuf

Named = tuple[str, str, str]  # namespace, name and UID of a claim


class Kubelet:
    """With its directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._channels: list[grpc.Channel] = []

    def sockets(self) -> list[Path]:
        """For registration, as kubelet finds them: not those whose names start with a dot."""
        registry = self.directory / "plugins_registry"
        return [path for path in registry.glob("*") if not path.name.startswith(".")] if registry.is_dir() else []

    def info(self) -> Any:
        """What the driver says of itself."""
        (path,) = eventually(self.sockets)
        stub = pluginregistration_pb2_grpc.RegistrationStub(self._channel(path))
        return stub.GetInfo(pluginregistration_pb2.InfoRequest(), timeout=DEADLINE, wait_for_ready=True)

    def tell_status(self, registered: bool, error: str = "") -> None:
        (path,) = eventually(self.sockets)
        stub = pluginregistration_pb2_grpc.RegistrationStub(self._channel(path))
        status = pluginregistration_pb2.RegistrationStatus(plugin_registered=registered, error=error)
        stub.NotifyRegistrationStatus(status, timeout=DEADLINE, wait_for_ready=True)

    def prepare(self, *claims: Named, timeout: float = DEADLINE) -> dict[str, Any]:
        request = dra_pb2.NodePrepareResourcesRequest(claims=map(_claim, claims))
        return dict(self._driver().NodePrepareResources(request, timeout=timeout, wait_for_ready=True).claims)

    def unprepare(self, *claims: Named) -> dict[str, Any]:
        request = dra_pb2.NodeUnprepareResourcesRequest(claims=map(_claim, claims))
        return dict(self._driver().NodeUnprepareResources(request, timeout=DEADLINE, wait_for_ready=True).claims)

    def health(self, version: str) -> messages.WatchResponse:
        """What it hears first."""
        call = self._channel(Path(self.info().endpoint)).unary_stream(
            f"/{version}.DRAResourceHealth/NodeWatchResources",
            request_serializer=protobuf.encode,
            response_deserializer=lambda data: protobuf.decode(messages.WatchResponse, data),
        )
        stream = call(messages.WatchRequest(), timeout=DEADLINE, wait_for_ready=True)
        first: messages.WatchResponse = next(stream)
        stream.cancel()
        return first

    def _driver(self) -> Any:
        return dra_pb2_grpc.DRAPluginStub(self._channel(Path(self.info().endpoint)))

    def _channel(self, path: Path) -> grpc.Channel:
        # Channels to one path share a connection, and wait for a while after one that failed.
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_reconnect_backoff_ms", 100)]
        self._channels.append(channel := grpc.insecure_channel(f"unix:{path}", options))
        return channel

    def close(self) -> None:
        for channel in self._channels:
            channel.close()
        self._channels.clear()


def _claim(named: Named) -> Any:
    namespace, name, uid = named
    return dra_pb2.Claim(namespace=namespace, name=name, uid=uid)


@contextmanager
def kubelet(directory: Path) -> Iterator[Kubelet]:
    made = Kubelet(directory)
    try:
        yield made
    finally:
        made.close()
