# SPDX-License-Identifier: BSD-3-Clause
"""systemd-logind, which deletes a user's files in /dev/shm at the last logout."""

from __future__ import annotations

import pwd
import re
from contextlib import suppress
from pathlib import Path

_SYSTEM_UID_MAX = 999  # logind's, unless whoever built it chose another
_DIRECTORIES = ("usr/lib", "usr/local/lib", "run", "etc")
_NO = {"no", "n", "false", "f", "off", "0"}


def deletes_files_of(uid: int) -> bool:
    """At his last logout. Not those of system users and of users that linger (loginctl(1))."""
    if uid <= _SYSTEM_UID_MAX or not removes_ipc():
        return False
    with suppress(KeyError):
        return not Path("/var/lib/systemd/linger", pwd.getpwuid(uid).pw_name).exists()
    return True


def removes_ipc(root: Path = Path("/")) -> bool:
    """RemoveIPC= of logind.conf(5), which is yes unless said otherwise; of several, the last one counts."""
    said = "yes"
    added = [file for each in _DIRECTORIES for file in (root / each / "systemd/logind.conf.d").glob("*.conf")]
    for file in (root / "etc/systemd/logind.conf", *sorted(added, key=lambda file: file.name)):
        with suppress(OSError):
            for value in re.findall(r"^RemoveIPC[ \t]*=[ \t]*(\S*)", file.read_text(errors="replace"), re.MULTILINE):
                said = value or "yes"
    return said.lower() not in _NO
