# SPDX-License-Identifier: BSD-3-Clause
"""mtlshm-dra: the command, signals, and the parts wired together."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from grpclib.server import Server

from mtlshm import CpuSet, Host
from mtlshm.dra import naming
from mtlshm.dra.api import ACCOUNT, Api
from mtlshm.dra.devices import NoPool, devices
from mtlshm.dra.driver import Driver
from mtlshm.dra.kubelet import check_reserved
from mtlshm.dra.services import Claims, Codec, Health, Registration
from mtlshm.dra.slices import Publisher
from mtlshm.dra.sockets import listening, only_driver
from mtlshm.errors import about

log = logging.getLogger("mtlshm-dra")

_LONGEST_GOODBYE = 5.0  # seconds in which calls that run can end


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings, by the names of their options; --log-level is none."""

    node: str
    pool: CpuSet
    segment: str | None
    api: str
    account: Path
    kubelet: Path
    cdi: Path
    sysfs: str | None = None  # for tests


class _Pool(click.ParamType):  # type: ignore[type-arg] # generic since click 8.4 only
    """A list of lcores."""

    name = "list"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> CpuSet:
        try:
            return value if isinstance(value, CpuSet) else CpuSet.parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def _server() -> str | None:
    """The API server, as every container of a cluster is told."""
    host, port = os.environ.get("KUBERNETES_SERVICE_HOST"), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    return host and f"https://{f'[{host}]' if ':' in host else host}:{port}"


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--node", envvar="NODE_NAME", required=True, help="Name of this node in the cluster.  [env: NODE_NAME]")
@click.option(
    "--pool",
    envvar="MTLSHM_DRA_POOL",
    type=_Pool(),
    required=True,
    help="Lcores that claims get, such as 4-15; whole physical cores only.  [env: MTLSHM_DRA_POOL]",
)
@click.option("--segment", envvar="MTLSHM_PATH", help="Segment to reserve lcores in.  [env: MTLSHM_PATH]")
@click.option(
    "--api",
    envvar="MTLSHM_DRA_API",
    default=_server,
    required=True,
    help="URL of the API server; default that of the cluster whose container this is.  [env: MTLSHM_DRA_API]",
)
@click.option(
    "--account",
    type=click.Path(path_type=Path),
    default=ACCOUNT,
    help=f"Directory with the service account's token and ca.crt; default {ACCOUNT}.",
)
@click.option(
    "--kubelet",
    type=click.Path(path_type=Path),
    default="/var/lib/kubelet",
    help="Directory of kubelet; default /var/lib/kubelet.",
)
@click.option(
    "--cdi",
    type=click.Path(path_type=Path),
    default="/var/run/cdi",
    help="Directory where the container runtime reads CDI files; default /var/run/cdi.",
)
@click.option(
    "--log-level",
    type=click.Choice(("debug", "info", "warning", "error")),
    default="info",
    help="What to log, on standard error; default info.",
)
@click.version_option(package_name="mtlshm")
@click.pass_context
def command(context: click.Context, /, log_level: str, **given: Any) -> None:
    """Give lcores of the shared table to the pods of a Kubernetes node, as their ResourceClaims say.

    A claim gets a reservation, which `mtlshm-ctl status` shows and which ends with the claim. The driver keeps nothing
    in memory: it may be killed at any time. It needs permission to write the segment and kubelet's directories.

    Exit status: 0 a signal stopped it; 1 it cannot serve this node; 2 wrong options.
    """
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger().setLevel(log_level.upper())
    context.exit(run(Settings(**given)))


def run(settings: Settings) -> int:
    """Serve until a signal comes. The exit status."""
    try:
        asyncio.run(_serve(settings))
    except (NoPool, ValueError) as error:
        log.error("%s", error)
        return 2
    except OSError as error:
        log.error("%s", about(error))
        return 1
    return 0


async def _serve(settings: Settings) -> None:
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    with Host(settings.segment, sysfs=settings.sysfs) as host:
        check_reserved(settings.kubelet, settings.pool)
        path, found = host.path, devices(settings.pool, host.topology())
    api = Api(settings.api, settings.account)
    driver = Driver(settings.node, found, api, settings.cdi, settings.segment, settings.sysfs)
    directory = settings.kubelet / "plugins" / naming.DRIVER
    endpoint = directory / "dra.sock"
    with ExitStack() as held:
        held.enter_context(only_driver(directory, endpoint))
        servers = [
            (Server([Claims(driver), Health(driver)], codec=Codec()), held.enter_context(listening(endpoint))),
            (
                Server([Registration(os.fspath(endpoint))], codec=Codec()),
                held.enter_context(listening(settings.kubelet / "plugins_registry" / f"{naming.DRIVER}-reg.sock")),
            ),
        ]
        for server, listener in servers:
            await server.start(sock=listener)
        for device in found.values():
            log.info("%s: lcores %s", device.name, device.lcores)
        gc.collect()
        gc.freeze()  # what is here now stays: later collections need not walk it
        publishing = asyncio.create_task(Publisher(api, settings.node, found).run())
        log.info("ready: node %s, %s", settings.node, path)
        stopping = asyncio.create_task(stopped.wait())
        await asyncio.wait((stopping, publishing), return_when=asyncio.FIRST_COMPLETED)
        if publishing.done():
            publishing.result()  # raises: it never ends by itself
        publishing.cancel()
        for server, _ in reversed(servers):
            server.close()
            await asyncio.wait_for(server.wait_closed(), _LONGEST_GOODBYE)


def main() -> None:
    """Entry point."""
    command(prog_name="mtlshm-dra")
