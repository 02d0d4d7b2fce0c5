# SPDX-License-Identifier: BSD-3-Clause
"""tools/install installs all that there is, and removes it again; in a throw-away copy of this machine."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lab.debian import in_bare_debian
from lab.processes import DEADLINE, needs_root
from lab.throw_away import machine

pytestmark = [pytest.mark.slow, needs_root("tools/install")]

# All names; but those of copies of /etc/passwd and the like, and of what others keep there.
PLACES = "/usr/local /opt /etc /run /dev/shm /usr/lib/systemd"
NAMES = f"find {PLACES} ! -name '*-' ! -name .pwd.lock ! -name __pycache__ | sort"


@pytest.fixture
def there(tmp_path: Path) -> Iterator[Callable[[str], str]]:
    with machine(tmp_path, network=True) as enter:

        def run(script: str) -> str:
            command = list(map(str, enter(script)))
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=3 * DEADLINE,
            )
            assert done.returncode == 0, done.stdout
            return done.stdout

        yield run


def test_it_installs_upgrades_and_leaves_nothing(there: Callable[[str], str]) -> None:
    said = there(f"""
        {NAMES} >/tmp/before
        tools/install
        test "$(command -v mtlshmd)" = /usr/local/bin/mtlshmd
        ldconfig -p | grep -q libmtlshm.so.0
        man --where mtlshm-ctl mtlshmd 2>/dev/null || ls /usr/local/share/man/man1/mtlshm-ctl.1
        grep -q mtlshm-ctl /usr/local/share/bash-completion/completions/mtlshm-ctl
        ls /usr/local/share/zsh/site-functions/_mtlshm-ctl /usr/local/share/fish/vendor_completions.d/mtlshm-ctl.fish
        grep ^ExecStart= /usr/local/lib/systemd/system/mtlshmd-cores.service
        grep ^d /usr/local/lib/tmpfiles.d/mtlshm.conf
        id -nG mtlshm | grep -w mtl
        printf '#include <mtlshm.h>\\nint main(void) {{ return !mtlshm_strerror(1); }}\\n' >/tmp/x.c
        cc /tmp/x.c -lmtlshm -o /tmp/x && /tmp/x
        mtlshm-ctl create
        stat -c '%U %G %a' /dev/shm/mtlshm
        mtlshm-ctl doctor | grep '  library '
        cp /opt/mtlshm/files /tmp/first
        tools/install
        cmp /tmp/first /opt/mtlshm/files
        tools/install --uninstall
        {NAMES} >/tmp/after
        diff /tmp/before /tmp/after
        ! getent passwd mtlshm
        ! getent group mtl
        echo nothing is left
    """)
    assert "root mtl 660" in said
    assert "ok         library" in said
    assert said.endswith("nothing is left\n")


def test_what_was_not_installed_is_not_removed(there: Callable[[str], str]) -> None:
    said = there("! tools/install --uninstall; ! tools/install --nonsense; ! tools/install --cores-only --uninstall")
    assert "nothing was installed by this program" in said
    assert said.count("usage: ") == 2


def test_it_brings_a_bare_debian_what_it_needs(tmp_path: Path) -> None:
    """And no compiler for XDP programs where these are not wanted."""
    untested = "tools/install on a bare Debian"
    said = in_bare_debian(
        """
        tools/install --cores-only
        ! command -v clang
        ! find /usr/local -name bpf | grep .
        ldconfig -p | grep -q libmtlshm.so.0
        grep ^d /usr/local/lib/tmpfiles.d/mtlshm.conf
        MTLSHMD_LEGACY=off MTLSHMD_XDP=off mtlshmd &
        until mtlshm-ctl health >/dev/null; do sleep 0.1; done
        mtlshm-ctl run --lcores 1 -- true
        kill %1
        wait %1
        tools/install --uninstall
        ! find /opt /usr/local /run /dev/shm /etc -path '*mtlshm*' | grep .
        ! getent group mtl
        echo nothing is left
        """,
        tmp_path,
        untested,
    )
    assert said.endswith("nothing is left\n")
