# SPDX-License-Identifier: BSD-3-Clause
"""A seccomp filter under which some system calls are not permitted, as in a container. As a program it runs another.

python -m lab.seccomp 'NUMBER[:ARGUMENT=VALUE]...' command...
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys

_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 38, 22, 2


def _instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("HBBI", code, if_true, if_false, value)


def forbid(rules: list[str]) -> None:
    """From now on and for ever in this process: EPERM for each call that a rule says."""
    program = b""
    for rule in rules:
        number, *conditions = rule.split(":")
        tests = [(0, int(number))]
        for condition in conditions:
            argument, wanted = condition.split("=")
            tests.append((16 + 8 * int(argument), int(wanted)))  # its lower half
        for position, (offset, value) in enumerate(tests):
            left = 2 * (len(tests) - position - 1)
            program += _instruction(_LOAD, offset) + _instruction(_JUMP_IF_EQUAL, value, 0, left + 1)
        program += _instruction(_RETURN, _ERRNO | errno.EPERM)
    program += _instruction(_RETURN, _ALLOW)
    buffer = ctypes.create_string_buffer(program)
    description = struct.pack("HxxxxxxQ", len(program) // 8, ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in (
        (_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
        (_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.create_string_buffer(description), 0, 0),
    ):
        if libc.prctl(*arguments):
            raise OSError(ctypes.get_errno(), "prctl")


if __name__ == "__main__":
    forbid(sys.argv[1].split())
    os.execvp(sys.argv[2], sys.argv[2:])
