# SPDX-License-Identifier: BSD-3-Clause
"""The daemon's settings: options on the command line, variables in the environment, keys in the settings file."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import click
from click.core import ParameterSource

from mtlshm import CpuSet, config
from mtlshm.daemon.exporter import Outlet
from mtlshm.errors import reason
from mtlshm.legacy import lending
from mtlshm.legacy.lock import DEFAULT_LOCK
from mtlshm.legacy.table import default_key, parse_key
from mtlshm.manager_client import served_socket
from mtlshm.net import places

_NO_SETTINGS = {"check", "teardown"}
_LEVELS = ("debug", "info", "warning", "error")


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings, by the names of their options; --config, --check and --teardown are none."""

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
        known = {p.name: p for p in context.command.params if p.name and p.expose_value and p.name not in _NO_SETTINGS}
        try:
            context.default_map = config.read(found, known)
            for name, value in context.default_map.items():
                known[name].type_cast_value(context, value)
        except config.ConfigError as error:
            raise click.UsageError(reason(error)) from error
        except click.BadParameter as error:
            raise click.UsageError(f"{config.place(found, name)}: {name}: {error.message}") from error
    return None if found is None else Path(found)


class _Setting(click.Option):
    """An option whose errors name the environment variable, if the value came from there."""

    def get_error_hint(self, ctx: click.Context | None) -> str:
        from_environment = ctx and self.name and ctx.get_parameter_source(self.name) is ParameterSource.ENVIRONMENT
        return str(self.envvar) if from_environment else super().get_error_hint(ctx)


def _setting(flag: str, variable: str, *, help: str, **more: Any) -> Callable[..., Any]:
    """One that an environment variable sets, too."""
    return click.option(flag, cls=_Setting, envvar=variable, help=f"{help}  [env: {variable}]", **more)


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
    _setting("--segment", "MTLSHM_PATH", help="Segment to serve."),
    _setting(
        "--log-level",
        "MTLSHMD_LOG_LEVEL",
        type=click.Choice(_LEVELS),
        default="info",
        help="What to log, on standard error; default info.",
    ),
    _setting(
        "--socket",
        "MTL_MANAGER_SOCK_PATH",
        default=served_socket,
        help="Socket at which unmodified libmtl asks for lcores; empty: none. Default /var/run/imtl/mtl_manager.sock "
        "for root, else imtl/mtl_manager.sock in $XDG_RUNTIME_DIR.",
    ),
    _setting(
        "--socket-mode",
        "MTLSHMD_SOCKET_MODE",
        type=_Mode(),
        default="0660",
        help="Mode of the socket's file, octal; default 0660.",
    ),
    _setting(
        "--socket-group",
        "MTLSHMD_SOCKET_GROUP",
        default="mtl",
        help="Group whose members are served besides root; default mtl.",
    ),
    _setting(
        "--legacy",
        "MTLSHMD_LEGACY",
        type=_Loan(),
        help="Lcores to lend to processes on libmtl's System V table: how many to keep free for them, or a list such "
        "as 4-7. 0 lends none, but takes over what they have; off leaves that table alone. Default: one for every 16 "
        "CPUs, but not the last two that are free.",
    ),
    _setting(
        "--legacy-key",
        "MTLSHM_LEGACY_KEY",
        type=_Key(),
        default=default_key,
        help="Key of that table; default libmtl's own.",
    ),
    _setting(
        "--legacy-lock",
        "MTLSHM_LEGACY_LOCK",
        default=str(DEFAULT_LOCK),
        help=f"File that locks that table; default {DEFAULT_LOCK}.",
    ),
    _setting(
        "--xdp",
        "MTLSHMD_XDP",
        type=click.Choice(("auto", "chain", "fused", "off")),
        default="auto",
        help="How to load XDP programs on the interfaces that clients name. chain: under libxdp's dispatcher, beside "
        "programs of others. fused: as one program, which is faster. auto, the default: chain where the kernel can, "
        "else fused. off: serve no interfaces. A daemon that is not root serves none either.",
    ),
    _setting(
        "--umem-limit",
        "MTLSHMD_UMEM_LIMIT",
        type=click.IntRange(1),
        default=256,
        help="Most memory of an AF_XDP socket that a client asks for, in MiB; default 256. A client can have one "
        "socket on each queue.",
    ),
    _setting(
        "--metrics",
        "MTLSHMD_METRICS",
        type=_Metrics(),
        default="off",
        help="Where to hand out metrics for Prometheus: at a socket (unix:PATH), at a port of 127.0.0.1 (tcp:PORT), or "
        "in a file for node_exporter (file:PATH.prom); default off.",
    ),
    _setting(
        "--state",
        "MTLSHMD_STATE",
        type=click.Path(path_type=Path),
        default=places.STATE,
        help=f"Directory for the ledger, which only root may write; default {places.STATE}.",
    ),
    _setting(
        "--pins",
        "MTLSHMD_PINS",
        type=click.Path(path_type=Path),
        default=places.PINS,
        help=f"Directory for pins, in a BPF file system; default {places.PINS}.",
    ),
    click.option(
        "--check",
        is_flag=True,
        help="Serve nobody, but say what is wrong with options, environment and settings file; exit status 2 if "
        "something is.",
    ),
    click.option(
        "--teardown",
        is_flag=True,
        help="Remove all that daemons left, and serve nobody: flow rules, XDP programs and pins even if clients use "
        "them, the segment if nobody uses it.",
    ),
)


def options(function: Callable[..., None]) -> Callable[..., None]:
    """Have a click command take the settings, --check and --teardown."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function
