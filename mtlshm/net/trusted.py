# SPDX-License-Identifier: BSD-3-Clause
"""Directories that root can work in: nobody else can have put them, or what is in them, there.

A name in a directory that others can write may be a link of theirs, this moment or the next. So root goes down from /
by descriptors and looks at each directory that it holds open, not at a name that may mean another one by then. Each
must be root's, or our own. Above the last, others may write if the directory is sticky, as /tmp is: what root has
there nobody else can rename or remove. They can be first to take a name; then it is theirs, and refused. Links are
followed if they are root's: an administrator has put them there.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_MOST_LINKS = 40


def open_directory(path: Path, make: Callable[[int, str], None] | None = None) -> int:
    """A descriptor of it, to be closed. PermissionError if others can write in it, or decide what is at this path.

    What does not exist is made by `make`, if there is one, given the directory above and the name.
    """
    rest = list(reversed(Path(os.path.abspath(path)).parts[1:]))
    way, links = ["/"], 0
    here = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        while rest:
            _check(here, Path(*way), sticky_will_do=True)
            name = rest.pop()
            below = _open(here, name, make)
            if stat.S_ISLNK((found := os.fstat(below)).st_mode):
                target = os.readlink("", dir_fd=below)
                os.close(below)
                links += 1
                if found.st_uid not in (0, os.geteuid()) or links > _MOST_LINKS:
                    text = f"{Path(*way, name)} is a link that belongs to uid {found.st_uid}; it must be root's"
                    raise PermissionError(errno.EPERM, f"{text}, or no link")
                # From the beginning, as the target may lead up again.
                rest += reversed(Path(os.path.normpath(Path(*way, target))).parts[1:])
                way, below = ["/"], os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            else:
                way.append(name)
            os.close(here)
            here = below
        _check(here, Path(*way), sticky_will_do=False)
        # Through the descriptor, so that it is the one that was looked at.
        return os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=here)
    finally:
        os.close(here)


def _open(above: int, name: str, make: Callable[[int, str], None] | None) -> int:
    flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(name, flags, dir_fd=above)
    except FileNotFoundError:
        if make is None:
            raise
    make(above, name)
    return os.open(name, flags, dir_fd=above)


def _check(directory: int, path: Path, *, sticky_will_do: bool) -> None:
    found = os.fstat(directory)
    if not stat.S_ISDIR(found.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, f"{path} is no directory")
    if found.st_uid not in (0, os.geteuid()):
        text = f"{path} belongs to uid {found.st_uid}, who could have root remove or open what he likes"
        raise PermissionError(errno.EPERM, f"{text}; it must be root's: see what is in it, then move it away")
    if found.st_mode & _OTHERS_WRITE and not (sticky_will_do and found.st_mode & stat.S_ISVTX):
        text = f"{path} can be written by others, who could have root remove or open what they like"
        raise PermissionError(errno.EPERM, f"{text}; as root: chmod go-w {path}")
