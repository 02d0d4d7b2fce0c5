# SPDX-License-Identifier: BSD-3-Clause
"""Options that several verbs have."""

from __future__ import annotations

from pathlib import Path

import click

from mtlshm.net import places

state_option = click.option(
    "--state",
    type=click.Path(path_type=Path),
    default=places.STATE,
    envvar="MTLSHMD_STATE",
    help=f"The daemon's state directory; default {places.STATE}.  [env: MTLSHMD_STATE]",
)
pins_option = click.option(
    "--pins",
    type=click.Path(path_type=Path),
    default=places.PINS,
    envvar="MTLSHMD_PINS",
    help=f"The daemon's directory in a BPF file system; default {places.PINS}.  [env: MTLSHMD_PINS]",
)
