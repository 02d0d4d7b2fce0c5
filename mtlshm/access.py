# SPDX-License-Identifier: BSD-3-Clause
"""The owner of a segment, and the group that may use it.

Both are asked of the file that is mapped, not of its path, which may lead to another file by now.
"""

from __future__ import annotations

import errno
import grp
import os

from mtlshm.errors import MtlshmError
from mtlshm.host import Host
from mtlshm.segment import GROUP, change


def gid(group: str) -> int | None:
    """None if there is no such group."""
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        return None


def check_owner(host: Host, group: str) -> None:
    """Anyone may be the first to make a file in /dev/shm, and then write what he likes. Who is root shall not lead
    others to believe it. A file's group proves that its owner is a member: only members may give it.
    """
    file = host.file()
    if os.geteuid() == 0 and file.uid != 0 and file.gid != gid(group):
        text = f"segment {host.path} belongs to uid {file.uid}, neither root nor in group {group}"
        raise MtlshmError(errno.EPERM, f"{text}; stop who uses it (fuser -v {host.path}) and remove it")


def give_to_group(host: Host) -> str:
    """Have a segment of ours belong to group mtl; returns why it does not, or "".

    The core gives it to the group when it makes it, but looks in /etc/group only: a group in LDAP, or one made since,
    it does not know. Nobody who lives may lose by it, and what an administrator has chosen stays.
    """
    wanted, file = gid(GROUP), host.file()
    if wanted is None or file.gid == wanted:
        return ""
    ours = (file.uid, file.gid) == (os.geteuid(), os.getegid())
    if ours and all(info.uid in (0, file.uid) for info in host.snapshot().instances):
        try:
            change(host.path, (file.device, file.inode), gid=wanted)
        except OSError:  # we are no member, or in a user namespace where the group has no number
            pass
        else:
            return ""
    text = f"segment {host.path} belongs to gid {file.gid}, not to group {GROUP}, whose members cannot use it"
    return f"{text}; stop its users, then: chgrp {GROUP} {host.path}"
