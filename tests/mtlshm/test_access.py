# SPDX-License-Identifier: BSD-3-Clause
"""Whose segment this is, and which group may use it: for the daemon, which asks."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from lab.processes import UNPRIVILEGED, Daemon, Puppet, look, needs_root
from mtlshm import Host, MtlshmError, access

StartDaemon = Callable[..., Daemon]
StartPuppet = Callable[..., Puppet]


@needs_root("a segment that another user has made")
def test_the_owner_that_counts_is_that_of_the_mapped_file(puppet: StartPuppet, segment: str) -> None:
    """An outsider could put root's segment in the place of his own once that is mapped."""
    outsider = puppet(ready=False)
    assert outsider.become(UNPRIVILEGED, UNPRIVILEGED) == 0
    assert outsider.open(1) == 0
    with Host(segment) as his, Host(f"{segment}.root") as roots:
        os.rename(f"{segment}.root", segment)
        with pytest.raises(MtlshmError, match=f"uid {UNPRIVILEGED}"):
            access.check_owner(his, "mtl")
        access.check_owner(roots, "mtl")


def with_groups(text: str, tmp_path: Path) -> tuple[str, ...]:
    groups = tmp_path / "group"
    groups.write_text(text)
    return ("unshare", "--mount", "sh", "-c", f'mount --bind {groups} /etc/group && exec "$@"', "sh")


@needs_root("that a segment is given to group mtl")
def test_a_segment_made_where_the_group_was_not_known_is_given_to_it(
    puppet: StartPuppet, daemon: StartDaemon, segment: str, tmp_path: Path
) -> None:
    client = puppet(prefix=with_groups("root:x:0:\n", tmp_path))
    assert os.stat(segment).st_gid == 0
    daemon(prefix=with_groups("root:x:0:\nmtl:x:54321:\n", tmp_path))
    assert os.stat(segment).st_gid == 54321
    assert client.claim(3) == 0
    assert {lcore.number for lcore in look(segment).lcores} == {3}


@needs_root("that a segment is given to group mtl")
@pytest.mark.parametrize("why", ["another group was chosen", "somebody lives by its group", "it is another user's"])
def test_log_warns_if_the_segment_keeps_another_group(
    puppet: StartPuppet, daemon: StartDaemon, segment: str, tmp_path: Path, why: str
) -> None:
    Host(segment).close()
    if why == "another group was chosen":
        os.chown(segment, 0, 4321)
    elif why == "it is another user's":
        os.chown(segment, UNPRIVILEGED, 0)
    else:
        member = puppet(ready=False)
        assert member.become(UNPRIVILEGED, UNPRIVILEGED, 0) == 0
        assert (member.open(0), member.register()) == (0, 0)
    before = os.stat(segment).st_gid
    server = daemon("--socket-group", "root", prefix=with_groups("root:x:0:\nmtl:x:54321:\n", tmp_path), ready=False)
    server.await_log("ready")
    assert os.stat(segment).st_gid == before
    assert f"segment {segment} belongs to gid {before}" in server.log()
