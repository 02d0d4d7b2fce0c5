# SPDX-License-Identifier: BSD-3-Clause
"""The settings file: TOML, each key named like the daemon's long flag that overrides it.

It is the daemon's, and names places where others look for it: the segment, the sockets, the ledger. So the command
line and Manager() take their defaults from the same file, and the C core (config.c) takes the segment's path from it.

A value reads as it would on the command line, in quotes or, where it is natural, as a number or as `false` for "off".
TOML's numbers come without their notation, and a file mode is meant in octal: 440 would be more than 0440. So that one
needs its notation, or quotes.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from mtlshm._core import ffi, lib

if TYPE_CHECKING:
    from pathlib import Path

DEFAULT_FILE = "/etc/mtlshm/mtlshmd.toml"
_PATHS = ("segment", "socket", "state", "pins", "legacy_lock")
_NUMBERS = {"legacy", "legacy_key", "umem_limit"}
_MODES = {"socket_mode"}
_SWITCHES = {"legacy", "metrics", "xdp"}
_MAY_BE_EMPTY = {"segment", "socket"}  # the default, and nowhere
_PATH_MAX = 4096  # linux/limits.h


class ConfigError(OSError):
    """The file cannot be used; the text says where and why."""

    def __init__(self, text: str, number: int = errno.EINVAL) -> None:
        super().__init__(number, text)


def file() -> str | None:
    """$MTLSHMD_CONFIG, else /etc/mtlshm/mtlshmd.toml if there is one."""
    return os.environ.get("MTLSHMD_CONFIG") or (DEFAULT_FILE if os.path.exists(DEFAULT_FILE) else None)


def configured(name: str) -> str | None:
    """One setting of the file, None if it is not set there."""
    path = file()
    return None if path is None else read(path).get(name)


def read(path: str | Path, known: Collection[str] | None = None) -> dict[str, str]:
    """All settings in the file, as text; keys must be among `known`. What a text says is checked where it is used."""
    import tomllib  # most hosts have no such file

    try:
        with open(path, encoding="utf-8") as opened:
            text = opened.read()
        settings = tomllib.loads(text)
    except OSError as error:
        raise _unusable(path, error.errno or errno.EIO) from error
    except ValueError as error:  # no TOML, no text, or a number that int() finds too long
        raise ConfigError(f"{path}: {error}") from error
    except RecursionError:
        raise ConfigError(f"{path}: nested too deeply") from None
    if known is not None and (unknown := sorted(settings.keys() - set(known))):
        told = f"unknown key {', '.join(unknown)}; known are {', '.join(sorted(known))}"
        raise ConfigError(f"{_place(path, text, unknown[0])}: {told}")
    for key, value in settings.items():
        if known is not None or key in _PATHS:
            try:
                settings[key] = _text(key, value, text)
            except ValueError as error:
                raise ConfigError(f"{_place(path, text, key)}: {error}") from None
        if key in _PATHS and value and not str(value).startswith("/"):
            raise ConfigError(f"{_place(path, text, key)}: {key} must be an absolute path, not {value!r}")
    if (settings.get("segment") or None) != _segment_as_the_library_reads_it(path):
        raise _misread(path)
    return settings


def place(path: str | Path, key: str) -> str:
    """The file, and on which line it sets the key, as FILE:LINE."""
    with open(path, encoding="utf-8") as opened:
        return _place(path, opened.read(), key)


def _place(path: str | Path, text: str, key: str) -> str:
    """The same, of a file that says `text`; only the file if the key is written in a way that is not looked for."""
    names = {key, f'"{key}"', f"'{key}'"}
    for number, line in enumerate(text.splitlines(), 1):
        if re.split(r"[=\].]", line)[0].strip(" \t[") in names:
            return f"{path}:{number}"
    return str(path)


def _text(key: str, value: Any, file: str) -> str:
    """The value as text, as it would be on the command line. ValueError if its type is wrong."""
    match value:
        case str():
            if "\0" in value or not (value or key in _MAY_BE_EMPTY):
                raise ValueError(f"{key} is {value!r}, which cannot be; without the line, the default counts")
            return value
        case False if key in _SWITCHES:
            return "off"
        case int() if not isinstance(value, bool):
            if key in _NUMBERS:
                return str(value)
            if key in _MODES and re.search(rf"^\s*{key}\s*=\s*0o[0-7]+\s*(#.*)?$", file, re.MULTILINE):
                return f"{value:o}"
    also = " or a number" if key in _NUMBERS else ' such as "0660", or 0o660' if key in _MODES else ""
    raise ValueError(f"{key} must be a string{also}{', or false for off' if key in _SWITCHES else ''}")


def _segment_as_the_library_reads_it(path: str | Path) -> str | None:
    """C programs must come to the same table."""
    c = ffi.new("char[]", _PATH_MAX)
    code = lib.mtlshm_configured_path(os.fsencode(path), c, _PATH_MAX)
    if code == -errno.EINVAL:
        raise _misread(path)
    if code < 0:
        raise _unusable(path, -code)
    return ffi.string(c).decode() if code else None


def _misread(path: str | Path) -> ConfigError:
    """The error for a value that C programs read differently, or not at all."""
    return ConfigError(
        f'{path}: segment must be on a line of its own, without escapes, before any table: segment = "/run/imtl/mtlshm"'
    )


def _unusable(path: str | Path, number: int) -> ConfigError:
    """A file that cannot be read."""
    advice = f"; all who use the segment need its settings: chmod a+r {path}" if number == errno.EACCES else ""
    return ConfigError(f"{path}: {os.strerror(number)}{advice}", number)
