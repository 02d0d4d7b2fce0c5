# SPDX-License-Identifier: BSD-3-Clause
"""Do clients that look for the daemon at its socket find it?

The kernel lists all sockets with the path that each was bound to, whether anybody finds it there still or not; and
/proc tells which of them are the daemon's. Both are for root and the daemon's own user to see; others are told of no
trouble.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from mtlshm import InstanceInfo, namespaces
from mtlshm.listener import who_listens

# proc_net_unix: flags with __SO_ACCEPTCON (1 << 16), of a stream socket; inode and path
_LISTENING = re.compile(r"^\S+ \S+ \S+ (?=\w*1\w{4} )\w+ 0001 \w+ +(\d+) (.+)$", re.MULTILINE)
_LONGEST = 107  # bytes of a path, unix(7)


def troubles(daemon: InstanceInfo | None, *, ask: bool) -> Iterator[str]:
    """In words. Unless `ask`, the daemon is connected to, and so woken, only if something looks wrong."""
    if daemon is None or daemon.pid_namespace != namespaces.own("pid"):
        return
    process = Path(f"/proc/{daemon.pid}")
    try:
        own = {os.readlink(link) for link in os.scandir(process / "fd")}
        listening = _LISTENING.findall((process / "net/unix").read_text(errors="surrogateescape"))
    except OSError:  # it has just ended; or it is not ours to see
        return
    who = f"mtlshmd (pid {daemon.pid})"
    for path in {path for inode, path in listening if f"socket:[{inode}]" in own}:
        place = _place(process, path)
        suspicious = any(other == path and f"socket:[{inode}]" not in own for inode, other in listening)
        if len(os.fsencode(place)) > _LONGEST:
            continue
        if not os.path.exists(place):
            yield f"{path} has been removed: no client finds {who} there"
        elif suspicious or ask:
            found = who_listens(place)
            if found is None:
                yield f"{path} is something else by now, where nobody answers: no client finds {who} there"
            else:
                found.close()
                if found.pid not in (0, daemon.pid):
                    yield f"{path} has been taken by {found.name}, which grants lcores that {who} has granted already"


def _place(process: Path, path: str) -> str:
    """Where we find what it bound to `path`: it may have another root directory."""
    seen = f"{process}/root{path}" if path.startswith("/") else f"{process}/cwd/{path}"
    with suppress(OSError):
        if os.path.samefile(seen, path):
            return path
    return seen
