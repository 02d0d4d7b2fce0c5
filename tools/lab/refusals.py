# SPDX-License-Identifier: BSD-3-Clause
"""How a test says with which errno a call is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def refused(number: int, why: str = ".") -> Iterator[None]:
    """The block must raise an OSError with this errno, whose text matches `why`."""
    with pytest.raises(OSError, match=why) as caught:
        yield
    assert caught.value.errno == number, caught.value


def refusal(call: Callable[..., object], *arguments: object, **options: object) -> int:
    """The errno with which the call is refused; 0 if it is not."""
    try:
        call(*arguments, **options)
    except OSError as error:
        return error.errno or -1
    return 0
