# SPDX-License-Identifier: BSD-3-Clause
"""What the runner of external programs promises, with programs of the test's own under the names of the real ones."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from lab.processes import DEADLINE, eventually
from mtlshm.net.tool import Result, Tools

Script = Callable[[str], None]


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Script:
    """Writes a shell script that is found as `ethtool`."""
    program = tmp_path / "bin/ethtool"
    program.parent.mkdir()
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")

    def write(text: str) -> None:
        program.write_text(f"#!/bin/sh\n{textwrap.dedent(text)}\n")
        program.chmod(0o755)

    return write


def gone(pid: int) -> bool:
    """Is there no such process, but for a zombie?"""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


async def change(tools: Tools, *arguments: str) -> Result:
    async with tools.changing() as run:
        return await run("ethtool", *arguments)


def test_output_and_status_are_returned(script: Script, tmp_path: Path) -> None:
    script('echo "$@"; echo "in $LC_ALL" >&2; exit 7')
    tools = Tools(tmp_path)
    assert asyncio.run(tools.read("ethtool", "-l", "a b")) == Result(7, "-l a b\n", "in C\n")
    assert asyncio.run(change(tools, "-N")) == Result(7, "-N\n", "in C\n")


def test_a_program_ended_by_a_signal_has_a_negative_status(script: Script, tmp_path: Path) -> None:
    script("kill -9 $$")
    assert asyncio.run(Tools(tmp_path).read("ethtool")).status == -signal.SIGKILL


def test_output_of_any_size_and_any_bytes_is_taken(script: Script, tmp_path: Path) -> None:
    script(r"head -c 3000000 /dev/zero; printf '\377'")
    result = asyncio.run(Tools(tmp_path).read("ethtool"))
    assert result.output == "\0" * 3_000_000 + "\N{REPLACEMENT CHARACTER}"


def test_a_child_left_behind_with_the_output_open_keeps_nobody_waiting(script: Script, tmp_path: Path) -> None:
    script("echo done; sleep 60 & echo $! >&2")
    result = asyncio.run(Tools(tmp_path).read("ethtool"))
    try:
        assert result.output == "done\n"
    finally:
        os.kill(int(result.complaint), signal.SIGKILL)


def test_the_loop_goes_on_meanwhile(script: Script, tmp_path: Path) -> None:
    script(f"while [ ! -e {tmp_path}/go ]; do sleep 0.01; done")

    async def run() -> None:
        command = asyncio.create_task(Tools(tmp_path).read("ethtool"))
        await asyncio.sleep(0)
        (tmp_path / "go").touch()
        assert (await command).status == 0

    asyncio.run(run())


def test_a_missing_program_names_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("mtlshm.net.tool._SBIN", ())
    with pytest.raises(FileNotFoundError, match="apt-get install xdp-tools") as caught:
        asyncio.run(Tools(tmp_path).read("xdp-loader", "status"))
    assert caught.value.errno == errno.ENOENT


def test_one_that_hangs_is_killed_with_its_children_and_reported(script: Script, tmp_path: Path) -> None:
    script(f"sleep 60 & echo $$ $! > {tmp_path}/pids; wait")

    with pytest.raises(TimeoutError, match=r"ethtool -N eth0: not done within 0\.5 s") as caught:
        asyncio.run(change(Tools(tmp_path, timeout=0.5), "-N", "eth0"))
    assert caught.value.errno == errno.ETIMEDOUT
    for pid in map(int, (tmp_path / "pids").read_text().split()):
        eventually(lambda pid=pid: gone(pid))
    # And the lock is free again.
    script("exit 0")
    assert asyncio.run(change(Tools(tmp_path), "-N")).status == 0


def test_cancelled_it_leaves_no_process(script: Script, tmp_path: Path) -> None:
    script(f"echo $$ > {tmp_path}/new; mv {tmp_path}/new {tmp_path}/pid; exec sleep 60")

    async def run() -> None:
        command = asyncio.create_task(Tools(tmp_path, timeout=60).read("ethtool"))
        while not (tmp_path / "pid").exists():
            await asyncio.sleep(0.01)
        command.cancel()
        with pytest.raises(asyncio.CancelledError):
            await command

    asyncio.run(run())
    pid = int((tmp_path / "pid").read_text())
    eventually(lambda: gone(pid))


def test_a_dry_run_reads_but_shows_what_it_would_change(script: Script, tmp_path: Path) -> None:
    script(f"echo run >> {tmp_path}/runs")
    shown: list[str] = []
    tools = Tools(tmp_path / "state", show=shown.append)
    asyncio.run(tools.read("ethtool", "-l", "eth0"))
    assert asyncio.run(change(tools, "-N", "eth0", "a b")) == Result(0, "", "")
    assert shown == ["ethtool -N eth0 'a b'"]
    assert (tmp_path / "runs").read_text() == "run\n"
    assert not (tmp_path / "state").exists()


def test_each_command_is_one_line_in_the_log(script: Script, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "mtlshmd")
    script(r"printf 'no\nsuch rule' >&2; exit 1")
    asyncio.run(change(Tools(tmp_path), "-N", "eth0"))
    (line,) = caplog.messages
    assert line.startswith("ethtool -N eth0: status 1, ")
    assert line.endswith(r": 'no\nsuch rule'")


# --- one at a time -------------------------------------------------------------------------------------


def test_changes_do_not_overlap_between_two_users_nor_between_tasks(script: Script, tmp_path: Path) -> None:
    script(f"mkdir {tmp_path}/inside || exit 1; sleep 0.02; rmdir {tmp_path}/inside")

    async def run() -> list[Result]:
        one, other = Tools(tmp_path), Tools(tmp_path)
        return await asyncio.gather(*(change(tools) for tools in (one, other) * 5))

    assert [result.status for result in asyncio.run(run())] == [0] * 10


def test_reading_does_not_wait_for_the_lock(script: Script, tmp_path: Path) -> None:
    script("exit 0")

    async def run() -> None:
        async with Tools(tmp_path).changing():
            assert (await Tools(tmp_path).read("ethtool")).status == 0

    asyncio.run(run())


def test_lock_error_says_why(script: Script, tmp_path: Path) -> None:
    script("exit 0")

    async def run() -> None:
        async with Tools(tmp_path).changing():
            await change(Tools(tmp_path, timeout=0.05))

    with pytest.raises(TimeoutError, match=r"fuser -v .*change.lock") as caught:
        asyncio.run(run())
    assert caught.value.errno == errno.ETIMEDOUT


def test_nobody_else_may_open_the_lock(script: Script, tmp_path: Path) -> None:
    script("exit 0")
    asyncio.run(change(Tools(tmp_path / "state")))
    assert (tmp_path / "state/change.lock").stat().st_mode & 0o777 == 0o600


async def test_what_fails_is_counted_by_program_and_reason(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script('[ "$1" != fail ] || exit 3\n[ "$1" != hang ] || sleep 1000')
    tools, hasty = Tools(tmp_path, timeout=DEADLINE), Tools(tmp_path, timeout=0.1)
    await tools.read("ethtool", "fine")
    await tools.read("ethtool", "fail")
    with pytest.raises(TimeoutError):
        await hasty.read("ethtool", "hang")
    monkeypatch.setattr("mtlshm.net.tool._SBIN", ())
    monkeypatch.setenv("PATH", str(tmp_path / "none"))
    with pytest.raises(FileNotFoundError):
        await tools.read("xdp-loader", "status")
    assert +tools.failures == {("ethtool", "status"): 1, ("xdp-loader", "missing"): 1}
    assert +hasty.failures == {("ethtool", "timeout"): 1}


ORPHAN = """
import asyncio, sys
from pathlib import Path
from mtlshm.net.tool import Tools
async def main():
    async with Tools(Path(sys.argv[1]), timeout=60).changing() as change:
        await change("ethtool", "slow")
