# SPDX-License-Identifier: BSD-3-Clause
"""The settings file means the same to the library, the command line and the daemon."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from lab.processes import UNPRIVILEGED, as_user, needs_root, run_python
from mtlshm import config
from mtlshm._core import ffi, lib
from mtlshm.host import default_path
from mtlshm.manager_client import SYSTEM_SOCKET, default_socket


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One that is in force."""
    path = tmp_path / "mtlshmd.toml"
    path.write_text("")
    monkeypatch.setenv("MTLSHMD_CONFIG", str(path))
    for name in ("MTLSHM_PATH", "MTL_MANAGER_SOCK_PATH"):
        monkeypatch.delenv(name, raising=False)
    return path


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("", "/dev/shm/mtlshm"),
        ('segment = ""', "/dev/shm/mtlshm"),
        ('segment = "/run/x"', "/run/x"),
        ("segment='/run/x'", "/run/x"),
        ('\tsegment\t=\t"/run/x"\t# where', "/run/x"),
        ('log_level = "info"\r\nsegment = "/run/x # no comment"\r\n', "/run/x # no comment"),
        ('segments = "/run/x"', "/dev/shm/mtlshm"),
        ('# segment = "/run/x"', "/dev/shm/mtlshm"),
        ('[table]\nsegment = "/run/x"', "/dev/shm/mtlshm"),
        ('segment = "/run/Größe"', "/run/Größe"),
    ],
)
def test_segment_is_the_default_path(file, text, path):
    file.write_text(text)
    assert default_path() == path
    assert (config.configured("segment") or "/dev/shm/mtlshm") == path


@pytest.mark.parametrize(
    "text",
    [
        'segment = """/run/x"""',
        'segment = "/run/\\u0078"',
        '"segment" = "/run/x"',
        "segment = 3",
        'segment = "run/x"',
        'segment.x = "/run/x"',
        'socket = """\nsegment = "/run/x"\n"""',
        'segment = "/run/x',
    ],
)
def test_a_path_that_c_programs_could_read_otherwise_is_refused_by_name(file, text):
    file.write_text(text)
    with pytest.raises(config.ConfigError) as caught:
        config.read(file)
    assert str(file) in caught.value.strerror


def test_a_file_that_cannot_be_used_is_an_error_and_no_default(file, segment):
    file.write_text("segment = nonsense")
    assert lib.mtlshm_default_path() == ffi.NULL
    assert ffi.errno == errno.EINVAL
    host = ffi.new("struct mtlshm_host **")
    assert lib.mtlshm_open(host, ffi.NULL, lib.MTLSHM_CREATE, ffi.NULL) == -errno.EINVAL
    with pytest.raises(config.ConfigError, match=r"mtlshmd\.toml"):
        default_path()
    file.write_bytes(b"#" * 70000)
    assert lib.mtlshm_default_path() == ffi.NULL
    assert ffi.errno == errno.EFBIG
    file.unlink()
    with pytest.raises(config.ConfigError, match="No such file"):
        default_path()


@needs_root("a file that others may not read")
def test_unreadable_settings_file_is_an_error_and_makes_no_second_table(file):
    file.write_text('segment = "/run/x"')
    file.chmod(0o600)
    file.parent.chmod(0o755)
    code = f"import tomllib\n{as_user(UNPRIVILEGED, UNPRIVILEGED, [])}import mtlshm.host\n"
    code += "try:\n    print(mtlshm.host.default_path())\nexcept OSError as error:\n    print(error.strerror)"
    told = run_python(code)
    assert "ermission denied" in told
    assert str(file) in told


@pytest.mark.parametrize("key", ["segment", "socket", "state", "pins", "legacy_lock"])
def test_a_relative_path_is_refused(file, key):
    file.write_text(f'{key} = "here"')
    with pytest.raises(config.ConfigError, match=key):
        config.read(file)


def test_socket_is_where_clients_ask(file, monkeypatch, tmp_path):
    file.write_text('socket = "/run/x.sock"')
    assert default_socket() == "/run/x.sock"
    file.write_text('socket = ""')
    with pytest.raises(FileNotFoundError, match="no manager socket"):
        default_socket()
    monkeypatch.setenv("MTL_MANAGER_SOCK_PATH", "/run/y.sock")
    assert default_socket() == "/run/y.sock"


def test_user_without_an_own_daemon_asks_the_hosts_daemon(file, monkeypatch, tmp_path):
    monkeypatch.setattr(os, "geteuid", lambda: UNPRIVILEGED)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert default_socket() == SYSTEM_SOCKET
    own = tmp_path / "imtl/mtl_manager.sock"
    own.parent.mkdir()
    own.touch()
    assert default_socket() == str(own)
