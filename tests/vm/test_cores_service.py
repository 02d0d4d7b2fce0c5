# SPDX-License-Identifier: BSD-3-Clause
"""mtlshmd-cores as a service of a real systemd, by its own user.

That user may not enter directories such as /root, where this checkout and the Python of its environment may be. So
there is a copy of what is needed, run by the Python of this machine's Debian.
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.processes import DEADLINE, eventually, held
from lab.vm_nic import run
from mtlshm.manager_client import Manager

ROOT = Path(__file__).parents[2]
SEGMENT = "/dev/shm/mtlshm"
SOCKET = "/run/imtl/mtl_manager.sock"
UNITS = Path("/usr/local/lib/systemd/system")
PLACE = Path("/opt/mtlshm-cores-test")
PROGRAM = Path("/usr/local/bin/mtlshmd")
PYTHON = f"/usr/bin/python3.{sys.version_info.minor}"
NEEDED = ("cffi*", "_cffi_backend*", "posix_ipc*", "sysv_ipc*", "inotify_simple*", "click*", "rich*", "pyroute2*")

pytestmark = [
    pytest.mark.skipif(
        not Path("/run/systemd/system").exists(), reason="systemd is not the first process; not tested: mtlshmd-cores"
    ),
    pytest.mark.skipif(
        not os.access(PYTHON, os.X_OK), reason=f"no {PYTHON} for the service's user; not tested: mtlshmd-cores"
    ),
]


def systemctl(verb: str, *arguments: object) -> str:
    return run("systemctl", verb, *arguments, "mtlshmd-cores")


def shown(name: str) -> str:
    return systemctl("show", "--value", "--property", name).strip()


def pid() -> int:
    return int(shown("MainPID"))


@pytest.fixture(scope="module")
def service() -> Iterator[None]:
    """Installed and started."""
    shutil.rmtree("/etc/mtlshm", ignore_errors=True)  # the host's
    for directory in "sysusers.d", "systemd/system":
        Path("/usr/local/lib", directory).mkdir(parents=True, exist_ok=True)
    shutil.copy(ROOT / "tools/mtlshm.sysusers", "/usr/local/lib/sysusers.d/mtlshm.conf")
    run("systemd-sysusers", "mtlshm.conf")
    shutil.copy(ROOT / "build/mtlshmd-cores.service", UNITS)
    shutil.copytree(ROOT / "mtlshm", PLACE / "mtlshm", ignore=shutil.ignore_patterns("__pycache__"))
    site = Path(next(path for path in sys.path if path.endswith("site-packages")))
    for pattern in (*NEEDED, "prometheus_client*"):
        for source in site.glob(pattern):
            (shutil.copytree if source.is_dir() else shutil.copy)(source, PLACE / source.name)
    run("chmod", "-R", "a+rX", PLACE)
    PROGRAM.unlink(missing_ok=True)
    PROGRAM.write_text(
        f"#!{PYTHON} -sE\nimport sys\nsys.path.insert(0, {str(PLACE)!r})\n"
        "from mtlshm.daemon.app import main\nsys.exit(main())\n"
    )
    PROGRAM.chmod(0o755)
    run("systemctl", "daemon-reload")
    systemctl("start")
    yield
    systemctl("stop")
    PROGRAM.unlink()
    Path(SEGMENT).unlink(missing_ok=True)
    shutil.rmtree("/run/imtl", ignore_errors=True)
    (UNITS / "mtlshmd-cores.service").unlink()
    run("systemctl", "daemon-reload")
    shutil.rmtree(PLACE)


@pytest.fixture
def client(service: None) -> Iterator[Manager]:
    """Has an lcore."""
    with Manager(SOCKET, timeout=DEADLINE) as manager:
        manager.register()
        manager.get_lcore(0)
        yield manager
    eventually(lambda: held(SEGMENT) == set())


def test_it_serves_without_any_privilege(service):
    assert (shown("ActiveState"), shown("NRestarts")) == ("active", "0")
    assert run("systemd-analyze", "verify", "--man=no", UNITS / "mtlshmd-cores.service") == ""
    status = Path(f"/proc/{pid()}/status").read_text()
    assert f"\nUid:\t{pwd.getpwnam('mtlshm').pw_uid}\t" in status
    for kind in "Prm", "Eff", "Bnd", "Amb":
        assert re.search(rf"^Cap{kind}:\t0+$", status, re.MULTILINE), status
    for path, mode in (SEGMENT, "660"), (SOCKET, "660"):
        assert run("stat", "--format=%U %G %a", path) == f"mtlshm mtl {mode}\n"


@pytest.mark.parametrize("end", ["restart", "crash"])
def test_a_client_notices_nothing_of_it(client, end):
    before = pid()
    if end == "crash":
        os.kill(before, signal.SIGKILL)
    else:
        systemctl("restart")
    eventually(lambda: pid() not in (0, before))
    client.heartbeat()
    assert held(SEGMENT) == {0}
    client.put_lcore(0)
    client.get_lcore(0)


def test_what_a_client_held_that_was_killed_is_free(service):
    code = f"from mtlshm.manager_client import Manager\nm = Manager({SOCKET!r})\nm.register()\nm.get_lcore(0)\n"
    command = [sys.executable, "-c", f"{code}print(flush=True)\nimport time\ntime.sleep(1000000)"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"\n"
        assert held(SEGMENT) == {0}
        process.kill()
    eventually(lambda: held(SEGMENT) == set())


def test_wrong_settings_fail_a_reload_and_change_nothing(client):
    settings = Path("/etc/mtlshm/mtlshmd.toml")
    settings.parent.mkdir()
    settings.write_text("nonsense")
    before = pid()
    assert subprocess.run(["systemctl", "reload", "mtlshmd-cores"], capture_output=True).returncode != 0
    assert pid() == before
    shutil.rmtree(settings.parent)
    systemctl("reload")
    client.heartbeat()
