# SPDX-License-Identifier: BSD-3-Clause
"""The messages between kubelet and a DRA driver: registration, claims, health."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from mtlshm.dra.protobuf import mapped, message, messages, number, text, texts

# --- pluginregistration ------------------------------------------------------------------------------


@dataclass
class InfoRequest:
    """Kubelet asks who listens."""


@dataclass
class PluginInfo:
    """What listens, and where kubelet is to talk to it."""

    type: str = text(1)
    name: str = text(2)
    endpoint: str = text(3)
    supported_versions: list[str] = texts(4)


@dataclass
class RegistrationStatus:
    """What kubelet made of that."""

    plugin_registered: bool = number(1, bool)
    error: str = text(2)


@dataclass
class RegistrationStatusResponse:
    """Empty."""


# --- k8s.io.kubelet.pkg.apis.dra.v1 ------------------------------------------------------------------


@dataclass
class Claim:
    """Names a ResourceClaim."""

    namespace: str = text(1)
    uid: str = text(2)
    name: str = text(3)


@dataclass
class Device:
    """One that was prepared."""

    request_names: list[str] = texts(1)
    pool_name: str = text(2)
    device_name: str = text(3)
    cdi_device_ids: list[str] = texts(4)
    share_id: str = text(5)


@dataclass
class PrepareRequest:
    """Several claims of one pod."""

    claims: list[Claim] = messages(1, Claim)


@dataclass
class Prepared:
    """Of one claim: its devices, or why there are none."""

    devices: list[Device] = messages(1, Device)
    error: str = text(2)


@dataclass
class PrepareResponse:
    """By UID of the claim."""

    claims: dict[str, Prepared] = mapped(1, Prepared)


@dataclass
class UnprepareRequest:
    """Several claims of one pod."""

    claims: list[Claim] = messages(1, Claim)


@dataclass
class Unprepared:
    """Of one claim: why it still has something."""

    error: str = text(1)


@dataclass
class UnprepareResponse:
    """By UID of the claim."""

    claims: dict[str, Unprepared] = mapped(1, Unprepared)


# --- v1alpha1 and v1, which are alike ----------------------------------------------------------------


class Health(IntEnum):
    """Of a device."""

    UNKNOWN = 0
    HEALTHY = 1
    UNHEALTHY = 2


@dataclass
class DeviceIdentifier:
    """Names a device of this driver."""

    pool_name: str = text(1)
    device_name: str = text(2)


@dataclass
class DeviceHealth:
    """How one device is, and since when."""

    device: DeviceIdentifier = message(1, DeviceIdentifier)
    health: Health = number(2, Health)
    last_updated_time: int = number(3)  # seconds of the epoch
    health_check_timeout_seconds: int = number(4)
    message: str = text(5)


@dataclass
class WatchRequest:
    """Kubelet wants to hear of health from now on."""


@dataclass
class WatchResponse:
    """All devices."""

    devices: list[DeviceHealth] = messages(1, DeviceHealth)
