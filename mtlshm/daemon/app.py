# SPDX-License-Identifier: BSD-3-Clause
"""mtlshmd: the command, signals, and the duties wired together."""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import os
import signal
import sys
from contextlib import AsyncExitStack, ExitStack, closing, suppress
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mtlshm import Busy, Host, Instance, Kind, MtlshmError, NoSegment, OtherLayout, access
from mtlshm.daemon.bounded_log import Bounded
from mtlshm.daemon.examiner import Examiner
from mtlshm.daemon.exporter import Outlet, Source, export
from mtlshm.daemon.journal import JournalFormatter, goes_to_journal
from mtlshm.daemon.lazy import Lazy
from mtlshm.daemon.legacy import Legacy
from mtlshm.daemon.log_handler import LogHandler
from mtlshm.daemon.manager_socket import ManagerSocket
from mtlshm.daemon.options import Settings, options
from mtlshm.daemon.reaper import Reaper
from mtlshm.daemon.selector import Selector
from mtlshm.daemon.service import Service
from mtlshm.daemon.watchdog import Watchdog
from mtlshm.errors import about, reason
from mtlshm.legacy import lending

if TYPE_CHECKING:
    from mtlshm.daemon.interfaces import Interfaces

log = logging.getLogger("mtlshmd")

_SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
_LEFT_BY_DEFAULT = 2  # lcores that are not lent while no more are free
_CHANGES_AT_ONCE = {"log_level"}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@options
@click.version_option(package_name="mtlshm")
@click.pass_context
def command(context: click.Context, /, check: bool, teardown: bool, **given: Any) -> None:
    """Free the lcores of dead MTL processes in the shared table, and serve libmtl from it.

    Flags override environment variables, and these override the settings file. SIGHUP reads the settings again. SIGTERM
    and SIGINT stop the daemon; living processes keep what they hold. It needs permission to write the segment, and no
    root.

    Exit status: 0 a signal stopped it, or the teardown removed everything; 1 it cannot serve the segment, or the
    teardown could not remove everything; 2 wrong options or configuration; 3 the segment is of another version and in
    use.
    """
    settings = Settings(**given)
    if check:
        return  # what is wrong with them has been said by now
    handler = LogHandler(sys.stderr.fileno())
    handler.addFilter(Bounded())
    if goes_to_journal(sys.stderr.fileno()):
        handler.setFormatter(JournalFormatter())
    logging.basicConfig(handlers=[handler], format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger().setLevel(settings.log_level.upper())
    try:
        selector = Selector()
        with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selector)) as runner:
            runner.run(_tear_down(settings) if teardown else _serve(settings, selector))
    except OSError as error:
        log.error("%s", about(error))
        context.exit(3 if isinstance(error, OtherLayout) else 1)


async def _serve(settings: Settings, selector: Selector) -> None:
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
        host = duties.enter_context(Host(settings.segment))
        access.check_owner(host, settings.socket_group)
        if warning := access.give_to_group(host):
            log.warning("%s", warning)
        me = duties.enter_context(_register(host))
        reaper = duties.enter_context(closing(Reaper(host, me.owner, stop, selector)))
        reaper.start()
        examiner = duties.enter_context(closing(Examiner(host)))
        examiner.start()
        loans: Legacy | None = None
        with suppress(MtlshmError):  # no descriptor is left: the next start, or `mtlshm-ctl legacy reclaim`
            if home := lending.end_lost_pools(host):
                log.info("lcores %s were lent to a legacy table that is gone: they are home", home)
        leave = settings.legacy == "off"
        if not leave or lending.is_anything_lent(host):  # an earlier daemon may have lent some
            key, lock = settings.legacy_key, Path(settings.legacy_lock)
            lent, spare = (0 if settings.legacy == "off" else settings.legacy), 0
            if lent is None:
                lent, spare = (os.cpu_count() or 1) // 16, _LEFT_BY_DEFAULT
            try:
                legacy = Legacy(host, lent, key, lock, spare=spare, leave=leave)
                await legacy.start()
                duties.callback(legacy.close)
                loans = legacy
            except OSError as error:  # anyone may make the lock file and the table: nobody shall stop us by that
                log.error("legacy processes are not served: %s", reason(error))
        interfaces: Lazy[Interfaces] | None = None
        if path := settings.socket:
            gid = _gid(settings.socket_group)
            interfaces = duties.enter_context(closing(_interfaces(settings, host, gid, duties)))
            server = ManagerSocket(host, Path(path), settings.socket_mode, gid, interfaces, service, selector, loans)
            duties.enter_context(closing(server))
            duties.push_async_callback(server.finish)
            try:
                server.start()
            except PermissionError as error:
                log.error("libmtl is not served at %s: %s; name a --socket where uid %d may", path, error, os.geteuid())
        else:
            service.forget_all()  # or clients would wait for ever that had connected to an earlier daemon
        if settings.metrics:
            _export(settings, settings.metrics, host, interfaces, duties)
        gc.collect()
        gc.freeze()  # what is here now stays: later collections need not walk it
        log.info("ready: %s, %d living instances", host.path, len(reaper))
        watchdog = duties.enter_context(closing(Watchdog(host, service)))
        service.notify(f"READY=1\nSTATUS={watchdog.status()}")
        watchdog.start()
        await stopped
        service.notify("STOPPING=1\nSTATUS=stopping")
        log.info("stopping; what living instances hold stays theirs")


