# SPDX-License-Identifier: BSD-3-Clause
"""Host: an open segment, where instances register and everybody can look."""

from __future__ import annotations

import errno
import gc
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from lab.processes import UNPRIVILEGED, Puppet, held, look, needs_root, run_python
from mtlshm import Busy, CpuSet, Host, Kind, LcoreType, MtlshmError, NoSegment, NotPermitted
from mtlshm._core import lib

Start = Callable[..., Puppet]


def test_a_process_gets_its_lcores_in_three_lines(segment: str, host64: Path) -> None:
    with Host(segment, sysfs=host64) as host, host.register("encoder", cpus=range(64)) as me:
        lcores = me.claim_many(4, node=0)
        assert str(lcores) == "1-4"  # CPU 0 comes last
        assert me.lcores == lcores == held(segment)
    assert look(segment).instances == ()


def test_without_a_path_it_is_the_one_that_the_environment_names(segment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTLSHM_PATH", segment)
    with Host() as host:
        assert host.path == segment
    assert os.path.exists(segment)
    monkeypatch.delenv("MTLSHM_PATH")
    monkeypatch.setenv("MTLSHMD_CONFIG", "/dev/null")
    assert run_python("import mtlshm.host; print(mtlshm.host.default_path())") == "/dev/shm/mtlshm\n"


def test_create_false_makes_nothing(segment: str) -> None:
    for options in {"create": False}, {"read_only": True}:
        with pytest.raises(NoSegment, match=segment) as raised:
            Host(segment, **options)
        assert raised.value.errno == errno.ENOENT
    assert not os.path.exists(segment)


def test_closed_host_refuses_everything_and_close_is_idempotent(segment: str) -> None:
    host = Host(segment)
    host.close()
    host.close()
    for call in host.register, host.snapshot, host.owners, host.sweep, host.unlink:
        with pytest.raises(ValueError, match="closed"):
            call()
    for call in host.inspect, host.alive, host.collect:
        with pytest.raises(ValueError, match="closed"):
            call(1)
    with pytest.raises(ValueError, match="closed"):
        host.evict(1, 1)


def test_closing_a_host_unregisters_its_instances_and_no_others(segment: str) -> None:
    with Host(segment) as first, Host(segment) as second:
        of_first, of_second = first.register(), second.register(cpus=range(128))
        of_second.claim(5)
        first.close()
        assert of_first.owner == 0
        assert second.owners() == [of_second.owner]
        assert second.alive(of_second.owner)
        assert held(segment) == {5}


def test_instances_and_hosts_that_are_forgotten_leave_the_table(segment: str) -> None:
    with Host(segment) as host:
        host.register()
        gc.collect()
        assert host.owners() == []
    forgotten = Host(segment)
    instance = forgotten.register()
    del forgotten
    gc.collect()
    assert instance.owner, "an instance keeps its host"
    del instance
    gc.collect()
    assert look(segment).instances == ()


def test_snapshot_shows_each_lcores_owner(segment: str) -> None:
    with Host(segment) as host, host.register("encoder", cpus=range(128)) as me:
        me.claim(3, LcoreType.SCH)
        me.claim(5)
        snapshot = host.snapshot()
    (info,) = snapshot.instances
    assert [lcore.owner for lcore in snapshot.lcores] == [info, info]
    assert (info.label, info.kind, info.alive, info.pid) == ("encoder", Kind.SHM, True, os.getpid())
    assert (info.uid, info.hostname) == (os.geteuid(), socket.gethostname()[:63])
    assert info.lcores == CpuSet({3, 5})
    assert [(lcore.number, lcore.type) for lcore in snapshot.lcores] == [(3, LcoreType.SCH), (5, LcoreType.APP)]
    assert snapshot.daemon is None
    assert snapshot.registered == 1
    assert snapshot.size >= 128


def test_read_only_looks_and_does_not_touch(segment: str, puppet: Start) -> None:
    holder = puppet()
    holder.claim(5)
    with Host(segment, read_only=True) as host:
        (owner,) = host.owners()
        assert host.alive(owner)
        assert len(host.snapshot().lcores) == 1
        for call in host.register, host.sweep, host.unlink:
            with pytest.raises(MtlshmError) as raised:
                call()
            assert raised.value.errno == errno.EROFS
        with pytest.raises(MtlshmError):
            host.collect(owner)
        with pytest.raises(MtlshmError):
            host.evict(5, owner)
    assert held(segment) == {5}


def test_collecting_and_evicting_are_told_from_the_core(segment: str, puppet: Start) -> None:
    holder = puppet()
    holder.claim(5)
    holder.claim(6)
    owner = holder.owner()
    with Host(segment) as host:
        with pytest.raises(Busy):
            host.collect(owner)
        host.evict(6, owner)
        with pytest.raises(MtlshmError) as raised:
            host.evict(6, owner)
        assert raised.value.errno == errno.ESRCH
        holder.kill()
        assert not host.alive(owner)
        assert host.collect(owner) == 1
        assert host.inspect(owner) is None
        assert host.sweep() == 0


# --- removing ------------------------------------------------------------------------------------------


def test_unlink_is_refused_while_an_instance_lives(segment: str, puppet: Start) -> None:
    holder = puppet()
    with Host(segment) as host:
        with pytest.raises(Busy):
            host.unlink()
        holder.kill()
        host.unlink()
        with pytest.raises(ValueError, match="closed"):
            host.snapshot()
    assert not os.path.exists(segment)


@pytest.mark.parametrize("place", ["shm", "elsewhere"])
def test_after_unlink_others_are_told_and_a_new_segment_can_be_made(segment: str, tmp_path: Path, place: str) -> None:
    path = segment if place == "shm" else str(tmp_path / "segment")
    with Host(path) as late:
        Host(path).unlink()
        assert not os.path.exists(path)
        with pytest.raises(MtlshmError) as raised:
            late.register()
        assert raised.value.errno == errno.ESTALE
        with Host(path) as new, new.register() as me:
            assert new.alive(me.owner)
            with pytest.raises(MtlshmError):
                late.unlink()
            assert os.path.exists(path)


@needs_root("who may write the segment but not remove it")
def test_unlink_without_permission_leaves_the_segment_usable(segment: str) -> None:
    code = """
import sys
with mtlshm.Host(sys.argv[1]) as host:
    try:
        host.unlink()
    except PermissionError as error:
        print(error)
"""
    run_python("import sys; mtlshm.Host(sys.argv[1])", segment, user=(UNPRIVILEGED, 54321, []))
    assert run_python(code, segment, user=(12345, 12345, [54321]))
    with Host(segment, create=False) as host:
        host.register()


# --- what is wrong is said -----------------------------------------------------------------------------


@needs_root("that the message for who is not permitted names the group")
def test_not_permitted_error_names_the_group_to_join(segment: str) -> None:
    Host(segment).close()
    os.chown(segment, 0, 54321)
    code = """
import sys
try:
    mtlshm.Host(sys.argv[1])
except mtlshm.NotPermitted as error:
    print(error)
"""
    said = run_python(code, segment, user=(UNPRIVILEGED, UNPRIVILEGED, []))
    assert segment in said
    assert "gid 54321" in said
    assert "-rw-rw----" in said
    os.chown(segment, 0, 0)
    assert "group root" in run_python(code, segment, user=(UNPRIVILEGED, UNPRIVILEGED, []))
    assert issubclass(NotPermitted, PermissionError)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        pytest.param(b"hello\n", "not a mtlshm segment", id="text"),
        pytest.param(b"", "not a mtlshm segment", id="empty"),
        pytest.param(b"MTLSHM\r\n\x07" + bytes(100000), "layout version 7", id="another version"),
        pytest.param(
            b"MTLSHM\r\n" + bytes([lib.MTLSHM_LAYOUT_VERSION]) + bytes(100000), "another build", id="another layout"
        ),
    ],
)
def test_foreign_file_is_described(segment: str, content: bytes, said: str) -> None:
    Path(segment).write_bytes(content)
    with pytest.raises(MtlshmError, match=said) as raised:
        Host(segment)
    assert segment in str(raised.value)
    assert Path(segment).read_bytes() == content


def test_a_truncated_segment_is_described(segment: str) -> None:
    Host(segment).close()
    size = os.stat(segment).st_size
    os.truncate(segment, 1000)
    with pytest.raises(MtlshmError, match=f"truncated to 1000 of {size} bytes"):
        Host(segment)


@pytest.mark.parametrize("place", ["shm", "elsewhere"])
@pytest.mark.parametrize("make", [os.mkfifo, lambda path: os.symlink("/etc/passwd", path), os.mkdir])
def test_path_that_is_no_file_is_described(
    segment: str, tmp_path: Path, place: str, make: Callable[[str], None]
) -> None:
    path = segment if place == "shm" else str(tmp_path / "segment")
    make(path)
    try:
        for read_only in False, True:
            with pytest.raises(MtlshmError, match=r"is a (FIFO|symbolic link|directory)"):
                Host(path, read_only=read_only)
    finally:
        if make is os.mkdir:
            os.rmdir(path)
