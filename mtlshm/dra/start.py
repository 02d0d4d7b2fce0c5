# SPDX-License-Identifier: BSD-3-Clause
"""The entry point of mtlshm-dra, which says so if the packages that it needs are not there."""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point."""
    try:
        from mtlshm.dra.app import main as serve
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("grpclib", "h11"):
            raise
        sys.exit(f"mtlshm-dra needs {error.name}, which is not installed: pip install 'mtlshm[kubernetes]'")
    serve()
