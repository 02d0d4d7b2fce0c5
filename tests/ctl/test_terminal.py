# SPDX-License-Identifier: BSD-3-Clause
"""What is printed suits what it is printed on, whatever the environment says of terminals."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import termios

import pytest

from lab.processes import BIN, DEADLINE
from mtlshm import Host

CTL = str(BIN / "mtlshm-ctl")
LABEL = "a label as long as the table has room for, with ünusual lett"


@pytest.fixture(autouse=True)
def labelled(segment, own_cpus):
    with Host(segment) as host, host.register(LABEL) as me:
        me.claim(own_cpus[0])
        yield


@pytest.fixture
def on_a_terminal(environment):
    """Runs mtlshm-ctl on a terminal with so many columns; returns what it printed until `enough` came, or all."""

    def run(*words: str, columns: int = 200, rows: int = 50, enough: bytes | None = None, **settings: str) -> str:
        terminal, its = pty.openpty()
        fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        known = {name: value for name, value in environment.items() if name not in ("TERM", "NO_COLOR", "FORCE_COLOR")}
        with subprocess.Popen([CTL, *words], env=known | settings, stdin=its, stdout=its) as process:
            os.close(its)
            output = b""
            try:
                while enough is None or output.count(enough) < 2:
                    output += os.read(terminal, 65536)
            except OSError:  # the other side is closed
                pass
            finally:
                process.kill()
                os.close(terminal)
        return output.decode()

    return run


@pytest.mark.parametrize("settings", [{"FORCE_COLOR": "1"}, {"COLUMNS": "40"}, {"TTY_COMPATIBLE": "1"}])
def test_in_a_pipe_a_row_is_a_line_without_colour(ctl, environment, settings):
    environment |= settings
    output = ctl("status").stdout
    assert "\x1b" not in output
    assert sum(LABEL in line for line in output.splitlines()) == 1


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "shift_jis"])
def test_a_letter_that_the_output_does_not_have_costs_a_glyph(environment, encoding):
    environment |= {"PYTHONIOENCODING": encoding}
    done = subprocess.run([CTL, "status"], env=environment, capture_output=True, timeout=DEADLINE)
    assert (done.returncode, done.stderr) == (0, b"")
    expected = LABEL if encoding == "latin-1" else LABEL.replace("ü", "?")
    assert expected in done.stdout.decode(encoding)


def test_a_terminal_has_colour(on_a_terminal):
    assert "\x1b[" in on_a_terminal("status", TERM="xterm")


@pytest.mark.parametrize("settings", [{"TERM": "dumb"}, {}, {"TERM": "xterm", "NO_COLOR": "1"}])
def test_a_terminal_that_is_dumb_or_to_be_plain_has_none(on_a_terminal, settings):
    output = on_a_terminal("status", **settings)
    assert LABEL in output
    assert "\x1b" not in output


def test_a_dumb_terminal_is_as_wide_as_it_is(on_a_terminal):
    output = on_a_terminal("status", TERM="dumb", COLUMNS="40")
    assert sum(LABEL in line for line in output.splitlines()) == 1


@pytest.mark.parametrize("settings", [{"TERM": "dumb"}, {}])
def test_watch_prints_round_after_round_where_no_cursor_moves(on_a_terminal, settings):
    output = on_a_terminal("status", "--watch", "0.1", enough=b" held, ", **settings)
    assert "\x1b" not in output


def test_watch_redraws_a_screen(on_a_terminal):
    assert "\x1b[?1049h" in on_a_terminal("status", "--watch", "0.1", enough=LABEL.encode(), TERM="xterm")
