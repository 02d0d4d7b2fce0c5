# SPDX-License-Identifier: BSD-3-Clause
"""tools/package makes a Debian package; it is installed, upgraded and purged on a bare Debian."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from lab.debian import bare_debian, in_bare_debian
from lab.documents import ROOT
from lab.processes import needs_root

UNTESTED = "tools/package deb"
pytestmark = [pytest.mark.slow, needs_root(UNTESTED)]

# All names; but those of apt's and dpkg's own records, and of copies of /etc/passwd and the like.
NAMES = (
    "find / -xdev ! -path '/src*' ! -path '/tmp/*' ! -path '/var/lib/apt*' ! -path '/var/lib/dpkg*' "
    "! -path '/var/cache/*' ! -path '/var/log/*' ! -name '*-' ! -name .pwd.lock | sort"
)


def run(*command: object) -> str:
    both = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    done = subprocess.run(list(map(str, command)), **both, stdin=subprocess.DEVNULL, text=True)
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="session")
def package(build_once: Callable[..., Path]) -> Path:
    bare_debian(UNTESTED)  # or nobody could install it

    def make(there: Path) -> None:
        name = run(ROOT / "tools/package", "deb").splitlines()[-1]
        shutil.copy(ROOT / name, there)

    return build_once("mtlshm.deb", make)


def test_it_installs_upgrades_and_leaves_nothing(package: Path, tmp_path: Path) -> None:
    said = in_bare_debian(
        f"""
        apt-get update >/dev/null
        apt-get install --yes --no-install-recommends /tmp/mtlshm.deb
        apt-get purge --yes mtlshm
        {NAMES} >/tmp/before

        apt-get install --yes --no-install-recommends /tmp/mtlshm.deb
        dpkg --verify mtlshm
        ! dpkg --listfiles mtlshm | grep -E '^/(usr/local|opt|tmp)'
        ldconfig -p | grep -q libmtlshm.so.0
        id -nG mtlshm | grep -w mtl
        stat -c '%n %U %G %a' /run/imtl
        ls /etc/systemd/system/multi-user.target.wants
        grep ^ExecStart= /usr/lib/systemd/system/mtlshmd.service
        grep -q mtlshm-ctl /usr/share/bash-completion/completions/mtlshm-ctl
        grep -q mtlshm-ctl /usr/share/zsh/vendor-completions/_mtlshm-ctl
        grep -q mtlshm-ctl /usr/share/fish/vendor_completions.d/mtlshm-ctl.fish
        dpkg --listfiles mtlshm | grep -c '/man[1-8]/'
        dpkg --listfiles mtlshm | grep -q '/bpf/mtl_dp_fused.o'

        MTLSHMD_LEGACY=off MTLSHMD_XDP=off mtlshmd 2>/tmp/log &
        until mtlshm-ctl health >/dev/null; do sleep 0.1; done
        mtlshm-ctl hold --lcores 1 >/tmp/held &
        until grep -q . /tmp/held; do sleep 0.1; done
        stat -c '%U %G %a' /dev/shm/mtlshm
        dpkg-deb --raw-extract /tmp/mtlshm.deb /tmp/newer
        sed -i 's/^Version: .*/&+1/' /tmp/newer/DEBIAN/control
        dpkg-deb --build /tmp/newer /tmp/newer.deb
        apt-get install --yes --no-install-recommends /tmp/newer.deb
        dpkg-query --show mtlshm
        kill %1
        wait %1
        MTLSHMD_LEGACY=off MTLSHMD_XDP=off mtlshmd 2>>/tmp/log &
        until mtlshm-ctl health >/dev/null; do sleep 0.1; done
        mtlshm-ctl status | grep ' 1 held'
        ! mtlshm-ctl hold "$(cat /tmp/held)"
        kill %2 %3
        wait
        ! grep Traceback /tmp/log

        mkdir /etc/mtlshm
        echo 'log_level = "info"' >/etc/mtlshm/mtlshmd.toml
        apt-get purge --yes mtlshm
        {NAMES} >/tmp/after
        diff /tmp/before /tmp/after
        test ! -e /dev/shm/mtlshm
        echo nothing is left
        """,
        tmp_path,
        UNTESTED,
        {package: "/tmp/mtlshm.deb"},
    )
    assert "/run/imtl root root 755" in said
    assert "root mtl 660" in said
    assert "mtlshmd.service" in said
    assert "ExecStart=/usr/bin/mtlshmd" in said
    assert "+1\n" in said
    assert said.endswith("nothing is left\n")


def test_all_that_python_needs_is_in_the_package_or_asked_for(package: Path) -> None:
    """What is in neither may be on this machine by chance."""
    setup = (ROOT / "setup.py").read_text()
    required = re.search(r"install_requires=\[(.*?)\]", setup, re.DOTALL)
    assert required
    names = re.findall(r'"(\w+)', required[1])
    assert len(names) > 5
    contents = run("dpkg-deb", "--contents", package)
    asked_for = run("dpkg-deb", "--field", package, "Depends")
    for name in names:
        assert f"/usr/lib/mtlshm/{name}" in contents or f"python3-{name.replace('_', '-')}" in asked_for, name
    version = (ROOT / "VERSION").read_text().strip()
    assert run("dpkg-deb", "--field", package, "Version").strip() == version
