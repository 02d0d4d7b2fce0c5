# SPDX-License-Identifier: BSD-3-Clause
"""The daemon's configuration file: TOML, each key named like the long flag that overrides it."""

from __future__ import annotations

import tomllib
from collections.abc import Collection
from pathlib import Path

DEFAULT_FILE = Path("/etc/mtlshm/mtlshmd.toml")


class ConfigError(Exception):
    """The file cannot be used; the text says where and why."""


def read(path: Path, known: Collection[str]) -> dict[str, str]:
    """The settings in the file. Keys must be among `known`; their values are checked where they are used."""
    try:
        settings = tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except ValueError as error:  # no TOML, no text, or a number that int() finds too long
        raise ConfigError(f"{path}: {error}") from error
    except RecursionError:
        raise ConfigError(f"{path}: nested too deeply") from None
    if unknown := sorted(settings.keys() - set(known)):
        raise ConfigError(f"{path}: unknown key {', '.join(unknown)}; known are {', '.join(sorted(known))}")
    for key, value in settings.items():
        if not isinstance(value, str):
            raise ConfigError(f"{path}: {key} must be a string")
    return settings
