# SPDX-License-Identifier: BSD-3-Clause
"""Namespaces of other processes, by their inodes: which are there, and which are gone for certain."""

from __future__ import annotations

import os
import time
from contextlib import suppress

_INITIAL_PID_NAMESPACE = 0xEFFFFFFC  # PROC_PID_INIT_INO, linux/proc_ns.h
_FRESH = 1.0  # seconds

_seen: dict[str, tuple[float, set[int] | None]] = {}


def own(name: str) -> int:
    """The inode of ours, such as "pid" or "ipc"."""
    return os.stat(f"/proc/self/ns/{name}").st_ino


def is_gone(name: str, inode: int, made_in: int) -> bool:
    """Whether no process is left in that namespace. False if that cannot be told from here.

    All processes have to be seen: from the host's own PID namespace they are, and nearly certainly all those that
    matter from the one where it was made, `made_in`. An inode that was given out again only makes it seem to be there.
    """
    if not inode or own("pid") not in (_INITIAL_PID_NAMESPACE, made_in):
        return False
    when, present = _seen.get(name, (0.0, None))
    if not when or time.monotonic() > when + _FRESH:  # many may be asked for at once
        present = _present(name)
        _seen[name] = time.monotonic(), present
    return present is not None and inode not in present


def _present(name: str) -> set[int] | None:
    """The namespaces of all processes; None if those of some process cannot be read."""
    found: set[int] = set()
    try:
        for pid in filter(str.isdecimal, os.listdir("/proc")):
            try:
                found.add(os.stat(f"/proc/{pid}/ns/{name}").st_ino)
            except PermissionError:
                if pid != "1":  # else it may have a capability that we do not have, but is in no container
                    raise
            except (FileNotFoundError, ProcessLookupError):  # it has ended; but perhaps its main thread only
                with suppress(FileNotFoundError, ProcessLookupError):
                    for tid in os.listdir(f"/proc/{pid}/task"):
                        with suppress(FileNotFoundError, ProcessLookupError):
                            found.add(os.stat(f"/proc/{pid}/task/{tid}/ns/{name}").st_ino)
    except OSError:
        return None
    return found
