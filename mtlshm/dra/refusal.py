# SPDX-License-Identifier: BSD-3-Clause
"""Why a claim is not prepared."""

from __future__ import annotations


class Refused(Exception):
    """The text says in one line what is wrong. People read it among the events of the pod."""
