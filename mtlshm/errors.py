# SPDX-License-Identifier: BSD-3-Clause
"""Where a negative errno becomes an exception."""

from __future__ import annotations

import errno

from mtlshm._core import ffi, lib


class MtlshmError(OSError):
    """Something the C core refused; `errno` says what, the text says what to do about it."""


class NoSegment(MtlshmError, FileNotFoundError):
    """There is no segment at that path."""


class NotPermitted(MtlshmError, PermissionError):
    """The segment's file may not be opened."""


class Busy(MtlshmError):
    """Held by an instance that lives, or not enough is free."""


class InstanceGone(MtlshmError):
    """The instance was unregistered, or belongs to the parent process."""


class TimedOut(MtlshmError, TimeoutError):
    """The semaphore's holder did not give it back in time."""


_CLASSES: dict[int, type[MtlshmError]] = {
    errno.ENOENT: NoSegment,
    errno.EACCES: NotPermitted,
    errno.EBUSY: Busy,
    errno.EALREADY: Busy,
    errno.EBADF: InstanceGone,
    errno.ECHILD: InstanceGone,
    errno.ETIMEDOUT: TimedOut,
}


def error(code: int, subject: str, detail: str = "") -> MtlshmError:
    """The exception for a negative errno: what it was about, what is wrong, what to do."""
    number = -code
    text = detail or ffi.string(lib.mtlshm_strerror(number)).decode()
    return _CLASSES.get(number, MtlshmError)(number, f"{subject}: {text}")


def check(code: int, subject: str) -> int:
    """Pass a result on, or raise."""
    if code < 0:
        raise error(code, subject)
    return code
