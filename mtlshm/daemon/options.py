# SPDX-License-Identifier: BSD-3-Clause
"""The daemon's settings: options on the command line, variables in the environment, keys in the settings file."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import click

from mtlshm import CpuSet, config
from mtlshm.daemon.exporter import Outlet
from mtlshm.errors import reason
from mtlshm.legacy import lending
from mtlshm.legacy.lock import DEFAULT_LOCK
from mtlshm.legacy.table import default_key, parse_key
from mtlshm.manager_client import served_socket
from mtlshm.net import places

_LEVELS = ("debug", "info", "warning", "error")


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings, by the names of their options; --config and --teardown are none."""

    segment: str | None  # None: config decides
    log_level: str
    socket: str  # a path; empty: none is served
    socket_mode: int
    socket_group: str
    legacy: int | CpuSet | Literal["off"] | None  # how many lcores to lend, or which; None: as many as seem right
    legacy_key: int
    legacy_lock: str
    xdp: str
    umem_limit: int  # MiB
    metrics: Outlet | None
    state: Path
    pins: Path


class _Mode(click.ParamType):  # type: ignore[type-arg] # generic since click 8.4 only
    """File permissions, octal."""

    name = "mode"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            mode = int(value, 8)
        except ValueError:
            mode = -1
        if not 0 <= mode <= 0o777:
            self.fail(f"{value!r} is not a file mode such as 0660", param, ctx)
        return mode


class _Loan(click.ParamType):  # type: ignore[type-arg] # generic since click 8.4 only
    """How many lcores, or which, to lend to legacy processes."""

    name = "count|list|off"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | CpuSet | str:
        if value == "off" or not isinstance(value, str):
            return cast("int | CpuSet | str", value)
        try:
            return lending.parse(value)
        except ValueError as error:
            self.fail(f"{error}; or off", param, ctx)