asyncio.run(main())
"""


def test_if_we_are_killed_the_next_one_waits_until_the_orphaned_command_is_done(script: Script, tmp_path: Path) -> None:
    """The orphan is done only when it is told so: after the other has begun to wait."""
    script(
        f"""
        if [ "$1" = slow ]; then
            touch {tmp_path}/started
            while [ ! -e {tmp_path}/go ]; do sleep 0.01; done
        fi
        echo "$1" >> {tmp_path}/order
        """
    )
    with subprocess.Popen([sys.executable, "-c", ORPHAN, str(tmp_path)]) as killed:
        eventually((tmp_path / "started").exists)
        killed.kill()

    async def run() -> None:
        next_one = asyncio.create_task(change(Tools(tmp_path, timeout=DEADLINE), "next"))
        await asyncio.sleep(0.1)
        assert not (tmp_path / "order").exists()
        (tmp_path / "go").touch()
        await next_one

    asyncio.run(run())
    assert (tmp_path / "order").read_text() == "slow\nnext\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="not root; not tested: directories of others")
async def test_no_lock_is_made_in_a_directory_others_can_write(tmp_path: Path) -> None:
    """A link of theirs would lead us elsewhere."""
    (tmp_path / "theirs").mkdir()
    os.chown(tmp_path / "theirs", 65534, 0)
    with pytest.raises(PermissionError, match="theirs belongs to uid 65534"):
        async with Tools(tmp_path / "theirs/state").changing():
            pass
    assert not (tmp_path / "theirs/state/change.lock").exists()
