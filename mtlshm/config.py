# SPDX-License-Identifier: BSD-3-Clause
"""The settings file: TOML, each key named like the daemon's long flag that overrides it.

It is the daemon's, and names places where others look for it: the segment, the sockets, the ledger. So the command
line and Manager() take their defaults from the same file, and the C core (config.c) takes the segment's path from it.
"""

from __future__ import annotations

import errno
import os
import tomllib
from collections.abc import Collection
from pathlib import Path

from mtlshm._core import ffi, lib

DEFAULT_FILE = Path("/etc/mtlshm/mtlshmd.toml")
_PATHS = ("segment", "socket", "state", "pins", "legacy_lock")
_PATH_MAX = 4096  # linux/limits.h


class ConfigError(OSError):
    """The file cannot be used; the text says where and why."""

    def __init__(self, text: str, number: int = errno.EINVAL) -> None:
        super().__init__(number, text)


def file() -> Path | None:
    """$MTLSHMD_CONFIG, else /etc/mtlshm/mtlshmd.toml if there is one."""
    if named := os.environ.get("MTLSHMD_CONFIG"):
        return Path(named)
    return DEFAULT_FILE if DEFAULT_FILE.exists() else None


def configured(name: str) -> str | None:
    """One setting of the file, None if it is not set there."""
    path = file()
    return None if path is None else read(path).get(name)


def read(path: Path, known: Collection[str] | None = None) -> dict[str, str]:
    """All settings in the file, whose keys must be among `known`. Values are checked where they are used."""
    try:
        settings = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise _unusable(path, error.errno or errno.EIO) from error
    except ValueError as error:  # no TOML, no text, or a number that int() finds too long
        raise ConfigError(f"{path}: {error}") from error
    except RecursionError:
        raise ConfigError(f"{path}: nested too deeply") from None
    if known is not None and (unknown := sorted(settings.keys() - set(known))):
        raise ConfigError(f"{path}: unknown key {', '.join(unknown)}; known are {', '.join(sorted(known))}")
    for key, value in settings.items():
        if known is not None and not isinstance(value, str):
            raise ConfigError(f"{path}: {key} must be a string")
        if key in _PATHS and value and not str(value).startswith("/"):
            raise ConfigError(f"{path}: {key} must be an absolute path, not {value!r}")
    if (settings.get("segment") or None) != _segment_as_the_library_reads_it(path):
        raise _misread(path)
    return settings


def _segment_as_the_library_reads_it(path: Path) -> str | None:
    """C programs must come to the same table."""
    c = ffi.new("char[]", _PATH_MAX)
    code = lib.mtlshm_configured_path(os.fsencode(path), c, _PATH_MAX)
    if code == -errno.EINVAL:
        raise _misread(path)
    if code < 0:
        raise _unusable(path, -code)
    return ffi.string(c).decode() if code else None


def _misread(path: Path) -> ConfigError:
    """What C programs read differently, or not at all."""
    return ConfigError(
        f'{path}: segment must be on a line of its own, without escapes, before any table: segment = "/run/imtl/mtlshm"'
    )


def _unusable(path: Path, number: int) -> ConfigError:
    """A file that cannot be read."""
    advice = f"; all who use the segment need its settings: chmod a+r {path}" if number == errno.EACCES else ""
    return ConfigError(f"{path}: {os.strerror(number)}{advice}", number)
