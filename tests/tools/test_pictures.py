# SPDX-License-Identifier: BSD-3-Clause
"""tools/pictures draws what the documents show, and the pictures there are such as it draws today."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import pytest

from lab.processes import needs_root

ROOT = Path(__file__).parents[2]
SAID = {
    "status": ("32 lcores: 18 held, 2 lent, 12 free", "encoder-a", "studio-1", "daemon: pid"),
    "top": ("socket 1, NUMA node 1", "encoder-a", "last events:", "reservation studio-1 reserved"),
    "topology": ("studio-host: 32 lcores", "encoder-a", "playout"),
}


def text(svg: Path) -> str:
    """All that is written in a picture."""
    return " ".join("".join(ElementTree.parse(svg).getroot().itertext()).replace("\N{NO-BREAK SPACE}", " ").split())


@pytest.mark.slow
@needs_root("the pictures of the documents")
def test_all_are_drawn(tmp_path: Path) -> None:
    done = subprocess.run([ROOT / "tools/pictures", tmp_path / "made"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path.stem for path in (tmp_path / "made").iterdir()} == set(SAID)
    for name, words in SAID.items():
        assert all(word in text(tmp_path / f"made/{name}.svg") for word in words), name


@pytest.mark.parametrize("name", SAID)
def test_those_in_the_documents_are_shown_and_fetch_nothing(name: str) -> None:
    picture = ROOT / f"docs/pictures/{name}.svg"
    assert all(word in text(picture) for word in SAID[name])
    assert "](pictures/" + picture.name + ")" in (ROOT / "docs/operations.md").read_text()
    assert set(re.findall(r"https?://[^\"' )]+", picture.read_text())) <= {
        "http://www.w3.org/2000/svg",
        "https://www.textualize.io",
    }
