# SPDX-License-Identifier: BSD-3-Clause
"""Where programs import Manager from, and always could; manager_client.py has it."""

from mtlshm.manager_client import Manager

__all__ = ["Manager"]
