# SPDX-License-Identifier: BSD-3-Clause
"""tools/vm, which boots for each of these. Tests in the machine are in tests/vm."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from lab.processes import eventually

ROOT = Path(__file__).parents[2]
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"), "mtlshm/vm/kernel")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CACHE.exists(), reason="not tested: tools/vm, as its kernel is not here; tools/vm gets it"),
]


def vm(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([ROOT / "tools/vm", *arguments], capture_output=True, text=True)


def test_output_and_exit_status_are_the_commands() -> None:
    result = vm("sh", "-c", 'echo "$0"; uname -r; exit 7', "a word")
    assert result.returncode == 7
    word, release = result.stdout.splitlines()
    assert word == "a word"
    assert release == next((CACHE / "lib/modules").iterdir()).name


def test_command_has_xdp_and_cannot_change_the_checkout() -> None:
    name = f"vm-{os.getpid()}"
    places = "/proc /sys /sys/fs/bpf /dev/shm /tmp /run"
    result = vm("sh", "-c", f"pwd; stat --file-system --format %T {places}; touch {name} /tmp/{name} /run/{name}")
    assert result.returncode == 0
    assert result.stdout.split() == [str(ROOT), "proc", "sysfs", "bpf_fs", "tmpfs", "tmpfs", "tmpfs"]
    assert not (ROOT / name).exists()


def test_systemd_is_the_first_process_if_asked_for() -> None:
    result = vm("--systemd", "sh", "-c", "cat /proc/1/comm; systemctl is-active vm systemd-journald; exit 7")
    assert result.returncode == 7
    assert result.stdout.split() == ["systemd", "active", "active"]


def test_a_panic_is_a_failure_and_its_last_words_are_shown() -> None:
    result = vm("sh", "-c", "echo before; echo c >/proc/sysrq-trigger")
    assert result.returncode == 125
    assert result.stdout == "before\n"
    assert "Kernel panic" in result.stderr


def test_a_command_that_hangs_is_ended() -> None:
    result = vm("--timeout", "3", "sleep", "1000")
    assert result.returncode == 124
    assert "not done in 3 s: sleep 1000" in result.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_machine_ends_with_its_starter(tmp_path: Path, number: int) -> None:
    """In a session of its own, of which nothing is left."""

    def in_session() -> set[str]:
        command = ["ps", "-o", "comm=", "--sid", str(process.pid)]
        return set(subprocess.run(command, stdout=subprocess.PIPE, text=True).stdout.split())

    environment = os.environ | {"TMPDIR": str(tmp_path)}
    command = [ROOT / "tools/vm", "sleep", "1000"]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        eventually(lambda: "qemu-system-x86" in in_session())
    finally:
        process.send_signal(number)
        process.wait()
    eventually(lambda: not in_session())
