# SPDX-License-Identifier: BSD-3-Clause
"""Options that several verbs have. Their defaults come from the daemon's settings file, as for all programs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from mtlshm import config
from mtlshm.legacy.lock import DEFAULT_LOCK
from mtlshm.legacy.table import default_key, parse_key
from mtlshm.net import places


def _key(_: click.Context, __: click.Parameter, text: str | None) -> int:
    text = text or config.configured("legacy_key")
    try:
        return parse_key(text) if text else default_key()
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def key_option(name: str, help: str) -> Callable[..., Any]:
    """Of the legacy table."""
    return click.option(name, callback=_key, envvar="MTLSHM_LEGACY_KEY", help=f"{help}  [env: MTLSHM_LEGACY_KEY]")


def _place(flag: str, variable: str, setting: str, default: str | Path, help: str) -> Callable[..., Any]:
    """A file or directory that one of the daemon's settings names."""
    return click.option(
        flag,
        type=click.Path(path_type=Path),
        default=lambda: Path(config.configured(setting) or default),
        envvar=variable,
        help=f"{help}  [env: {variable}]",
    )


def lock_option(name: str, help: str) -> Callable[..., Any]:
    """Of the legacy table."""
    return _place(name, "MTLSHM_LEGACY_LOCK", "legacy_lock", DEFAULT_LOCK, help)


state_option = _place(
    "--state", "MTLSHMD_STATE", "state", places.STATE, f"The daemon's state directory; default {places.STATE}."
)
pins_option = _place(
    "--pins",
    "MTLSHMD_PINS",
    "pins",
    places.PINS,
    f"The daemon's directory in a BPF file system; default {places.PINS}.",
)
