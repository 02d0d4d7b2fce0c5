# SPDX-License-Identifier: BSD-3-Clause
"""mtlshmd as a service of a real systemd, with the unit file as it is installed.

The daemon takes seconds to start here, so it is started once for all, and each test has the one that the test before
has left. Of so small a host nothing is lent to legacy processes.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.damages import poke
from lab.networks import QUEUES, veth
from lab.processes import BIN, DEADLINE, eventually, held
from lab.vm_nic import nic as made_nic
from lab.vm_nic import run
from mtlshm import Host, wire
from mtlshm.manager_client import Manager
from mtlshm.net.attached import look
from mtlshm.net.ledger import Ledger
from mtlshm.net.places import STATE
from mtlshm.wire import Heartbeat, Response, Type

ROOT = Path(__file__).parents[2]
SEGMENT = "/dev/shm/mtlshm"
UNITS = Path("/usr/local/lib/systemd/system")
CONFIG = Path("/etc/mtlshm/mtlshmd.toml")
DROP_IN = Path("/run/systemd/system/mtlshmd.service.d/test.conf")

pytestmark = pytest.mark.skipif(
    not Path("/run/systemd/system").exists(), reason="systemd is not the first process; not tested: the unit file"
)


def systemctl(verb: str, *arguments: object) -> str:
    return run("systemctl", verb, *arguments, "mtlshmd")


def shown(name: str) -> str:
    return systemctl("show", "--value", "--property", name).strip()


def pid() -> int:
    return int(shown("MainPID"))


def journal(*matches: str) -> str:
    """Of the whole boot: other tests have had the service started, reloaded and stopped before."""
    return run("journalctl", "--output", "cat", "--unit", "mtlshmd", *matches)


def of_the_daemon() -> str:
    """A match of the journal: what the daemon that runs now has said."""
    return f"_PID={pid()}"


@pytest.fixture(scope="module")
def service() -> Iterator[None]:
    """Installed and started."""
    shutil.rmtree(CONFIG.parent, ignore_errors=True)  # the host's
    UNITS.mkdir(parents=True, exist_ok=True)
    shutil.copy(ROOT / "build/mtlshmd.service", UNITS)
    Path("/usr/local/bin/mtlshmd").unlink(missing_ok=True)
    Path("/usr/local/bin/mtlshmd").symlink_to(BIN / "mtlshmd")
    run("systemctl", "daemon-reload")
    systemctl("start")
    yield
    systemctl("stop")
    Path("/usr/local/bin/mtlshmd").unlink()
    run(BIN / "mtlshmd", "--teardown")


@pytest.fixture
def drop_in() -> Iterator[Path]:
    DROP_IN.parent.mkdir()
    yield DROP_IN
    shutil.rmtree(DROP_IN.parent)
    run("systemctl", "daemon-reload")


@pytest.fixture
def client(service: None) -> Iterator[Manager]:
    """Has an lcore."""
    with Manager(timeout=DEADLINE) as manager:
        manager.register()
        manager.get_lcore(0)
        yield manager
    eventually(lambda: held(SEGMENT) == set())


def test_the_unit_file_has_no_fault(service):
    assert run("systemd-analyze", "verify", "--man=no", UNITS / "mtlshmd.service") == ""


def test_it_is_ready_when_it_is_started_and_reads_its_settings_again(service):
    assert (shown("ActiveState"), shown("NRestarts")) == ("active", "0")
    Manager(timeout=DEADLINE).close()
    directory = Path("/run/imtl").stat()
    assert (stat.filemode(directory.st_mode), directory.st_uid) == ("drwxr-xr-x", 0)
    eventually(lambda: "ready: /dev/shm/mtlshm" in journal(of_the_daemon()))
    CONFIG.parent.mkdir()
    CONFIG.write_text("nonsense")
    before = pid()
    failed = subprocess.run(["systemctl", "reload", "mtlshmd"], capture_output=True, text=True)
    assert failed.returncode != 0
    eventually(lambda: f"{CONFIG}: " in journal())
    assert (shown("ActiveState"), pid()) == ("active", before)
    assert "configuration" not in journal(of_the_daemon())
    shutil.rmtree(CONFIG.parent)
    systemctl("reload")
    eventually(lambda: "configuration reloaded" in journal(of_the_daemon()))


def test_the_journal_has_priorities_and_one_time(service):
    lines = run("journalctl", "--unit", "mtlshmd", "--output", "json", of_the_daemon()).splitlines()
    messages = {entry["MESSAGE"]: entry["PRIORITY"] for entry in map(json.loads, lines)}
    assert [priority for text, priority in messages.items() if text.startswith("ready: ")] == ["6"]


def test_wrong_settings_are_seen_by_whoever_starts_it_and_clients_wait_for_the_mended_ones(client):
    CONFIG.parent.mkdir()
    CONFIG.write_text('log_level = "loud"\n')
    failed = subprocess.run(["systemctl", "restart", "mtlshmd"], capture_output=True, text=True)
    assert failed.returncode != 0
    assert "loud" in journal()
    shutil.rmtree(CONFIG.parent)
    client.heartbeat()
    client.put_lcore(0)
    client.get_lcore(0)


def test_beside_a_segment_of_another_layout_in_use_it_is_not_started_again_and_again(service):
    systemctl("stop")
    with Host(SEGMENT) as host:
        host.reserve("studio", 1)
    for field in "version", "fingerprint":
        poke(SEGMENT, "header", field, value=99)
    try:
        failed = subprocess.run(["systemctl", "start", "mtlshmd"], capture_output=True, text=True)
        assert failed.returncode != 0
        assert (shown("ActiveState"), shown("ExecMainStatus"), shown("NRestarts")) == ("failed", "3", "0")
        assert "layout version 99" in journal()
        assert "1 reservation is in it" in journal()
    finally:
        Path(SEGMENT).unlink()
        systemctl("reset-failed")
        systemctl("start")


def test_a_client_notices_nothing_of_a_restart(client):
    before = pid()
    os.kill(before, signal.SIGSTOP)  # so that this is for the next one to answer
    client.socket.sendall(wire.encode(Type.HEARTBEAT, Heartbeat(9)))
    systemctl("restart")
    assert pid() != before
    assert client.receive() == (204, Response(9))
    assert held(SEGMENT) == {0}
    client.put_lcore(0)
    assert held(SEGMENT) == set()
    client.get_lcore(0)


def test_client_notices_no_crash_after_systemd_reexecuted(client):
    run("systemctl", "daemon-reexec")
    before = pid()
    os.kill(before, signal.SIGSTOP)
    client.socket.sendall(wire.encode(Type.HEARTBEAT, Heartbeat(9)))
    os.kill(before, signal.SIGKILL)
    assert client.receive() == (204, Response(9))
    client.put_lcore(0)
    client.get_lcore(0)


def test_client_that_ends_meanwhile_leaves_nothing(client):
    assert shown("NFileDescriptorStore") == "2"  # and the listener
    before = pid()
    os.kill(before, signal.SIGSTOP)
    client.close()
    os.kill(before, signal.SIGKILL)
    eventually(lambda: held(SEGMENT) == set())
    eventually(lambda: shown("NFileDescriptorStore") == "1")


def test_a_client_outlasts_a_daemon_that_cannot_start_for_a_while(client, drop_in, tmp_path):
    """However often systemd tries: what is in the way may be a mistake in a setting, which somebody will mend."""
    obstacle = tmp_path / "obstacle"
    obstacle.touch()
    drop_in.write_text(f"[Service]\nExecStartPre=\nExecStartPre=/usr/bin/test ! -e {obstacle}\nRestartSec=10ms\n")
    run("systemctl", "daemon-reload")
    enough = int(shown("NRestarts")) + int(shown("StartLimitBurst")) + 1
    os.kill(pid(), signal.SIGKILL)
    eventually(lambda: int(shown("NRestarts")) > enough or shown("ActiveState") == "failed")
    obstacle.unlink()
    client.heartbeat()
    client.put_lcore(0)
    client.get_lcore(0)


def test_privileged_work_is_done(service):
    with made_nic() as nic, Manager(timeout=DEADLINE) as manager:
        manager.register((nic.link.index,))
        assert "xsk_def_prog" in run("xdp-loader", "status", nic.link.name)
        nic.receive_as_libmtl(manager, 30000)
        _, *opened = manager.open_xsk(wire.OpenXsk(nic.link.index, "", 2048, 64, 64, 64, 64, 0))
        for descriptor in opened:
            os.close(descriptor)
        manager.close()
        eventually(lambda: asyncio.run(look(nic.link.index)).programs == ())


def test_slow_request_is_answered_before_it_stops(service, stand_in, drop_in, tmp_path):
    """A command that it runs is not ended with it."""
    settings = {name: os.environ[name] for name in ("PATH", "MTLSHM_ETHTOOL_STAND_IN")} | {"MTLSHMD_XDP": "fused"}
    drop_in.write_text("[Service]\n" + "".join(f'Environment="{name}={value}"\n' for name, value in settings.items()))
    run("systemctl", "daemon-reload")
    systemctl("restart")
    with veth() as link, Manager(timeout=DEADLINE) as manager:
        stand_in.set(link.name, combined=QUEUES, delay=0.5)
        manager.register((link.index,))
        flow = wire.Interface(link.index, 1, 0, 2, destination_port=20000)
        manager.socket.sendall(wire.encode(Type.IF_ADD_FLOW, flow))
        with Ledger(Path(STATE), read_only=True) as ledger:
            eventually(ledger.flows)
        systemctl("restart")
        assert manager.receive() == (203, Response(1))
        assert list(stand_in.rules(link.name)) == [1]


def test_runtime_directory_outlasts_the_service(service):
    systemctl("stop")
    assert (shown("ActiveState"), shown("Result")) == ("inactive", "success")
    assert shown("NFileDescriptorStore") == "0"
    assert Path("/run/imtl").is_dir()
    with pytest.raises(ConnectionRefusedError), socket.socket(socket.AF_UNIX) as probe:
        probe.connect("/run/imtl/mtl_manager.sock")