class _Key(click.ParamType):  # type: ignore[type-arg] # generic since click 8.4 only
    """A System V key."""

    name = "key"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return parse_key(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


class _Metrics(click.ParamType):  # type: ignore[type-arg] # generic since click 8.4 only
    """Where to hand out metrics."""

    name = "unix:path|tcp:port|file:path|off"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Outlet | None:
        if not isinstance(value, str):
            return cast("Outlet | None", value)
        if value == "off":
            return None
        kind, _, place = value.partition(":")
        if kind == "tcp" and place.isascii() and place.isdecimal() and 1 <= int(place) <= 65535:
            return Outlet("tcp", str(int(place)))
        if kind == "unix" and place.startswith("/"):
            return Outlet("unix", place)
        if kind == "file" and place.startswith("/"):
            if not place.endswith(".prom"):
                self.fail(f"{value!r}: node_exporter reads files whose names end in .prom only", param, ctx)
            return Outlet("file", place)
        such = "unix:/run/imtl/metrics.sock, tcp:9464, file:/DIRECTORY/mtlshm.prom or off"
        self.fail(f"{value!r} is not such as {such}", param, ctx)


def _read_config(context: click.Context, _: click.Parameter, path: Path | None) -> Path | None:
    """Make the file's settings the defaults, below environment and flags."""
    if path is not None:
        os.environ["MTLSHMD_CONFIG"] = str(path)  # so that it is the library's as well
    found = config.file()
    if found is not None:
        known = {p.name: p for p in context.command.params if p.name and p.expose_value and p.name != "teardown"}
        try:
            context.default_map = config.read(found, known)
            for name, value in context.default_map.items():
                known[name].type_cast_value(context, value)
        except config.ConfigError as error:
            raise click.UsageError(reason(error)) from error
        except click.BadParameter as error:
            raise click.UsageError(f"{found}: {name}: {error.message}") from error
    return None if found is None else Path(found)


_OPTIONS = (
    click.option(
        "--config",
        type=click.Path(path_type=Path),
        envvar="MTLSHMD_CONFIG",
        is_eager=True,
        expose_value=False,
        callback=_read_config,
        help=f"TOML file; {config.DEFAULT_FILE} if there is one.  [env: MTLSHMD_CONFIG]",
    ),
    click.option("--segment", envvar="MTLSHM_PATH", help="Segment to serve.  [env: MTLSHM_PATH]"),
    click.option(
        "--log-level",
        type=click.Choice(_LEVELS),
        default="info",
        envvar="MTLSHMD_LOG_LEVEL",
        help="What to log, on standard error; default info.  [env: MTLSHMD_LOG_LEVEL]",
    ),
    click.option(
        "--socket",
        default=served_socket,
        envvar="MTL_MANAGER_SOCK_PATH",
        help="Where unmodified libmtl asks for lcores; empty: nowhere. Default /var/run/imtl/mtl_manager.sock for "
        "root, else imtl/mtl_manager.sock in $XDG_RUNTIME_DIR.  [env: MTL_MANAGER_SOCK_PATH]",
    ),
    click.option(
        "--socket-mode",
        type=_Mode(),
        default="0660",
        envvar="MTLSHMD_SOCKET_MODE",
        help="Of the socket's file, octal; default 0660.  [env: MTLSHMD_SOCKET_MODE]",
    ),
    click.option(
        "--socket-group",
        default="mtl",
        envvar="MTLSHMD_SOCKET_GROUP",
        help="Whose members, besides root, are served; default mtl.  [env: MTLSHMD_SOCKET_GROUP]",
    ),
    click.option(
        "--legacy",
        type=_Loan(),
        envvar="MTLSHMD_LEGACY",
        help="Lcores to lend to processes on libmtl's System V table: how many there shall be for the taking, or a "
        "list such as 4-7; 0: only take over what they have; off: leave that table alone. Default one for every 16 "
        "CPUs, but none of the last two that are free.  [env: MTLSHMD_LEGACY]",
    ),
    click.option(
        "--legacy-key",
        type=_Key(),
        default=default_key,
        envvar="MTLSHM_LEGACY_KEY",
        help="Of that table; default that of libmtl.  [env: MTLSHM_LEGACY_KEY]",
    ),
    click.option(
        "--legacy-lock",
        default=str(DEFAULT_LOCK),
        envvar="MTLSHM_LEGACY_LOCK",
        help=f"File that locks it; default {DEFAULT_LOCK}.  [env: MTLSHM_LEGACY_LOCK]",
    ),
    click.option(
        "--xdp",
        type=click.Choice(("auto", "chain", "fused", "off")),
        default="auto",
        envvar="MTLSHMD_XDP",
        help="How to load XDP programs on the interfaces that clients name: as a chain under libxdp's dispatcher, "
        "where others' can be as well; fused into one, which is faster; or, by default, as a chain where the kernel "
        "can. off: no interfaces are served, nor are they by a daemon that is not root.  [env: MTLSHMD_XDP]",
    ),
    click.option(
        "--umem-limit",
        type=click.IntRange(1),
        default=256,
        envvar="MTLSHMD_UMEM_LIMIT",
        help="MiB that an AF_XDP socket opened for a client may have, which can have one on each queue; default 256.  "
        "[env: MTLSHMD_UMEM_LIMIT]",
    ),
    click.option(
        "--metrics",
        type=_Metrics(),
        default="off",
        envvar="MTLSHMD_METRICS",
        help="Where to hand out metrics for Prometheus: at a socket (unix:PATH), at a port of 127.0.0.1 (tcp:PORT), or "
        "in a file for node_exporter (file:PATH.prom); default off.  [env: MTLSHMD_METRICS]",
    ),
    click.option(
        "--state",
        type=click.Path(path_type=Path),
        default=places.STATE,
        envvar="MTLSHMD_STATE",
        help=f"Directory for what only root may write; default {places.STATE}.  [env: MTLSHMD_STATE]",
    ),
    click.option(
        "--pins",
        type=click.Path(path_type=Path),
        default=places.PINS,
        envvar="MTLSHMD_PINS",
        help=f"Directory in a BPF file system; default {places.PINS}.  [env: MTLSHMD_PINS]",
    ),
    click.option(
        "--teardown",
        is_flag=True,
        help="Serve nobody, but remove all that daemons left: flow rules, XDP programs and pins, even if clients use "
        "them, and the segment, if nobody does.",
    ),
)


def options(function: Callable[..., None]) -> Callable[..., None]:
    """Have a click command take the settings, and --teardown."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function
