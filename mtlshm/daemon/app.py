# SPDX-License-Identifier: BSD-3-Clause
"""mtlshmd: options, signals, and the duties wired together."""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import os
import signal
import sys
from contextlib import AsyncExitStack, ExitStack, closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from mtlshm import Busy, CpuSet, Host, Instance, Kind, MtlshmError, NoSegment, OtherLayout, access, config
from mtlshm.daemon.bounded_log import Bounded
from mtlshm.daemon.examiner import Examiner
from mtlshm.daemon.legacy import Legacy
from mtlshm.daemon.log_handler import LogHandler
from mtlshm.daemon.manager_socket import ManagerSocket
from mtlshm.daemon.on_demand import OnDemand
from mtlshm.daemon.reaper import Reaper
from mtlshm.daemon.service import Service
from mtlshm.errors import about, reason
from mtlshm.legacy import lending
from mtlshm.legacy.lock import DEFAULT_LOCK
from mtlshm.legacy.table import default_key, parse_key
from mtlshm.manager_client import served_socket
from mtlshm.net import places

if TYPE_CHECKING:
    from mtlshm.daemon.interfaces import Interfaces

log = logging.getLogger("mtlshmd")

_SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
_LEVELS = ("debug", "info", "warning", "error")
_LEFT_BY_DEFAULT = 2  # lcores that are not lent while no more are free
_CHANGES_AT_ONCE = {"log_level"}


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


