# SPDX-License-Identifier: BSD-3-Clause
"""mtlshmd as a program: signals, settings, exit status."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lab.processes import BIN, UNPRIVILEGED, Daemon, Puppet, as_user, eventually, held, look, namespaces, needs_root
from mtlshm import CpuSet, Kind
from mtlshm.daemon.app import command

StartPuppet = Callable[..., Puppet]
StartDaemon = Callable[..., Daemon]

RUN = "mtlshm.daemon.app.main()"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_stops_it_and_living_clients_keep_their_lcores(
    daemon: StartDaemon, puppet: StartPuppet, segment: str, number: signal.Signals
) -> None:
    server = daemon()
    holder = puppet()
    holder.claim(5)
    assert server.end(number) == 0
    assert held(segment) == {5}
    assert holder.release(5) == 0
    assert [info.kind for info in look(segment).instances] == [Kind.SHM]


def test_it_stops_as_cleanly_amid_events(
    daemon: StartDaemon, puppet: StartPuppet, host64: Path, tmp_path: Path
) -> None:
    """That no traceback was logged, the fixture sees to."""
    for n in range(5):
        server = daemon()
        churners = [puppet(sysfs=host64) for _ in range(4)]
        for churner in churners:
            churner.churn(tmp_path / "witness", n)
        churners[0].kill()
        assert server.end(signal.SIGTERM) == 0
        for churner in churners:
            churner.kill()


def test_the_table_shows_it(daemon: StartDaemon, segment: str) -> None:
    daemon()
    info = look(segment).daemon
    assert info
    assert info.kind == Kind.DAEMON
    assert info.label == "mtlshmd"


def test_a_second_one_on_the_same_segment_is_refused_and_the_first_named(daemon: StartDaemon, segment: str) -> None:
    daemon()
    first = look(segment).daemon
    assert first
    second = daemon(ready=False)
    assert second.wait() == 1
    assert "a daemon serves this segment already" in second.log()
    assert f"pid {first.pid}" in second.log()
    assert look(segment).daemon == first or look(segment).daemon.pid == first.pid


def test_two_on_two_segments_do_not_mind_each_other(daemon: StartDaemon, tmp_path: Path) -> None:
    daemon()
    daemon("--segment", tmp_path / "another", "--socket", tmp_path / "s")


@pytest.mark.parametrize("name", ["mtlshmd", "MtlManager"])
def test_it_has_the_name_that_existing_scripts_use_too(daemon: StartDaemon, name: str) -> None:
    assert daemon(command=[str(BIN / name)]).end(signal.SIGTERM) == 0


def test_what_is_no_segment_is_refused(daemon: StartDaemon, segment: str) -> None:
    Path(segment).write_text("something else")
    server = daemon(ready=False)
    assert server.wait() == 1
    assert segment in server.log()
    assert "not a mtlshm segment" in server.log()


@needs_root("a daemon that may not write the segment")
def test_a_segment_of_others_is_refused_and_the_group_named(
    daemon: StartDaemon, puppet: StartPuppet, segment: str
) -> None:
    puppet()
    os.chown(segment, 0, 54321)
    server = daemon(command=[sys.executable, "-c", as_user(UNPRIVILEGED, UNPRIVILEGED, []) + RUN], ready=False)
    assert server.wait() == 1
    assert segment in server.log()
    assert "gid 54321" in server.log()


def test_with_no_inotify_left_all_but_legacy_processes_are_served(
    daemon: StartDaemon, legacy_place: dict[str, str]
) -> None:
    limit = "/proc/sys/user/max_inotify_instances"
    prefix = (*namespaces("mount"), "sh", "-c", f'echo 0 >{limit} && exec "$@"', "sh")
    server = daemon(prefix=prefix, environment=legacy_place | {"MTLSHMD_LEGACY": "0"})
    assert server.log().count("legacy processes are not served") == 1


def test_with_no_inotify_left_the_dead_are_collected_all_the_same(
    daemon: StartDaemon, puppet: StartPuppet, segment: str
) -> None:
    limit = "/proc/sys/user/max_inotify_instances"
    server = daemon(prefix=(*namespaces("mount"), "sh", "-c", f'echo 0 >{limit} && exec "$@"', "sh"))
    assert server.log().count("inotify cannot be used") == 1
    victim = puppet()
    victim.claim(5)
    victim.kill()
    eventually(lambda: held(segment) == set())
    if os.geteuid() == 0:  # else only who made that user namespace may
        enter = ("nsenter", f"--target={server.pid}", "--user", "--preserve-credentials")
        subprocess.run([*enter, "sh", "-c", f"echo 128 >{limit}"], check=True)
        server.await_log("inotify can be used again")
        victim = puppet()
        victim.claim(5)
        victim.kill()
        eventually(lambda: held(segment) == set())


# --- settings ------------------------------------------------------------------------------------------


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "mtlshmd.toml"


def check(*words: object, **environment: str) -> tuple[int, str]:
    """Exit status and what was said of `mtlshmd --check`."""
    command = [BIN / "mtlshmd", "--check", *words]
    done = subprocess.run(list(map(str, command)), env=os.environ | environment, capture_output=True, text=True)
    assert done.stdout == ""
    return done.returncode, done.stderr


def test_settings_are_checked_without_a_daemon(config: Path, segment: str) -> None:
    config.write_text(f'segment = "{segment}"\nlegacy = "4-7"\n')
    assert check("--config", config) == (0, "")
    assert not os.path.exists(segment)
    for text, named in ('log_levle = "info"', "log_levle"), ('log_level = "loud"', "loud"), ("nonsense", "Expected"):
        config.write_text(text)
        status, said = check("--config", config)
        assert status == 2
        assert str(config) in said
        assert named in said
    config.write_text("")
    assert check("--config", config, MTLSHMD_SOCKET_MODE="rw")[0] == 2
    assert check("--config", config, "--legacy", "7-4")[0] == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('# why\n\nlog_level = "loud"\n', "3: log_level: 'loud'"),
        ('socket_mode = "0660"\nlog_level = 3\n', "2: log_level must be a string"),
        ('\n"xdp" = "maybe"\n', "2: xdp: 'maybe'"),
        ('pins = "rel"\n', "1: pins must be an absolute path"),
        ('log_level = "info"\nsgement = "/x"\n', "2: unknown key sgement"),
        ('\n[daemon]\nlog_level = "info"\n', "2: unknown key daemon"),
    ],
)
def test_a_wrong_value_is_told_with_file_line_and_key(config: Path, text: str, said: str) -> None:
    config.write_text(text)
    status, output = check("--config", config)
    assert status == 2
    assert f"{config}:{said}" in output


def test_a_wrong_value_of_the_environment_is_told_with_the_variable() -> None:
    status, output = check(MTLSHMD_CONFIG="/dev/null", MTLSHMD_LOG_LEVEL="loud")
    assert status == 2
    assert "MTLSHMD_LOG_LEVEL" in output


def test_the_file_has_no_setting_that_serves_nobody(config: Path) -> None:
    config.write_text("check = true")
    status, said = check("--config", config)
    assert status == 2
    assert "unknown key check" in said


def test_the_file_yields_to_the_environment_and_that_to_the_flag(
    daemon: StartDaemon, tmp_path: Path, config: Path
) -> None:
    file, environment, flag = (tmp_path / name for name in ("by-file", "by-environment", "by-flag"))
    config.write_text(f'segment = "{file}"\n')
    none, some = {"MTLSHM_PATH": ""}, {"MTLSHM_PATH": str(environment)}
    options = "--socket", "", "--config", config
    assert f"ready: {file}," in daemon(*options, environment=none).log()
    assert f"ready: {environment}," in daemon(*options, environment=some).log()
    assert f"ready: {flag}," in daemon(*options, "--segment", flag, environment=some).log()


def test_the_file_can_be_named_in_the_environment(daemon: StartDaemon, tmp_path: Path, config: Path) -> None:
    config.write_text(f'segment = "{tmp_path}/by-file"\n')
    server = daemon(environment={"MTLSHMD_CONFIG": str(config), "MTLSHM_PATH": ""})
    assert f"ready: {tmp_path}/by-file," in server.log()


@pytest.mark.parametrize(
    ("text", "named"),
    [
        pytest.param('sgement = "/x"\n', "sgement", id="unknown key"),
        pytest.param('log_level = "loud"\n', "loud", id="unknown level"),
        pytest.param("log_level = 3\n", "log_level", id="not a string"),
        pytest.param("log_level = false\n", "log_level", id="no switch"),
        pytest.param("umem_limit = true\n", "umem_limit", id="no number"),
        pytest.param("umem_limit = 0\n", "umem_limit", id="a number out of range"),
        pytest.param("umem_limit = 0.5\n", "umem_limit", id="a fraction"),
        pytest.param("umem_limit = [64]\n", "umem_limit", id="an array"),
        pytest.param("socket_mode = 440\n", "socket_mode", id="a mode that is not octal"),
        pytest.param("socket_mode = 0o1777\n", "socket_mode", id="no mode"),
        pytest.param("legacy = -1\n", "legacy", id="fewer than none"),
        pytest.param("legacy = true\n", "legacy", id="how many"),
        pytest.param("legacy_key = 0\n", "legacy_key", id="no key"),
        pytest.param("legacy_key = 0x100000000\n", "legacy_key", id="too large a key"),
        pytest.param("legacy_lock = 2026-01-01\n", "legacy_lock", id="a date"),
        pytest.param("xdp = true\n", "xdp", id="which way"),
        pytest.param("xdp = 1\n", "xdp", id="which way, again"),
        pytest.param('state = ""\n', "state", id="empty"),
        pytest.param('segment = "/x\\u0000y"\n', "segment", id="no path"),
        pytest.param("segment = {}\n", "segment", id="not a string either"),
        pytest.param(f"log_level = {'9' * 5000}\n", "digits", id="an absurd number"),
        pytest.param('segment = "/x\n', "line 1", id="bad syntax"),
        pytest.param("\xff\n", "0xff", id="not text at all"),
    ],
)
def test_a_bad_file_is_refused_by_name_and_says_what_is_wrong(
    daemon: StartDaemon, segment: str, config: Path, text: str, named: str
) -> None:
    config.write_text(text, encoding="latin-1")
    server = daemon("--config", config, ready=False)
    assert server.wait() == 2
    assert str(config) in server.log()
    assert named in server.log()
    assert not os.path.exists(segment)


@pytest.mark.parametrize(
    ("text", "setting", "value"),
    [
        ("umem_limit = 64", "umem_limit", 64),
        ('umem_limit = "64"', "umem_limit", 64),
        ("legacy = 2", "legacy", 2),
        ("legacy = 0", "legacy", 0),
        ("legacy = false", "legacy", "off"),
        ('legacy = "4-7"', "legacy", CpuSet.parse("4-7")),
        ("legacy_key = 0x15000004", "legacy_key", 0x15000004),
        ("legacy_key = 352321540", "legacy_key", 0x15000004),
        ("socket_mode = 0o600  # nobody else's", "socket_mode", 0o600),
        ('socket_mode = "0600"', "socket_mode", 0o600),
        ("xdp = false", "xdp", "off"),
        ('socket = ""', "socket", ""),
    ],
)
def test_numbers_and_switches_need_no_quotes(
    config: Path, monkeypatch: pytest.MonkeyPatch, text: str, setting: str, value: object
) -> None:
    for parameter in command.params:
        for variable in [parameter.envvar] if isinstance(parameter.envvar, str) else []:
            monkeypatch.delenv(variable, raising=False)
    config.write_text(f"{text}\n")
    assert command.make_context("mtlshmd", ["--config", str(config)]).params[setting] == value


def test_a_file_that_is_not_there_is_refused_by_name(daemon: StartDaemon, config: Path) -> None:
    server = daemon("--config", config, ready=False)
    assert server.wait() == 2
    assert str(config) in server.log()


@pytest.mark.parametrize("arguments", [("--log-level", "loud"), ("--nonsense",), ("something",)])
def test_bad_flags_are_refused(daemon: StartDaemon, segment: str, arguments: tuple[str, ...]) -> None:
    server = daemon(*arguments, ready=False)
    assert server.wait() == 2
    assert arguments[-1] in server.log()
    assert not os.path.exists(segment)


def test_log_level_hides_lesser_messages(daemon: StartDaemon, puppet: StartPuppet, segment: str) -> None:
    quiet = daemon("--log-level", "error", ready=False)
    puppet(ready=False).open(1)
    eventually(lambda: look(segment).daemon)
    assert quiet.end(signal.SIGTERM) == 0
    assert quiet.log() == ""


def test_sighup_reads_the_file_again_and_a_bad_one_changes_nothing(
    daemon: StartDaemon, puppet: StartPuppet, config: Path, segment: str
) -> None:
    config.write_text('log_level = "info"\n')
    server = daemon("--config", config)
    before, after = puppet(), None
    config.write_text('log_level = "debug"\n')
    server.send(signal.SIGHUP)
    server.await_log("configuration reloaded")
    after = puppet()
    server.await_log(f"watching puppet (pid {after.pid}")
    assert f"watching puppet (pid {before.pid}" not in server.log()

    config.write_text('log_level = "error"\nwrong = "yes"\n')
    server.send(signal.SIGHUP)
    server.await_log("configuration not reloaded")
    assert "wrong" in server.log()
    assert str(config) in server.log()
    still = puppet()
    server.await_log(f"watching puppet (pid {still.pid}")
    assert server.end(signal.SIGTERM) == 0


def test_sighup_does_not_move_it_to_another_segment(
    daemon: StartDaemon, puppet: StartPuppet, config: Path, segment: str, tmp_path: Path
) -> None:
    config.write_text(f'segment = "{segment}"\n')
    server = daemon("--config", config, environment={"MTLSHM_PATH": ""})
    config.write_text(f'segment = "{tmp_path}/other"\n')
    server.send(signal.SIGHUP)
    server.await_log("at the next start only")
    client = puppet()
    client.claim(5)
    client.kill()
    server.await_log("died")
    assert held(segment) == set()
    assert not (tmp_path / "other").exists()
