# SPDX-License-Identifier: BSD-3-Clause
"""A container is found in the path of a process's cgroup, as each engine writes it."""

from __future__ import annotations

import pytest

from mtlshm.containers import in_path

ID = "0123456789ab" + "c4" * 26


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (f"/system.slice/docker-{ID}.scope", ID[:12]),
        (f"/docker/{ID}", ID[:12]),
        (f"/machine.slice/libpod-{ID}.scope/container", ID[:12]),
        (f"/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{ID}.scope", ID[:12]),
        (f"/kubepods.slice/kubepods-pod1b2c.slice/cri-containerd-{ID}.scope", ID[:12]),
        (f"/kubepods/burstable/pod01234567-89ab-cdef-0123-456789abcdef/{ID}", ID[:12]),
        (f"/docker/{'f' * 64}/kubepods/besteffort/pod1/{ID}", ID[:12]),
        ("/machine.slice/machine-studio\\x2d1.scope/payload", "studio-1"),
        ("/machine.slice/systemd-nspawn@studio.service/payload/init.scope", "studio"),
        ("/lxc.payload.studio/system.slice/encoder.service", "studio"),
        ("/user.slice/user-1000.slice/session-2.scope", ""),
        ("/system.slice/encoder.service", ""),
        ("/", ""),
    ],
)
def test_the_innermost_container_is_named(path: str, expected: str) -> None:
    assert in_path(f"0::{path}\n") == expected
    assert in_path(f"12:cpuset:{path}\n1:name=systemd:{path}\n") == expected


def test_a_name_cannot_write_on_the_terminal() -> None:
    assert "\x1b" not in in_path("0::/machine.slice/machine-a\\x1b]0;b.scope\n")
    assert len(in_path(f"0::/lxc.payload.{'a' * 200}\n")) == 64
