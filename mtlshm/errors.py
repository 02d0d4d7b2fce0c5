# SPDX-License-Identifier: BSD-3-Clause
"""Where a negative errno becomes an exception."""

from __future__ import annotations

import errno

from mtlshm._core import ffi, lib


class MtlshmError(OSError):
    """The C library refused a call. `errno` has the reason; the text says what to do about it."""


class NoSegment(MtlshmError, FileNotFoundError):
    """There is no segment at the path."""


class NotPermitted(MtlshmError, PermissionError):
    """The caller has no permission to open the segment's file."""


class OtherLayout(MtlshmError):
    """The segment has another layout version, and it is in use or cannot be replaced."""


class Busy(MtlshmError):
    """A living instance holds the lcore, or not enough lcores are free."""


class InstanceGone(MtlshmError):
    """The instance was unregistered, or this process is a forked child that inherited it."""


class TimedOut(MtlshmError, TimeoutError):
    """The holder of the semaphore did not release it in time."""


_CLASSES: dict[int, type[MtlshmError]] = {
    errno.ENOENT: NoSegment,
    errno.EACCES: NotPermitted,
    errno.EPROTO: OtherLayout,
    errno.EBUSY: Busy,
    errno.EALREADY: Busy,
    errno.EBADF: InstanceGone,
    errno.ECHILD: InstanceGone,
    errno.ETIMEDOUT: TimedOut,
}


def failure(code: int) -> str:
    """Which step of the operating system failed in the call just made, and its path; '' if none did."""
    text = lib.mtlshm_failure(code)
    return "" if text == ffi.NULL else bytes(ffi.string(text)).decode(errors="replace")


def error(code: int, subject: str, detail: str = "") -> MtlshmError:
    """The exception for a negative errno: what it was about, what is wrong, what to do. Make it right after the call.

    The classes are for the core's own conditions: where a file of the system is missing, no segment is.
    """
    number = -code
    failed = failure(code)
    text = detail or failed or ffi.string(lib.mtlshm_strerror(number)).decode()
    kind = MtlshmError if failed and number != errno.EACCES else _CLASSES.get(number, MtlshmError)
    return kind(number, f"{subject}: {text}")


def reason(error: OSError) -> str:
    """The text of an error. Errors of the system always have one, errors of libraries may not."""
    return error.strerror or str(error) or type(error).__name__


def about(error: OSError) -> str:
    """The same, with the file's name; ours say all in their text."""
    return reason(error) if error.filename is None else f"{error.filename}: {reason(error)}"


def check(code: int, subject: str) -> int:
    """Pass a result on, or raise."""
    if code < 0:
        raise error(code, subject)
    return code
