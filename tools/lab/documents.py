# SPDX-License-Identifier: BSD-3-Clause
"""The documents for people, taken apart: fenced blocks, and the marks that say where a block is run.

A mark is an HTML comment on the line before the block:

    <!-- tier: NAME: why the block cannot be run like the others -->

Without a mark a block is run by tests/docs/test_commands.py, on a segment of its own. The tiers:

    root    the same tests, in a throw-away copy of this machine, by root only
    network the same, with this machine's network
    vm      tests/vm/test_docs.py, in a virtual machine with systemd
    container  tests/contrib/test_container.py, with podman
    setup   tools/setup, which installs the same packages
    tools   tests/tools and tools/test, which run the same programs
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    [
        *(ROOT / name for name in ("README.md", "SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md")),
        *ROOT.glob("docs/*.md"),
    ]
)
TIERS = {"root", "network", "vm", "container", "setup", "tools"}
LANGUAGES = {"sh", "python", "c", "toml", "text"}

_FENCE = re.compile(
    r"^(?P<mark><!-- (?P<words>.*?) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)
_MARK = re.compile(r"(?P<name>\w+): (?P<value>\w+)(: (?P<reason>.+))?")


@dataclass(frozen=True)
class Block:
    """What stands between two fences."""

    document: Path
    line: int  # of the opening fence
    language: str
    text: str
    mark: str  # all of the comment, or ""

    @property
    def tier(self) -> str:
        """Empty if it is run like most."""
        found = _MARK.fullmatch(self.mark)
        return found["value"] if found and found["name"] == "tier" else ""

    @property
    def reason(self) -> str:
        found = _MARK.fullmatch(self.mark)
        return (found["reason"] or "") if found else ""

    @property
    def capture(self) -> str:
        """The command whose output it shows, or empty."""
        found = _MARK.fullmatch(self.mark)
        return found["value"] if found and found["name"] == "capture" else ""

    def __str__(self) -> str:
        return f"{self.document.relative_to(ROOT)}:{self.line}"


def blocks() -> list[Block]:
    """All there are, in order."""
    found = []
    for document in DOCUMENTS:
        text = document.read_text()
        for each in _FENCE.finditer(text):
            line = text.count("\n", 0, each.start("language")) + 1
            found.append(Block(document, line, each["language"], each["text"], each["words"] or ""))
    return found


def prose(document: Path) -> str:
    """Without the blocks."""
    return _FENCE.sub("", document.read_text())
