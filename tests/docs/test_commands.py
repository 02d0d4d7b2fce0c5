# SPDX-License-Identifier: BSD-3-Clause
"""README and docs/ say what is so: their commands are run, their snippets compiled, their links followed.

What a reader would see as an error is one here: a block ends with the first command that fails.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from lab.documents import DOCUMENTS, LANGUAGES, ROOT, TIERS, Block, blocks, prose
from lab.processes import BIN, DEADLINE, Daemon, compile_program, needs_root
from lab.throw_away import machine
from mtlshm._core import ffi, lib
from mtlshm.ctl.app import load
from mtlshm.daemon.app import command as mtlshmd

BLOCKS = blocks()
ctl = load()
WORDS = 700  # of the README


def those(language: str, tier: str = "") -> pytest.MarkDecorator:
    found = [block for block in BLOCKS if (block.language, block.tier) == (language, tier)]
    return pytest.mark.parametrize("block", found, ids=str)


def run(command: list[object], environment: dict[str, str], what: object) -> str:
    both = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    done = subprocess.run(
        list(map(str, command)),
        **both,
        stdin=subprocess.DEVNULL,
        text=True,
        env=environment,
        cwd=ROOT,
        timeout=DEADLINE,
    )
    assert done.returncode == 0, f"{what}: exit status {done.returncode}\n{done.stdout}"
    return done.stdout


# --- what is written, and how --------------------------------------------------------------------------


def test_every_document_has_blocks_that_are_understood() -> None:
    assert len(BLOCKS) > 20
    assert sum(document.read_text().count("\n```") for document in DOCUMENTS) == 2 * len(BLOCKS)
    for block in BLOCKS:
        assert block.language in LANGUAGES, f"{block}: name the language of the block: {sorted(LANGUAGES)}"


def test_a_mark_names_a_tier_and_a_reason() -> None:
    for block in BLOCKS:
        if block.capture:
            assert block.language == "text", block
        elif block.mark:
            assert block.tier in TIERS, f"{block}: {block.mark}"
            assert len(block.reason.split()) > 2, f"{block}: why?"


def test_no_command_hides_from_the_tests() -> None:
    """An indented block is no fenced one, and is not run."""
    for document in DOCUMENTS:
        for number, line in enumerate(prose(document).splitlines(), 1):
            assert not re.match(r"(    |\t)(\$ )?(sudo |mtlshm|tools/|apt|pip|python3? |systemctl)", line), (
                f"{document}:{number}"
            )


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().split()) <= WORDS


def anchors(document: Path) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", prose(document), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", prose(document)):
        path, _, anchor = target.partition("#")
        there = (document.parent / path).resolve() if path else document
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), target


def test_every_document_is_found_from_the_readme() -> None:
    linked = set(re.findall(r"\]\(([^)#]+)", (ROOT / "README.md").read_text()))
    assert {str(path.relative_to(ROOT)) for path in DOCUMENTS} - linked == {"README.md"}


# --- commands named in a sentence ----------------------------------------------------------------------


def check(words: list[str]) -> None:
    """Do these commands and options exist?"""
    program: click.Command = ctl if words[0] == "mtlshm-ctl" else mtlshmd
    rest = words[1:]
    while rest and isinstance(program, click.Group) and not rest[0].startswith("-"):
        assert rest[0] in program.commands, f"{' '.join(words)}: there is no {rest[0]}"
        program = program.commands[rest.pop(0)]
    known = {flag for param in program.params if isinstance(param, click.Option) for flag in param.opts}
    for word in rest:
        if word == "--":
            break
        assert not word.startswith("-") or word in {*known, "--help", "-h"}, f"{' '.join(words)}: there is no {word}"


def test_commands_in_sentences_exist() -> None:
    found = 0
    for document in DOCUMENTS:
        for text in re.findall(r"`((?:mtlshm-ctl|mtlshmd) [^`\n]*)`", prose(document)):
            check(shlex.split(text))
            found += 1
    assert found > 20


# --- blocks that are run -------------------------------------------------------------------------------


@pytest.fixture
def surroundings(segment: str, tmp_path: Path, manager_socket: Path, legacy_place: dict[str, str]) -> dict[str, str]:
    """What a reader has: the programs, and a segment, a socket and a legacy table that nobody else uses."""
    if not {0, 1} <= os.sched_getaffinity(0):
        pytest.skip("the documents use lcores 0 and 1; not tested: their commands")
    return (
        os.environ
        | legacy_place
        | {
            "PATH": f"{BIN}:{os.environ['PATH']}:/usr/sbin:/sbin",
            "MTLSHM_PATH": segment,
            "MTLSHMD_CONFIG": "/dev/null",
            "MTL_MANAGER_SOCK_PATH": str(manager_socket),
            "MTLSHMD_STATE": str(tmp_path / "state"),
            "MTLSHMD_PINS": str(tmp_path / "pins"),
            "HOME": str(tmp_path),
            "COLUMNS": "120",
        }
    )


@pytest.fixture
def served(surroundings: dict[str, str], daemon: Callable[..., Daemon], legacy_place: dict[str, str]) -> dict[str, str]:
    """And a daemon."""
    daemon(environment=legacy_place | {"MTLSHMD_LEGACY": "0"})
    return surroundings


@those("sh")
def test_shell(block: Block, served: dict[str, str]) -> None:
    run(["bash", "-euo", "pipefail", "-c", block.text], served, block)


@those("python")
def test_python(block: Block, served: dict[str, str]) -> None:
    run([sys.executable, "-W", "error", "-c", block.text], served, block)


@those("c")
def test_c(block: Block, surroundings: dict[str, str], tmp_path: Path) -> None:
    """A fragment is put into main(), and no call in it may fail."""
    text = block.text
    if "main(" not in text:
        checked = re.sub(r"^(mtlshm_(?!\w*_free)\w+\(.*\));", r"if (\1 < 0) return __LINE__;", text, flags=re.MULTILINE)
        text = f"#include <mtlshm.h>\nint main(void)\n{{\n{checked}return 0;\n}}\n"
    source = tmp_path / "snippet.c"
    source.write_text(text)
    core = [ROOT / "cffi_build" / name for name in (ROOT / "cffi_build/sources.txt").read_text().split()]
    compile_program(tmp_path / "snippet", source, *core, flags=["-I", ROOT / "cffi_build"])
    run([tmp_path / "snippet"], surroundings, block)


@those("toml")
def test_settings(block: Block, surroundings: dict[str, str], tmp_path: Path) -> None:
    """A daemon takes them."""
    settings = tmp_path / "mtlshmd.toml"
    settings.write_text(block.text)
    run([BIN / "mtlshmd", "--config", settings, "--version"], surroundings, block)


@pytest.mark.slow
@needs_root("commands of the documents that change the machine")
@those("sh", "root")
def test_shell_by_root(block: Block, tmp_path: Path) -> None:
    with machine(tmp_path, network=False) as there:
        run(there(block.text), dict(os.environ), block)


@pytest.mark.slow
@needs_root("commands of the documents that install packages")
@those("sh", "network")
def test_shell_with_the_network(block: Block, tmp_path: Path) -> None:
    with machine(tmp_path, network=True) as there:
        run(there(block.text), dict(os.environ), block)


# --- blocks that others run ----------------------------------------------------------------------------


@those("sh", "setup")
def test_the_setup_installs_these_packages(block: Block) -> None:
    setup = (ROOT / "tools/setup").read_text()
    for line in block.text.splitlines():
        words = shlex.split(line, comments=True)
        assert words[:2] == ["apt-get", "install"], line
        for package in words[2:]:
            assert package == "meson" or re.search(rf"\b{re.escape(package)}\b", setup), package


@those("sh", "tools")
def test_these_programs_exist_and_are_run(block: Block) -> None:
    tests = "".join(
        path.read_text()
        for path in [*ROOT.glob("tests/**/*.py"), *ROOT.glob("tools/*"), ROOT / ".ci/run"]
        if path.is_file()
    )
    for line in block.text.splitlines():
        program, *_ = shlex.split(line, comments=True)
        assert os.access(ROOT / program, os.X_OK), program
        assert program in tests or Path(program).name in tests, program


# --- output that is shown ------------------------------------------------------------------------------


def test_captures_have_the_columns_of_today(served: dict[str, str]) -> None:
    captures = [block for block in BLOCKS if block.capture]
    assert captures
    for block in captures:
        with subprocess.Popen(["mtlshm-ctl", "hold", "1"], env=served, stdout=subprocess.PIPE) as holder:
            try:
                assert holder.stdout
                holder.stdout.readline()
                output = run(["mtlshm-ctl", *shlex.split(block.capture)], served, block)
            finally:
                holder.terminate()
        for title in re.findall(r"^ *(?:lcores?|interface) .*$", output, re.MULTILINE):
            assert title.split() in [line.split() for line in block.text.splitlines()], block


# --- what is true of the core --------------------------------------------------------------------------


def test_the_layout_in_architecture_is_that_of_the_header() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    rows = re.findall(r"^\| (header|record|lcore|event)\.(\w+) \| (\d+) \| (\d+) \|", text, re.MULTILINE)
    assert len(rows) > 40
    for structure, field, offset, size in rows:
        fields = dict(ffi.typeof(f"struct mtlshm_{structure}").fields)
        assert (fields[field].offset, ffi.sizeof(fields[field].type)) == (int(offset), int(size)), field
    assert (
        f"Layout version {lib.MTLSHM_LAYOUT_VERSION}. The file has {ffi.sizeof('struct mtlshm_segment'):,} bytes."
        in text
    )


# --- troubleshooting -----------------------------------------------------------------------------------


def test_each_error_of_the_core_is_in_troubleshooting() -> None:
    text = (ROOT / "docs/troubleshooting.md").read_text()
    for number in range(1, 134):
        words = ffi.string(lib.mtlshm_strerror(number)).decode()
        if words != os.strerror(number):
            assert re.split("[:,]", words)[0] in text, words


def test_texts_in_troubleshooting_are_said_by_somebody() -> None:
    """A heading there is a text in backticks, with … for what differs from case to case."""
    sources = [*ROOT.glob("mtlshm/**/*.py"), *ROOT.glob("cffi_build/*.c")]
    said = "\n".join(re.sub(r'"\s*\n\s*f?"', "", path.read_text()) for path in sources if "_core" not in path.name)
    for title in re.findall(r"^### `(.*)`$", (ROOT / "docs/troubleshooting.md").read_text(), re.MULTILINE):
        for part in title.split("…"):
            assert part.strip(" :,.;") in said, f"{title}: nobody says {part!r}"