def _read_config(context: click.Context, _: click.Parameter, path: Path | None) -> Path | None:
    """Make the file's settings the defaults, below environment and flags."""
    if path is not None:
        os.environ["MTLSHMD_CONFIG"] = str(path)  # so that it is the library's as well
    path = config.file()
    if path is not None:
        known = {p.name: p for p in context.command.params if p.name and p.expose_value and p.name != "teardown"}
        try:
            context.default_map = config.read(path, known)
            for name, value in context.default_map.items():
                known[name].type_cast_value(context, value)
        except config.ConfigError as error:
            raise click.UsageError(reason(error)) from error
        except click.BadParameter as error:
            raise click.UsageError(f"{path}: {name}: {error.message}") from error
    return path


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    envvar="MTLSHMD_CONFIG",
    is_eager=True,
    expose_value=False,
    callback=_read_config,
    help=f"TOML file; {config.DEFAULT_FILE} if there is one.  [env: MTLSHMD_CONFIG]",
)
@click.option("--segment", envvar="MTLSHM_PATH", help="Segment to serve.  [env: MTLSHM_PATH]")
@click.option(
    "--log-level",
    type=click.Choice(_LEVELS),
    default="info",
    envvar="MTLSHMD_LOG_LEVEL",
    help="What to log, on standard error; default info.  [env: MTLSHMD_LOG_LEVEL]",
)
@click.option(
    "--socket",
    default=served_socket,
    envvar="MTL_MANAGER_SOCK_PATH",
    help="Where unmodified libmtl asks for lcores; empty: nowhere. Default /var/run/imtl/mtl_manager.sock for root, "
    "else imtl/mtl_manager.sock in $XDG_RUNTIME_DIR.  [env: MTL_MANAGER_SOCK_PATH]",
)
@click.option(
    "--socket-mode",
    type=_Mode(),
    default="0660",
    envvar="MTLSHMD_SOCKET_MODE",
    help="Of the socket's file, octal; default 0660.  [env: MTLSHMD_SOCKET_MODE]",
)
@click.option(
    "--socket-group",
    default="mtl",
    envvar="MTLSHMD_SOCKET_GROUP",
    help="Whose members, besides root, are served; default mtl.  [env: MTLSHMD_SOCKET_GROUP]",
)
@click.option(
    "--legacy",
    type=_Loan(),
    envvar="MTLSHMD_LEGACY",
    help="Lcores to lend to processes on libmtl's System V table: how many there shall be for the taking, or a list "
    "such as 4-7; 0: only take over what they have; off: leave that table alone. Default one for every 16 CPUs, "
    "but none of the last two that are free.  [env: MTLSHMD_LEGACY]",
)
@click.option(
    "--legacy-key",
    type=_Key(),
    default=default_key,
    envvar="MTLSHM_LEGACY_KEY",
    help="Of that table; default that of libmtl.  [env: MTLSHM_LEGACY_KEY]",
)
@click.option(
    "--legacy-lock",
    default=str(DEFAULT_LOCK),
    envvar="MTLSHM_LEGACY_LOCK",
    help=f"File that locks it; default {DEFAULT_LOCK}.  [env: MTLSHM_LEGACY_LOCK]",
)
@click.option(
    "--xdp",
    type=click.Choice(("auto", "chain", "fused", "off")),
    default="auto",
    envvar="MTLSHMD_XDP",
    help="How to load XDP programs on the interfaces that clients name: as a chain under libxdp's dispatcher, where "
    "others' can be as well; fused into one, which is faster; or, by default, as a chain where the kernel can. off: no "
    "interfaces are served, nor are they by a daemon that is not root.  [env: MTLSHMD_XDP]",
)
@click.option(
    "--umem-limit",
    type=click.IntRange(1),
    default=256,
    envvar="MTLSHMD_UMEM_LIMIT",
    help="MiB that an AF_XDP socket opened for a client may have, which can have one on each queue; default 256.  "
    "[env: MTLSHMD_UMEM_LIMIT]",
)
@click.option(
    "--state",
    type=click.Path(path_type=Path),
    default=places.STATE,
    envvar="MTLSHMD_STATE",
    help=f"Directory for what only root may write; default {places.STATE}.  [env: MTLSHMD_STATE]",
)
@click.option(
    "--pins",
    type=click.Path(path_type=Path),
    default=places.PINS,
    envvar="MTLSHMD_PINS",
    help=f"Directory in a BPF file system; default {places.PINS}.  [env: MTLSHMD_PINS]",
)
@click.option(
    "--teardown",
    is_flag=True,
    help="Serve nobody, but remove all that daemons left: flow rules, XDP programs and pins, even if clients use them, "
    "and the segment, if nobody does.",
)
@click.version_option(package_name="mtlshm")
@click.pass_context
def command(context: click.Context, /, teardown: bool, **settings: Any) -> None:
    """Collect what dead MTL processes left in the shared table of lcores, and serve libmtl from it.

    Settings come from the file, the environment and the flags, the later before the earlier. SIGHUP reads them again,
    SIGTERM and SIGINT stop the daemon; what living processes hold stays theirs. Needs no root, only
    permission to write the segment.

    Exit status: 0 stopped by a signal, or all is torn down; 1 cannot serve the segment, or tear down all; 2 wrong
    options or configuration; 3 the segment is of another version and in use.
    """
    handler = LogHandler(sys.stderr.fileno())
    handler.addFilter(Bounded())
    logging.basicConfig(handlers=[handler], format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger().setLevel(settings["log_level"].upper())
    try:
        asyncio.run(_tear_down(settings) if teardown else _serve(settings))
    except OSError as error:
        log.error("%s", about(error))
        context.exit(3 if isinstance(error, OtherLayout) else 1)


async def _serve(settings: dict[str, Any]) -> None:
    loop = asyncio.get_running_loop()
    service = Service()
    stopped: asyncio.Future[None] = loop.create_future()

    def stop(error: MtlshmError | None = None) -> None:
        if stopped.done():
            return
        if error:
            stopped.set_exception(error)
        else:
            stopped.set_result(None)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    loop.add_signal_handler(signal.SIGHUP, _reload, settings)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)

    async with AsyncExitStack() as duties:
        duties.enter_context(closing(service))
        host = duties.enter_context(Host(settings["segment"]))
        access.check_owner(host, settings["socket_group"])
        if warning := access.give_to_group(host):
            log.warning("%s", warning)
        me = duties.enter_context(_register(host))
        reaper = duties.enter_context(closing(Reaper(host, me.owner, stop)))
        reaper.start()
        examiner = duties.enter_context(closing(Examiner(host)))
        examiner.start()
        loans: Legacy | None = None
        with suppress(MtlshmError):  # no descriptor is left: the next start, or `mtlshm-ctl legacy reclaim`
            if home := lending.end_lost_pools(host):
                log.info("lcores %s were lent to a legacy table that is gone: they are home", home)
        leave = settings["legacy"] == "off"
        if not leave or lending.is_anything_lent(host):  # an earlier daemon may have lent some
            key, lock = settings["legacy_key"], Path(settings["legacy_lock"])
            lent, spare = 0 if leave else settings["legacy"], 0
            if lent is None:
                lent, spare = (os.cpu_count() or 1) // 16, _LEFT_BY_DEFAULT
            try:
                legacy = Legacy(host, lent, key, lock, spare=spare, leave=leave)
                await legacy.start()
                duties.callback(legacy.close)
                loans = legacy
            except OSError as error:  # anyone may make the lock file and the table: nobody shall stop us by that
                log.error("legacy processes are not served: %s", reason(error))
        if path := settings["socket"]:
            gid = _gid(settings["socket_group"])
            interfaces = duties.enter_context(closing(_interfaces(settings, gid, duties)))
            server = ManagerSocket(host, Path(path), settings["socket_mode"], gid, interfaces, service, loans)
            duties.enter_context(closing(server))
            duties.push_async_callback(server.finish)
            try:
                server.start()
            except PermissionError as error:
                log.error("libmtl is not served at %s: %s; name a --socket where uid %d may", path, error, os.geteuid())
        else:
            service.forget_all()  # or clients would wait for ever that had connected to an earlier daemon
        gc.collect()
        gc.freeze()  # what is here now stays: later collections need not walk it
        log.info("ready: %s, %d living instances", host.path, len(reaper))
        service.notify("READY=1")
        await stopped
        service.notify("STOPPING=1")
        log.info("stopping; what living instances hold stays theirs")


