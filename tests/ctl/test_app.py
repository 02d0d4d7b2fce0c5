# SPDX-License-Identifier: BSD-3-Clause
"""What all verbs have in common."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from lab.processes import BIN, DEADLINE, namespaces, run_python
from mtlshm import Host
from mtlshm.config import DEFAULT_FILE
from mtlshm.ctl.app import load

CTL = str(BIN / "mtlshm-ctl")


@pytest.fixture
def settings(tmp_path: Path, environment: dict[str, str]) -> Path:
    """The daemon's settings file, which is the command line's as well; nothing else says where anything is."""
    path = tmp_path / "mtlshmd.toml"
    for name in ("MTLSHM_PATH", "MTLSHMD_STATE"):
        environment.pop(name)
    environment |= {"MTLSHMD_CONFIG": str(path)}
    return path


def test_the_segment_is_that_of_the_settings_file(ctl, start_ctl, daemon, settings, tmp_path):
    segment = tmp_path / "run/mtlshm"
    segment.parent.mkdir()
    settings.write_text(f'segment = "{segment}"\n')
    server = daemon("--config", settings, environment={"MTLSHM_PATH": ""})
    assert f"ready: {segment}," in server.log()
    holder = start_ctl("hold", "--lcores", 1)
    held = int(holder.stdout.readline())
    data = json.loads(ctl("status", "--json").stdout)
    assert data["segment"] == str(segment)
    assert [lcore["lcore"] for lcore in data["lcores"]] == [held]
    assert {instance["kind"] for instance in data["instances"]} == {"daemon", "shm"}
    assert str(segment) in ctl("doctor", "--legacy-lock", tmp_path / "none").stdout


def test_the_settings_file_in_etc_counts_if_none_is_named(environment, settings, tmp_path):
    etc = tmp_path / "etc"
    (etc / "mtlshm").mkdir(parents=True)
    (etc / "mtlshm" / Path(DEFAULT_FILE).name).write_text(f'segment = "{tmp_path}/seg"\n')
    environment.pop("MTLSHMD_CONFIG")
    script = 'mount --bind "$1" /etc && exec "$2" run --lcores 1 true'
    subprocess.run(
        [*namespaces("mount"), "sh", "-c", script, "sh", etc, CTL], env=environment, check=True, timeout=DEADLINE
    )
    assert (tmp_path / "seg").exists()


def test_the_ledger_and_the_legacy_table_are_those_of_the_settings_file(ctl, settings, segment, tmp_path):
    settings.write_text(f'state = "{tmp_path}/ledger-here"\nlegacy_key = "nonsense"\nlegacy_lock = "{tmp_path}/lock"\n')
    assert f"{tmp_path}/ledger-here" in ctl("queues").stderr
    done = ctl("legacy", "info")
    assert done.returncode == 2
    assert "nonsense" in done.stderr
    assert f"{tmp_path}/lock" in ctl("legacy", "--key", "0x7b0000", "info").stderr


@pytest.mark.parametrize("key", ["nonsense", "0", "0x100000000"])
def test_a_key_that_no_table_can_have_is_wrong_usage(ctl, key):
    done = ctl("legacy", "--key", key, "info")
    assert done.returncode == 2
    assert f"{key!r} is not a key such as 0x15000004" in done.stderr


@pytest.mark.parametrize(("verb", "code"), [(("hold", 0), 1), (("status",), 1), (("run", "--lcores", 1, "true"), 125)])
def test_a_settings_file_that_cannot_be_used_is_named_in_one_line(ctl, settings, verb, code):
    settings.write_text("segment = nonsense\n")
    done = ctl(*verb)
    assert done.returncode == code
    assert done.stderr.count("\n") == 1
    assert str(settings) in done.stderr


@pytest.mark.parametrize("group", [(), ("xdp",), ("legacy",)])
def test_the_list_of_commands_says_each_in_a_whole_sentence(ctl, group):
    _, listed = ctl(*group, "--help").stdout.split("Commands:\n")
    assert all(line.startswith("  ") and line.endswith(".") for line in listed.splitlines())
    assert "..." not in listed


def test_each_verb_has_the_summary_that_help_prints(ctl):
    """It is written twice, so that --help imports no verb."""
    words = " ".join(ctl("--help").stdout.split())
    command = load()
    assert list(command.commands) == sorted(command.commands)
    for name, verb in command.commands.items():
        assert f" {name} {verb.get_short_help_str(limit=100)}" in words


def test_status_alone_needs_neither_click_nor_rich(segment):
    """To import them would take longer than all else it does."""
    code = (
        "import os, sys\nbefore = set(sys.modules)\nfrom mtlshm.ctl.start import main\n"
        "os.environ.pop('MTLSHMD_CONFIG', None)\n"
        "sys.argv = ['mtlshm-ctl', '--segment', sys.argv[1], 'status']\nmain()\n"
        "print({'click', 'rich', 'dataclasses', 'pathlib', 'logging'} & (set(sys.modules) - before))"
    )
    with Host(segment) as host, host.register("shown"):
        *lines, imported = run_python(code, segment).splitlines()
    assert any("shown" in line for line in lines)
    assert imported == "set()"


def test_status_alone_is_what_click_makes_of_it(ctl, segment, environment):
    with Host(segment) as host, host.register("shown"):
        ways = ("status",), ("--segment", segment, "status"), (f"--segment={segment}", "status")
        said = {re.sub(r" \d+s$", "", ctl(*words).stdout, flags=re.MULTILINE) for words in ways}
    assert len(said) == 1
    environment["MTLSHM_PATH"] = ""  # as if it were not set
    assert "/dev/shm/mtlshm" in "".join((done := ctl("status")).stdout + done.stderr)
    for words in ("status",), (f"--segment={segment}-not", "status"), ("--segment", f"{segment}-not", "status"):
        environment["MTLSHM_PATH"] = f"{segment}-not"
        done = ctl(*words)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (3, "", 1)


def test_a_reader_that_has_seen_enough_gets_no_traceback(segment, environment):
    Host(segment).close()
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([BIN / "mtlshm-ctl", "status"], env=environment, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")
