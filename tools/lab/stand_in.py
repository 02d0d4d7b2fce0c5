# SPDX-License-Identifier: BSD-3-Clause
"""The devices of the stand-in for ethtool, for tests."""

from __future__ import annotations

import fcntl
import json
import runpy
from pathlib import Path
from typing import Any


class StandIn:
    """The stand-in for ethtool that is found on PATH (see ethtool_stand_in.py), and its devices."""

    def __init__(self, program: Path) -> None:
        self._path = runpy.run_path(str(program))["path"]

    def set(self, device: str, **settings: Any) -> None:
        """Give a device that driver; it keeps what is not said."""
        path: Path = self._path(device)
        with path.with_name(f"{path.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # one that a killed process ran may still be at it
            new = path.with_name(f"{path.name}.new")
            new.write_text(json.dumps(self._state(device) | settings))
            new.rename(path)

    def rules(self, device: str) -> dict[int, dict[str, str]]:
        """What is in the NIC."""
        return {int(location): rule for location, rule in self._state(device).get("rules", {}).items()}

    def _state(self, device: str) -> dict[str, Any]:
        path: Path = self._path(device)
        return json.loads(path.read_text()) if path.exists() else {}
