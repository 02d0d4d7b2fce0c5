# SPDX-License-Identifier: BSD-3-Clause
"""Where mtlshm-ctl starts.

What is asked most often, by people and by scripts, is `status` and no more. It is over before click would be imported,
so it is answered without; all else is left to the verbs.
"""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Entry point."""
    match sys.argv[1:]:
        case ["status"]:
            _status(os.environ.get("MTLSHM_PATH") or None)
        case ["--segment", path, "status"]:
            _status(path)
        case _:
            from mtlshm.ctl import app

            app.main()


def _status(path: str | None) -> None:
    from mtlshm.ctl import terminal, view

    terminal.replace_what_it_cannot_show()
    try:
        view.show(path)
    except BrokenPipeError:  # as click does: its reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        from mtlshm.ctl import app

        app.fail(error)
