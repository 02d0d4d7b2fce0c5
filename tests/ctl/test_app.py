# SPDX-License-Identifier: BSD-3-Clause
"""What all verbs have in common."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from lab.processes import BIN, DEADLINE, namespaces
from mtlshm.config import DEFAULT_FILE

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
    (etc / "mtlshm" / DEFAULT_FILE.name).write_text(f'segment = "{tmp_path}/seg"\n')
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
