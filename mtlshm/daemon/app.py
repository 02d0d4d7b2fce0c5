# SPDX-License-Identifier: BSD-3-Clause
"""mtlshmd: options, signals, and the duties wired together."""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import signal
import sys
from pathlib import Path

import click

from mtlshm import Host, Instance, Kind, MtlshmError
from mtlshm.daemon import config
from mtlshm.daemon.reaper import Reaper

log = logging.getLogger("mtlshmd")

_SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
_LEVELS = ("debug", "info", "warning", "error")


def _read_config(context: click.Context, _: click.Parameter, path: Path | None) -> Path | None:
    """Make the file's settings the defaults, below environment and flags."""
    if path is None and config.DEFAULT_FILE.exists():
        path = config.DEFAULT_FILE
    if path is not None:
        known = {p.name: p for p in context.command.params if p.name and p.expose_value}
        try:
            context.default_map = config.read(path, known)
            for name, value in context.default_map.items():
                known[name].type_cast_value(context, value)
        except config.ConfigError as error:
            raise click.UsageError(str(error)) from error
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
@click.version_option(package_name="mtlshm")
@click.pass_context
def command(context: click.Context, segment: str | None, log_level: str) -> None:
    """Collect what dead MTL processes left in the shared table of lcores.

    Settings come from the file, the environment and the flags, the later before the earlier. SIGHUP reads them again,
    SIGTERM and SIGINT stop the daemon; what living processes hold stays theirs. Needs no root, only
    permission to write the segment.

    Exit status: 0 stopped by a signal, 1 cannot serve the segment, 2 wrong options or configuration.
    """
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger().setLevel(log_level.upper())
    try:
        asyncio.run(_serve(segment))
    except OSError as error:
        log.error("%s", error.strerror if isinstance(error, MtlshmError) else error)
        context.exit(1)


async def _serve(path: str | None) -> None:
    loop = asyncio.get_running_loop()
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
    loop.add_signal_handler(signal.SIGHUP, _reload, path)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)

    with Host(path) as host, _register(host) as me:
        reaper = Reaper(host, me.owner, stop)
        try:
            reaper.start()
            gc.collect()
            gc.freeze()  # what is here now stays: later collections need not walk it
            log.info("ready: %s, %d living instances", host.path, len(reaper))
            await stopped
            log.info("stopping; what living instances hold stays theirs")
        finally:
            reaper.close()


def _register(host: Host) -> Instance:
    try:
        return host.register("mtlshmd", kind=Kind.DAEMON)
    except MtlshmError as error:
        if error.errno == errno.EEXIST and (other := host.snapshot().daemon):
            error.strerror = f"{error.strerror} (pid {other.pid} on {other.hostname})"
        raise


def _reload(path: str | None) -> None:
    """SIGHUP: what can change while we run, changes; what is wrong leaves everything as it was."""
    try:
        settings = command.make_context("mtlshmd", sys.argv[1:]).params
    except click.ClickException as error:
        log.error("configuration not reloaded: %s", error.format_message())
        return
    logging.getLogger().setLevel(settings["log_level"].upper())
    if settings["segment"] != path:
        log.warning("the segment changes at the next start only; serving the old one")
    log.info("configuration reloaded")


def main() -> None:
    """Entry point."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # until there is somebody to handle them
    command(prog_name="mtlshmd")
