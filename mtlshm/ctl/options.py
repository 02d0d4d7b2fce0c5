# SPDX-License-Identifier: BSD-3-Clause
"""Options that several verbs have. What is not said is where the daemon's settings file says, as for everybody."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from mtlshm import config
from mtlshm.legacy.lock import DEFAULT_LOCK
from mtlshm.legacy.table import default_key, parse_key
from mtlshm.net import places


def _path(name: str, default: str | Path) -> Callable[[], Path]:
    return lambda: Path(config.configured(name) or default)


def _key(_: click.Context, __: click.Parameter, text: str | None) -> int:
    text = text or config.configured("legacy_key")
    try:
        return parse_key(text) if text else default_key()
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def key_option(name: str, help: str) -> Callable[..., Any]:
    """Of the legacy table."""
    return click.option(name, callback=_key, envvar="MTLSHM_LEGACY_KEY", help=f"{help}  [env: MTLSHM_LEGACY_KEY]")


def lock_option(name: str, help: str) -> Callable[..., Any]:
    """Of the legacy table."""
    return click.option(
        name,
        type=click.Path(path_type=Path),
        default=_path("legacy_lock", DEFAULT_LOCK),
        envvar="MTLSHM_LEGACY_LOCK",
        help=f"{help}  [env: MTLSHM_LEGACY_LOCK]",
    )


state_option = click.option(
    "--state",
    type=click.Path(path_type=Path),
    default=_path("state", places.STATE),
    envvar="MTLSHMD_STATE",
    help=f"The daemon's state directory; default {places.STATE}.  [env: MTLSHMD_STATE]",
)
pins_option = click.option(
    "--pins",
    type=click.Path(path_type=Path),
    default=_path("pins", places.PINS),
    envvar="MTLSHMD_PINS",
    help=f"The daemon's directory in a BPF file system; default {places.PINS}.  [env: MTLSHMD_PINS]",
)
