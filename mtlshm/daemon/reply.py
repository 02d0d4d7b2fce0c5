# SPDX-License-Identifier: BSD-3-Clause
"""Replies of the manager socket, and the descriptors that go with them."""

from __future__ import annotations

import os
from functools import lru_cache
from typing import NamedTuple

from mtlshm import wire


class Reply(NamedTuple):
    """The arguments of one send()."""

    record: bytes
    given: tuple[int, ...] = ()  # descriptors, the client's once it is sent
    lent: tuple[int, ...] = ()  # instead: descriptors that stay ours, and are closed after all connections
    kept: tuple[int, ...] = ()  # descriptors that are not sent, but closed after those given

    def close(self) -> None:
        """It was sent, or will not be."""
        for descriptor in (*self.given, *self.kept):
            os.close(descriptor)


@lru_cache(maxsize=1024)
def response(kind: int, value: int) -> Reply:
    """A reply of this type. Few values make up nearly all of them."""
    return Reply(wire.encode(kind, wire.Response(value)))