def _interfaces(settings: dict[str, Any], gid: int | None, duties: AsyncExitStack) -> OnDemand:
    """Served at once if an earlier daemon served any, else once a client names one."""
    if settings["xdp"] == "off":
        return OnDemand(None)
    if os.geteuid() != 0:
        log.info("not root: interfaces are not served")
        return OnDemand(None)

    async def make() -> Interfaces:
        from mtlshm.daemon.interfaces import Interfaces
        from mtlshm.net.attached import Way
        from mtlshm.net.ledger import Ledger, patiently
        from mtlshm.net.tool import Tools
        from mtlshm.net.xdp import Loader

        tools = Tools(settings["state"])
        made = Interfaces(
            await patiently(Ledger, settings["state"], gid=os.getegid() if gid is None else gid, patience=0),
            tools,
            Loader(tools, settings["pins"]),
            Way(settings["xdp"]),
            settings["umem_limit"] << 20,
        )
        try:
            await made.start()
        except BaseException:
            made.close()
            raise
        return made

    async def take_up() -> None:
        try:
            await interfaces.start()
        except OSError as error:
            log.error("interfaces are not served: %s", reason(error))

    interfaces = OnDemand(make)
    if (settings["state"] / "ledger").exists():
        # Lcores need not wait for it.
        duties.callback(asyncio.create_task(take_up()).cancel)
    return interfaces


async def _tear_down(settings: dict[str, Any]) -> None:
    """Remove what is ours. OSError if something stays that could not be removed, or if another daemon serves."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    with ExitStack() as held:
        host = me = None
        with suppress(NoSegment):
            host = held.enter_context(Host(settings["segment"], create=False))
            me = held.enter_context(_register(host))  # so that no other daemon starts
        if os.geteuid() == 0:
            from mtlshm.daemon.teardown import tear_down

            if not await tear_down(settings["state"], settings["pins"]):
                raise OSError(errno.EIO, "not all could be removed; when that is mended, run it again")
        elif (settings["state"] / "ledger").exists():
            raise OSError(errno.EPERM, f"only root may take away what is in {settings['state']}")
        if host and me:
            me.close()
            try:
                host.unlink()
            except Busy as error:
                log.info("%s; it stays with its users", reason(error))
    log.info("torn down")


def _gid(group: str) -> int | None:
    if (found := access.gid(group)) is None:
        log.warning("there is no group %s: the socket is for root and for uid %d only", group, os.geteuid())
    return found


def _register(host: Host) -> Instance:
    try:
        return host.register("mtlshmd", kind=Kind.DAEMON)
    except MtlshmError as error:
        if error.errno == errno.EEXIST and (other := host.snapshot().daemon):
            error.strerror = f"{error.strerror} (pid {other.pid} on {other.hostname})"
        raise


def _reload(old: dict[str, Any]) -> None:
    """SIGHUP: what can change while we run, changes; what is wrong leaves everything as it was."""
    try:
        settings = command.make_context("mtlshmd", sys.argv[1:]).params
    except click.ClickException as error:
        log.error("configuration not reloaded: %s", error.format_message())
        return
    logging.getLogger().setLevel(settings["log_level"].upper())
    if later := [key for key in old if settings[key] != old[key] and key not in _CHANGES_AT_ONCE]:
        log.warning("%s: changes at the next start only", ", ".join(later))
    log.info("configuration reloaded")


def main() -> None:
    """Entry point."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # until there is somebody to handle them
    command(prog_name="mtlshmd")
