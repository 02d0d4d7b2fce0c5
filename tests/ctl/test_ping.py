# SPDX-License-Identifier: BSD-3-Clause
"""ping tells whether libmtl would be answered."""

from __future__ import annotations

import signal


def test_a_running_daemon_answers(ctl, daemon, manager_socket):
    daemon()
    done = ctl("ping", "--socket", manager_socket)
    assert done.returncode == 0
    assert str(manager_socket) in done.stdout


def test_no_answer_is_said_in_one_line(ctl, daemon, manager_socket):
    assert ctl("ping", "--socket", manager_socket).returncode == 1
    running = daemon()
    running.send(signal.SIGKILL)
    running.wait()
    done = ctl("ping", "--socket", manager_socket)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1


def test_it_asks_where_the_settings_file_says(ctl, daemon, environment, manager_socket, tmp_path):
    settings = tmp_path / "mtlshmd.toml"
    settings.write_text(f'socket = "{manager_socket}"\n')
    daemon("--config", settings, environment={"MTL_MANAGER_SOCK_PATH": ""})
    environment |= {"MTLSHMD_CONFIG": str(settings)}
    assert str(manager_socket) in ctl("ping").stdout
    settings.write_text('socket = ""\n')
    done = ctl("ping")
    assert done.returncode == 1
    assert str(settings) in done.stderr
