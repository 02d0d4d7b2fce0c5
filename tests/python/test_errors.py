# SPDX-License-Identifier: BSD-3-Clause
"""Every refusal of the core becomes an exception that carries its errno, and has a sentence of its own."""

from __future__ import annotations

import errno
import re
from pathlib import Path

import pytest

from mtlshm import Busy, InstanceGone, MtlshmError, NoSegment, NotPermitted, TimedOut
from mtlshm._core import ffi, lib
from mtlshm.errors import check, error

HEADER = (Path(__file__).parents[2] / "cffi_build/mtlshm.h").read_text()

DOCUMENTED = sorted({getattr(errno, name) for name in re.findall(r"-(E[A-Z]+)\b", HEADER)})


def sentence(number: int) -> str:
    return ffi.string(lib.mtlshm_strerror(number)).decode()


def test_every_documented_error_has_a_sentence_of_its_own() -> None:
    assert len(DOCUMENTED) > 20
    assert len({sentence(number) for number in DOCUMENTED}) == len(DOCUMENTED)
    unknown = sentence(errno.EXFULL)
    assert unknown
    assert unknown not in {sentence(number) for number in DOCUMENTED}


def test_the_sign_does_not_matter() -> None:
    assert sentence(-errno.EBUSY) == sentence(errno.EBUSY)


@pytest.mark.parametrize(
    ("number", "kinds"),
    [
        (errno.ENOENT, (NoSegment, FileNotFoundError)),
        (errno.EACCES, (NotPermitted, PermissionError)),
        (errno.EBUSY, (Busy,)),
        (errno.EALREADY, (Busy,)),
        (errno.EBADF, (InstanceGone,)),
        (errno.ECHILD, (InstanceGone,)),
        (errno.ETIMEDOUT, (TimedOut, TimeoutError)),
        (errno.ERANGE, (MtlshmError, OSError)),
    ],
)
def test_an_exception_is_what_its_errno_says(number: int, kinds: tuple[type[Exception], ...]) -> None:
    raised = error(-number, "lcore 5")
    assert all(isinstance(raised, kind) for kind in kinds)
    assert raised.errno == number
    assert "lcore 5" in str(raised)
    assert sentence(number) in str(raised)


def test_results_pass_and_errors_raise() -> None:
    assert check(3, "anything") == 3
    with pytest.raises(Busy):
        check(-errno.EBUSY, "anything")