def _export(
    settings: Settings, outlet: Outlet, host: Host, interfaces: Lazy[Interfaces] | None, duties: AsyncExitStack
) -> None:
    def source() -> Source:
        from importlib.metadata import version

        from mtlshm.daemon.metrics import Metrics

        return Metrics(host, interfaces, version("mtlshm"))

    if made := export(outlet, source, settings.socket_mode, access.gid(settings.socket_group)):
        duties.enter_context(closing(made))


def _interfaces(settings: Settings, host: Host, gid: int | None, duties: AsyncExitStack) -> Lazy[Interfaces]:
    """Served at once if an earlier daemon served any, else once a client names one."""
    served = settings.xdp != "off" and os.geteuid() == 0
    if settings.xdp != "off" and not served:
        log.info("not root: interfaces are not served")

    async def make() -> Interfaces:
        if not served:
            raise OSError(errno.ENODEV, "interfaces are not served")
        from mtlshm.daemon.interface_events import InterfaceEvents
        from mtlshm.daemon.interfaces import Interfaces
        from mtlshm.net.attached import Way
        from mtlshm.net.ledger import Ledger, patiently
        from mtlshm.net.tool import Tools
        from mtlshm.net.xdp import Loader

        tools = Tools(settings.state)
        made = Interfaces(
            await patiently(Ledger, settings.state, gid=os.getegid() if gid is None else gid, patience=0),
            tools,
            Loader(tools, settings.pins),
            Way(settings.xdp),
            settings.umem_limit << 20,
            InterfaceEvents(host.tell),
        )
        try:
            await made.start()
        except BaseException:
            made.close()
            raise
        return made

    async def take_up() -> None:
        try:
            await interfaces.get()
        except OSError as error:
            log.error("interfaces are not served: %s", reason(error))

    interfaces = Lazy(make)
    if served and (settings.state / "ledger").exists():
        # Lcores need not wait for it.
        duties.callback(asyncio.create_task(take_up()).cancel)
    return interfaces


async def _tear_down(settings: Settings) -> None:
    """Remove what is ours. OSError if something stays that could not be removed, or if another daemon serves."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    with ExitStack() as held:
        host = me = None
        with suppress(NoSegment):
            host = held.enter_context(Host(settings.segment, create=False))
            me = held.enter_context(_register(host))  # so that no other daemon starts
        if os.geteuid() == 0:
            from mtlshm.daemon.teardown import tear_down

            if not await tear_down(settings.state, settings.pins):
                raise OSError(errno.EIO, "not all could be removed; when that is mended, run it again")
        elif (settings.state / "ledger").exists():
            raise OSError(errno.EPERM, f"only root may take away what is in {settings.state}")
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


def _reload(old: Settings) -> None:
    """SIGHUP: what can change while we run, changes; what is wrong leaves everything as it was."""
    names = [field.name for field in fields(Settings)]
    try:
        given = command.make_context("mtlshmd", sys.argv[1:]).params
    except click.ClickException as error:
        log.error("configuration not reloaded: %s", error.format_message())
        return
    settings = Settings(**{name: given[name] for name in names})
    logging.getLogger().setLevel(settings.log_level.upper())
    changed = [name for name in names if getattr(settings, name) != getattr(old, name)]
    if later := [name for name in changed if name not in _CHANGES_AT_ONCE]:
        log.warning("%s: changes at the next start only", ", ".join(later))
    log.info("configuration reloaded")


def main() -> None:
    """Entry point."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # until there is somebody to handle them
    command(prog_name="mtlshmd")
