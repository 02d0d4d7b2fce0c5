# SPDX-License-Identifier: BSD-3-Clause
"""Where the manager socket is, what the daemon replaces there, and who may use it."""

from __future__ import annotations

import errno
import signal
from pathlib import Path

from lab.processes import DEADLINE, UNPRIVILEGED, needs_root, run_python
from mtlshm.manager_client import Manager


def test_a_living_daemons_socket_is_not_stolen(daemon, connect, segment, manager_socket, tmp_path):
    manager = connect()
    other = daemon("--segment", f"{segment}-other", ready=False)
    try:
        assert other.wait() == 1
    finally:
        Path(f"{segment}-other").unlink(missing_ok=True)
    assert "another daemon serves it" in other.log()
    manager.heartbeat()
    connect().heartbeat()


def test_a_stale_socket_file_is_replaced(daemon, manager_socket):
    daemon().end(signal.SIGKILL)
    assert manager_socket.exists()
    daemon()
    with Manager(manager_socket, timeout=DEADLINE) as manager:
        manager.heartbeat()


def test_a_file_that_is_no_socket_is_not_removed(daemon, manager_socket):
    manager_socket.write_text("precious")
    assert daemon(ready=False).wait() == 1
    assert manager_socket.read_text() == "precious"


def test_error_names_the_file_in_the_sockets_place(daemon, manager_socket):
    manager_socket.mkdir()
    served = daemon(ready=False)
    assert served.wait() == 1
    assert f"{manager_socket} is a directory, no socket" in served.log()
    manager_socket.rmdir()
    manager_socket.symlink_to("nowhere")
    served = daemon(ready=False)
    assert served.wait() == 1
    assert f"{manager_socket} is a symbolic link, no socket" in served.log()


def test_a_path_too_long_for_a_socket_is_named(daemon, tmp_path):
    path = tmp_path / ("x" * 120)
    served = daemon("--socket", path, ready=False)
    assert served.wait() == 1
    assert f"cannot listen at {path}: AF_UNIX path too long" in served.log()


def test_the_socket_is_removed_at_the_end_and_has_the_mode_asked_for(daemon, manager_socket):
    running = daemon("--socket-mode", "0600")
    assert manager_socket.stat().st_mode & 0o777 == 0o600
    assert running.end(signal.SIGTERM) == 0
    assert not manager_socket.exists()


@needs_root("clients outside the group")
def test_outsiders_are_refused_in_a_reply(daemon, manager_socket):
    daemon("--socket-mode", "0666")
    code = (
        "import sys\nfrom mtlshm.manager_client import Manager\n"
        "with Manager(sys.argv[1]) as manager:\n"
        "    print(manager.heartbeat(3))\n"
        "    try:\n        manager.register()\n"
        "    except OSError as error:\n        print(error.errno)\n"
    )
    outsider = (UNPRIVILEGED, UNPRIVILEGED, [])
    code = "import mtlshm.manager_client\n" + code
    assert run_python(code, manager_socket, user=outsider).split() == ["3", str(errno.EACCES)]


@needs_root("clients in the group")
def test_members_of_the_group_are_served(daemon, manager_socket):
    daemon("--socket-group", "daemon")
    code = (
        "import sys\nimport mtlshm.manager_client\n"
        "with mtlshm.manager_client.Manager(sys.argv[1]) as manager:\n"
        "    manager.register()\n    manager.get_lcore(1)\n    print('served')\n"
    )
    assert run_python(code, manager_socket, user=(UNPRIVILEGED, UNPRIVILEGED, [1])) == "served\n"
