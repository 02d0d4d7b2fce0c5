# SPDX-License-Identifier: BSD-3-Clause
"""The manual pages, which are written by hand, say neither less nor more than the programs have."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from mtlshm._core import lib
from mtlshm.ctl.app import load
from mtlshm.daemon.app import command as daemon
from mtlshm.dra.app import command as driver

ROOT = Path(__file__).parents[2]
PAGES = {path.name: path.read_text() for path in (ROOT / "docs/man").iterdir()}
HELP = {"-h", "--help"}
ctl = load()


def section(page: str, title: str) -> str:
    """Up to the next one."""
    return re.split(r"^\.Sh .*\n", PAGES[page].split(f".Sh {title}\n")[1], maxsplit=1, flags=re.MULTILINE)[0]


def items(text: str) -> Iterator[tuple[str, str]]:
    """Of lists: what each is about, on its line, and what follows."""
    for item in re.split(r"^\.It ", text, flags=re.MULTILINE)[1:]:
        head, _, rest = item.partition("\n")
        yield head, rest


def flags(text: str) -> set[str]:
    return {f"-{flag}" for flag in re.findall(r"\bFl (\S+)", text)}


def variables(text: str) -> set[str]:
    return {word for line in re.findall(r"\bEv (.+)", text) for word in re.findall(r"\w+", line)}


def options(command: click.Command) -> set[str]:
    return {flag for param in command.params if isinstance(param, click.Option) for flag in param.opts}


def verbs(group: click.Group, before: str = "") -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        if not isinstance(command, click.Group) or options(command):
            yield before + name, command
        if isinstance(command, click.Group):
            yield from verbs(command, f"{before}{name} ")


def settings(command: click.Command) -> set[str]:
    """The variables of the environment that it reads."""
    return {param.envvar for param in command.params if isinstance(param.envvar, str)}


@pytest.mark.parametrize("page", sorted(set(PAGES) - {"MtlManager.8"}))
def test_a_page_has_no_fault(page):
    checked = subprocess.run(["mandoc", "-T", "lint", "-W", "warning", ROOT / "docs/man" / page], capture_output=True)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")


def test_the_daemon_is_found_by_its_other_name():
    assert PAGES["MtlManager.8"] == ".so man8/mtlshmd.8\n"


def test_the_driver_has_these_options_variables_and_exit_statuses():
    found = {flag: head for head, _ in items(section("mtlshm-dra.8", "OPTIONS")) for flag in flags(head)}
    assert found.keys() == options(driver) | HELP
    for param in driver.params:
        assert variables(found[param.opts[0]]) == ({param.envvar} - {None}), param.name
    told = {head: rest.splitlines()[0] for head, rest in items(section("mtlshm-dra.8", "EXIT STATUS"))}
    said = re.findall(r"(\d) ([^;.]*)", " ".join(driver.help.split("Exit status:")[1].split()))
    assert told == dict(said)


def test_the_daemon_has_these_options_and_variables():
    found = {flag: text for head, text in items(section("mtlshmd.8", "OPTIONS")) for flag in flags(head)}
    assert found.keys() == options(daemon) | HELP
    for param in daemon.params:
        assert variables(found[param.opts[0]]) - {"XDG_RUNTIME_DIR"} == ({param.envvar} - {None}), param.name


def test_the_command_line_has_these_verbs_with_these_options():
    found = {}
    for head, text in items(section("mtlshm-ctl.1", "COMMANDS")):
        assert head == "Xo"
        verb, rest = re.fullmatch(r"\.Cm (.*)\n([\s\S]*)", text).groups()
        found[verb] = flags(rest)
    assert found == {name: options(command) for name, command in verbs(ctl)}
    described = section("mtlshm-ctl.1", "DESCRIPTION")
    assert {flag for head, _ in items(described) for flag in flags(head)} == options(ctl) | HELP


def test_the_command_line_has_these_variables():
    read = settings(ctl).union(*(settings(command) for _, command in verbs(ctl)))
    told = {name for head, _ in items(section("mtlshm-ctl.1", "ENVIRONMENT")) for name in variables(head)}
    assert told == read | {"MTL_MANAGER_SOCK_PATH", "MTLSHM_LCORES", "MTLSHM_LEASE", "MTLSHMD_CONFIG"}


def test_exit_statuses_are_those_of_the_documents_and_of_the_help():
    rows = re.findall(r"^\| (`run`|\d+) \| (.*) \|$", (ROOT / "docs/operations.md").read_text(), re.MULTILINE)
    table = dict(rows)
    ofrun = table.pop("`run`")
    text = section("mtlshm-ctl.1", "EXIT STATUS")
    assert {head: rest.splitlines()[0] for head, rest in items(text)} == table
    numbers = set(re.findall(r"\d+", ofrun))
    assert numbers == set(re.findall(r"\d+", text.split(".El\n")[1]))
    assert numbers | table.keys() == set(re.findall(r"\d+", ctl.help.split("Exit status:")[1]))
    told = {head: rest.splitlines()[0] for head, rest in items(section("mtlshmd.8", "EXIT STATUS"))}
    said = re.findall(r"(\d) ([^;.]*)", " ".join(daemon.help.split("Exit status:")[1].split()))
    assert told == dict(said)


def test_the_library_has_these_functions():
    told = re.findall(r"\bFn (\w+)", PAGES["mtlshm.3"])
    assert set(told) == {name for name in dir(lib) if name.startswith("mtlshm_")}
