# SPDX-License-Identifier: BSD-3-Clause
"""segment.c: making, finding, checking and removing the segment."""

from __future__ import annotations

import os
import random
import stat
import time
from collections.abc import Callable
from errno import EACCES, EAGAIN, EBADMSG, EBUSY, EINVAL, EMFILE, ENOENT, ENOSPC, EOPNOTSUPP, EPROTO, EROFS, ESTALE
from pathlib import Path
from typing import Any

import pytest

from lab.damages import on_disk
from lab.processes import (
    UNPRIVILEGED,
    Puppet,
    attached_inodes,
    held,
    look,
    namespaces,
    needs_root,
    waiting_room,
)
from mtlshm import Host
from mtlshm._core import ffi, lib

CREATE, READ_ONLY = lib.MTLSHM_CREATE, lib.MTLSHM_READ_ONLY

Start = Callable[..., Puppet]


@pytest.fixture(params=["shm", "elsewhere"])
def place(request: pytest.FixtureRequest, segment: str, tmp_path: Path) -> str:
    return segment if request.param == "shm" else str(tmp_path / "segment")


@pytest.mark.parametrize("seed", range(6))
def test_fifty_that_start_at_once_and_are_killed_at_random_make_one_good_segment(
    place: str, puppet: Start, tmp_path: Path, seed: int
) -> None:
    chance = random.Random(seed)
    starters = [puppet(path=place, ready=False) for _ in range(50)]
    victims, survivors = starters[:15], starters[15:]
    with waiting_room(tmp_path / "gate") as let_go:
        for starter in starters:
            starter.tell("gate", tmp_path / "gate")
            starter.tell("open", CREATE)
            starter.tell("register")
        let_go()
        for victim in victims:
            time.sleep(chance.uniform(0, 0.0005))
            victim.kill()
        for survivor in survivors:
            assert [survivor.answer() for _ in ("gate", "open", "register")] == [0, 0, 0]

    for survivor in survivors:
        assert attached_inodes(survivor.pid, place) == {os.stat(place).st_ino}
    with Host(place) as host:
        host.sweep()
        assert {info.pid for info in host.snapshot().instances} == {survivor.pid for survivor in survivors}


def test_creating_leaves_nothing_but_the_segment(puppet: Start, tmp_path: Path) -> None:
    directory = tmp_path / "of-its-own"
    directory.mkdir()
    chance = random.Random(1)
    for _ in range(50):
        victim = puppet(path=str(directory / "segment"), ready=False)
        victim.tell("open", CREATE)
        time.sleep(chance.uniform(0, 0.001))
        victim.kill()
        assert set(os.listdir(directory)) <= {"segment"}
    assert puppet(path=str(directory / "segment"))


def test_a_segment_is_for_its_group_whatever_the_umask(puppet: Start, segment: str) -> None:
    creator = puppet(ready=False)
    creator.umask(0o777)
    assert creator.open(CREATE) == 0
    assert stat.S_IMODE(os.stat(segment).st_mode) == 0o660


@needs_root("that a new segment belongs to group mtl")
def test_a_segment_belongs_to_group_mtl_where_there_is_one(puppet: Start, segment: str, tmp_path: Path) -> None:
    groups = tmp_path / "group"
    members = ",".join(f"user{n}" for n in range(2000))
    groups.write_text(f"root:x:0:\nmtlx:x:1:\nmany:x:2:{members}\nmtl:x:54321:{members}\n")
    with_group = 'mount --bind "$1" /etc/group && shift && exec "$@"'
    creator = puppet(prefix=("unshare", "--mount", "sh", "-c", with_group, "sh", str(groups)))
    assert os.stat(segment).st_gid == 54321
    assert creator.claim(0) == 0


def test_a_segment_is_made_where_group_mtl_is_not_to_be_had(puppet: Start, segment: str, tmp_path: Path) -> None:
    """As in a container without root: the group's number means nothing in its user namespace."""
    groups = tmp_path / "group"
    groups.write_text("mtl:x:54321:\n")
    with_group = 'mount --bind "$1" /etc/group && shift && exec "$@"'
    creator = puppet(prefix=(*namespaces("mount"), "sh", "-c", with_group, "sh", str(groups)), ready=False)
    assert creator.open(CREATE) == 0
    assert os.stat(segment).st_gid == os.getegid()


@needs_root("a host without /proc, where a file needs another way to its name")
def test_a_segment_can_be_made_and_used_without_proc(puppet: Start, segment: str) -> None:
    without_proc = 'mount -t tmpfs none /proc && exec "$@"'
    hermit = puppet(prefix=("unshare", "--mount", "sh", "-c", without_proc, "sh"))
    assert hermit.claim(0) == 0
    assert look(segment).instances[0].pid_namespace == 0


def test_without_the_create_flag_nothing_is_made(puppet: Start, segment: str) -> None:
    visitor = puppet(ready=False)
    assert visitor.open(0) == -ENOENT
    assert visitor.open(READ_ONLY) == -ENOENT
    assert not os.path.exists(segment)


def test_in_no_directory_nothing_is_made(puppet: Start, tmp_path: Path) -> None:
    assert puppet(path=str(tmp_path / "nowhere/segment"), ready=False).open(CREATE) == -ENOENT


def test_flags_and_paths_that_make_no_sense_are_refused(puppet: Start, tmp_path: Path) -> None:
    assert puppet(ready=False).open(4) == -EINVAL
    assert puppet(path="x" * 5000, ready=False).open(CREATE) == -EINVAL


def test_a_relative_path_means_the_same_file_after_a_change_of_directory(puppet: Start, segment: str) -> None:
    wanderer = puppet(path=os.path.basename(segment), ready=False)
    assert wanderer.chdir("/dev/shm") == 0
    assert wanderer.open(CREATE) == 0
    assert wanderer.chdir("/") == 0
    assert wanderer.register() == 0
    assert os.path.exists(segment)


def test_a_relative_sysfs_means_the_same_directory_after_a_change_of_directory(
    puppet: Start, host64: Path, segment: str
) -> None:
    wanderer = puppet(sysfs=Path(host64.name), ready=False)
    assert wanderer.chdir(host64.parent) == 0
    assert wanderer.open(CREATE) == 0
    assert wanderer.chdir("/") == 0
    assert wanderer.register() == 0
    assert wanderer.claim_many(64) == 0
    assert held(segment) == set(range(64))


# --- files that are no good ---------------------------------------------------------------------------


def header_field(name: str, value: Any) -> Callable[[bytearray], None]:
    """A change of one field of the header of a good segment."""

    def change(content: bytearray) -> None:
        header = ffi.from_buffer("struct mtlshm_header *", content)
        setattr(header, name, value)

    return change


def cut(length: int) -> Callable[[bytearray], None]:
    def change(content: bytearray) -> None:
        del content[length:]

    return change


def zero(start: int, end: int) -> Callable[[bytearray], None]:
    def change(content: bytearray) -> None:
        content[start:end] = bytes(end - start)

    return change


def replace(text: bytes) -> Callable[[bytearray], None]:
    def change(content: bytearray) -> None:
        content[:] = text

    return change


SIZE = ffi.sizeof("struct mtlshm_segment")
HEADER = ffi.sizeof("struct mtlshm_header")


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        pytest.param(header_field("version", 99), EPROTO, id="another version"),
        pytest.param(header_field("size", SIZE + 4096), EPROTO, id="another size"),
        pytest.param(header_field("lcores", 1025), EBADMSG, id="too many lcores"),
        pytest.param(header_field("lcores", 0), EBADMSG, id="no lcores"),
        pytest.param(cut(SIZE - 1), EBADMSG, id="truncated"),
        pytest.param(cut(HEADER), EBADMSG, id="truncated after the header"),
        pytest.param(cut(100), EBADMSG, id="truncated in the header"),
        pytest.param(cut(0), EBADMSG, id="empty"),
        pytest.param(zero(0, 64), EBADMSG, id="half written: no beginning"),
        pytest.param(zero(8, SIZE), EPROTO, id="half written: no more than the magic"),
        pytest.param(replace(b"hello\n" * 20000), EBADMSG, id="text"),
    ],
)
def test_a_file_that_is_no_good_segment_is_refused_and_left_as_it_is(
    segment: str, puppet: Start, damage: Callable[[bytearray], None], error: int
) -> None:
    Host(segment).close()
    content = bytearray(Path(segment).read_bytes())
    damage(content)
    Path(segment).write_bytes(content)

    visitor = puppet(ready=False)
    assert visitor.open(CREATE) == -error
    assert visitor.open(READ_ONLY) == -error
    assert Path(segment).read_bytes() == content


def of_another_boot(path: str) -> bytes:
    """Has the file say so; returns its content."""
    content = bytearray(Path(path).read_bytes())
    header_field("boot_id", b"11111111-2222-3333-4444-555555555555")(content)
    with open(path, "r+b") as file:
        file.write(content[:HEADER])
    return bytes(content)


def test_a_file_left_over_from_another_boot_is_refused_and_left_as_it_is(puppet: Start, tmp_path: Path) -> None:
    path = on_disk(tmp_path)
    Host(path).close()
    content = of_another_boot(path)
    visitor = puppet(path=path, ready=False)
    assert visitor.open(CREATE) == -ESTALE
    assert visitor.open(READ_ONLY) == -ESTALE
    assert Path(path).read_bytes() == content


def test_a_segment_that_somebody_holds_a_lock_on_is_of_this_boot_whatever_it_says(
    puppet: Start, tmp_path: Path
) -> None:
    path = on_disk(tmp_path)
    assert puppet(path=path).claim(3) == 0
    of_another_boot(path)
    assert puppet(path=path).claim(3) == -EBUSY
    assert puppet(path=path).claim(4) == 0


def test_on_a_tmpfs_nothing_is_of_another_boot(puppet: Start, segment: str) -> None:
    Host(segment).close()
    of_another_boot(segment)
    assert puppet().claim(3) == 0


def test_a_container_with_a_boot_id_of_its_own_shares_the_segment(puppet: Start, segment: str, tmp_path: Path) -> None:
    """As in systemd-nspawn and LXC."""
    (tmp_path / "boot_id").write_text("11111111-2222-3333-4444-555555555555\n")
    own = 'mount --bind "$1" /proc/sys/kernel/random/boot_id && shift && exec "$@"'
    prefix = (*namespaces("mount"), "sh", "-c", own, "sh", str(tmp_path / "boot_id"))
    outside = puppet()
    outside.claim(3)
    inside = puppet(prefix=prefix)
    assert inside.claim(3) == -EBUSY
    assert inside.claim(4) == 0
    assert outside.claim(4) == -EBUSY


@pytest.mark.skipif(
    "-fsanitize=address" in os.environ.get("CFLAGS", ""), reason="AddressSanitizer lets mlockall(2) do nothing"
)
def test_a_process_that_may_lock_no_more_memory_is_told_that(puppet: Start, segment: str) -> None:
    """Told that the segment is stale, it would remove it."""
    Host(segment).close()
    os.chmod(segment, 0o666)
    locker = puppet(ready=False)
    assert (locker.open(0), locker.close()) == (0, 0)
    if os.geteuid() == 0:
        assert locker.become(UNPRIVILEGED, UNPRIVILEGED) == 0
    assert locker.lock_memory(80 * 1024) == 0  # the table takes 81
    assert locker.open(0) == -EAGAIN
    assert locker.open(CREATE) == -EAGAIN


def test_path_that_is_no_file_is_refused(puppet: Start, segment: str, tmp_path: Path) -> None:
    """Not even a symbolic link to a good segment: in a directory for all, somebody else may have put it there."""
    Host(segment).close()
    (tmp_path / "directory").mkdir()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to(segment)
    for name in "directory", "fifo", "link":
        visitor = puppet(path=str(tmp_path / name), ready=False)
        assert visitor.open(CREATE) == -EBADMSG
        assert visitor.open(READ_ONLY) == -EBADMSG


def test_a_file_system_without_ofd_locks_is_refused_with_a_word_for_it(
    puppet: Start, segment: str, tmp_path: Path
) -> None:
    """No file system at hand lacks them, so a seccomp filter answers fcntl() as a kernel that does."""
    Host(segment).close()
    for path, flags in (segment, CREATE), (segment, READ_ONLY), (str(tmp_path / "new"), CREATE):
        visitor = puppet(path=path, ready=False)
        assert visitor.forget_ofd_locks() == 0
        assert visitor.open(flags) == -EOPNOTSUPP
    assert os.listdir(tmp_path) == []


@needs_root("a file system without O_TMPFILE")
def test_a_file_system_without_unnamed_files_is_refused_with_a_word_for_it(puppet: Start) -> None:
    assert puppet(path="/proc/mtlshm", ready=False).open(CREATE) == -EOPNOTSUPP


def test_a_full_file_system_gets_no_half_segment_and_a_whole_one_when_there_is_room(
    puppet: Start, tmp_path: Path
) -> None:
    small = 'mount -t tmpfs -o size=1m none "$1" && shift && exec "$@"'
    creator = puppet(
        path=str(tmp_path / "segment"),
        prefix=(*namespaces("mount"), "sh", "-c", small, "sh", str(tmp_path)),
        ready=False,
    )
    inside = Path(f"/proc/{creator.pid}/root{tmp_path}")
    filler = inside / "filler"
    filler.write_bytes(bytes(1000 * 1024))
    room = os.statvfs(inside).f_bfree
    assert room > 0
    assert creator.open(CREATE) == -ENOSPC
    assert os.listdir(inside) == ["filler"]
    assert os.statvfs(inside).f_bfree == room

    filler.unlink()
    assert creator.open(CREATE) == 0
    assert creator.register() == 0


def test_no_descriptor_left_is_an_error_of_its_own_and_passes(puppet: Start) -> None:
    starved = puppet(ready=False)
    assert starved.limit_descriptors(3) == 0
    assert starved.open(CREATE) == -EMFILE
    assert starved.limit_descriptors(64) == 0
    assert starved.open(CREATE) == 0
    assert starved.register() == 0


# --- who may -------------------------------------------------------------------------------------------


@needs_root("access of other users")
def test_others_may_look_if_the_administrator_says_so_and_no_more(puppet: Start, segment: str) -> None:
    holder = puppet()
    holder.claim(7)
    stranger = puppet(ready=False)
    assert stranger.become(UNPRIVILEGED, UNPRIVILEGED) == 0
    assert stranger.open(READ_ONLY) == -EACCES
    assert stranger.open(CREATE) == -EACCES

    os.chmod(segment, 0o664)
    assert stranger.open(CREATE) == -EACCES
    assert stranger.open(READ_ONLY) == 0
    assert stranger.snapshot() == 1
    assert stranger.alive(holder.owner()) == 1
    assert stranger.register() == -EROFS
    assert stranger.collect(holder.owner()) == -EROFS
    assert stranger.sweep() == -EROFS
    assert stranger.evict(7, holder.owner()) == -EROFS
    assert stranger.retire() == -EROFS
    holder.kill()
    assert stranger.snapshot() == 1
    assert held(segment) == {7}


@needs_root("access through a supplementary group")
def test_a_member_of_the_group_claims_in_a_segment_of_another_user(puppet: Start, segment: str) -> None:
    creator, member, outsider = (puppet(ready=False) for _ in range(3))
    creator.become(UNPRIVILEGED, 54321)
    assert creator.open(CREATE) == 0
    group = os.stat(segment).st_gid
    assert os.stat(segment).st_uid == UNPRIVILEGED
    assert group == 54321

    member.become(12345, 12345, group)
    assert member.open(CREATE) == 0
    assert member.register() == 0
    assert member.claim(3) == 0
    assert look(segment).instances[0].uid == 12345
    outsider.become(12345, 12345)
    assert outsider.open(CREATE) == -EACCES


# --- removing ------------------------------------------------------------------------------------------


def test_a_segment_cannot_be_retired_while_an_instance_lives_and_stays_in_use(puppet: Start) -> None:
    living, remover = puppet(), puppet(ready=False)
    remover.open(CREATE)
    assert remover.retire() == -EBUSY
    assert living.claim(1) == 0
    assert puppet().claim(2) == 0


def test_an_attempt_to_retire_that_is_refused_disturbs_nobody(puppet: Start) -> None:
    living, remover, newcomer = puppet(), puppet(ready=False), puppet(ready=False)
    remover.open(CREATE)
    for _ in range(5000):
        remover.tell("retire")
    for _ in range(300):
        assert newcomer.open(0) == 0
        assert newcomer.register() == 0
        newcomer.unregister()
    assert {remover.answer() for _ in range(5000)} == {-EBUSY}
    assert living.claim(1) == 0


@needs_root("who may write the segment but not remove it")
def test_retire_is_undone_when_unlink_fails(puppet: Start, segment: str) -> None:
    """A member of the group in a sticky directory."""
    creator, member, other = (puppet(ready=False) for _ in range(3))
    creator.become(UNPRIVILEGED, 54321)
    assert creator.open(CREATE) == 0
    for each, uid in (member, 12345), (other, 12346):
        each.become(uid, uid, 54321)
        assert each.open(CREATE) == 0
    assert member.retire() == 0
    assert other.register() == -ESTALE
    assert member.close() == 0
    assert other.register() == 0
    assert other.claim(1) == 0


def test_nobody_registers_in_a_retired_segment(puppet: Start, segment: str) -> None:
    late, remover = puppet(ready=False), puppet(ready=False)
    late.open(CREATE)
    remover.open(CREATE)
    assert remover.retire() == 0
    assert late.register() == -ESTALE
    assert puppet(ready=False).open(0) == -ESTALE
    os.unlink(segment)
    assert late.register() == -ESTALE


def test_retired_by_two_at_once_only_one_removes(puppet: Start) -> None:
    first, second = puppet(ready=False), puppet(ready=False)
    first.open(CREATE)
    second.open(CREATE)
    assert first.retire() == 0
    assert second.retire() == -EBUSY


def test_while_one_is_about_to_remove_it_nobody_else_does(puppet: Start, segment: str) -> None:
    """One that is slow could otherwise remove the new segment, whose name is the same."""
    remover, newcomer = puppet(ready=False), puppet(ready=False)
    remover.open(CREATE)
    assert remover.retire() == 0
    inode = os.stat(segment).st_ino
    assert newcomer.open(CREATE) == -ESTALE  # has tried for long enough
    assert os.stat(segment).st_ino == inode


def test_replaced_segment_cannot_be_retired(puppet: Start, segment: str) -> None:
    remover = puppet(ready=False)
    remover.open(CREATE)
    os.unlink(segment)
    assert remover.retire() == -ESTALE
    Host(segment).close()
    assert remover.retire() == -ESTALE


def test_killed_between_retiring_and_removing_the_next_to_create_gets_a_new_segment(
    puppet: Start, segment: str
) -> None:
    remover = puppet(ready=False)
    remover.open(CREATE)
    assert remover.retire() == 0
    old = os.stat(segment).st_ino
    with open(segment) as keep_inode:  # so that its number is not used again
        waiting = puppet(ready=False)
        waiting.tell("open", CREATE)
        remover.kill()
        assert waiting.answer() == 0
        assert waiting.register() == 0
        assert attached_inodes(waiting.pid, segment) == {os.stat(segment).st_ino} != {old}
        assert os.fstat(keep_inode.fileno()).st_nlink == 0


def test_premature_retired_mark_of_the_dead_is_undone(puppet: Start, segment: str) -> None:
    """Killed inside mtlshm_retire(), after the mark and before it saw that somebody lives."""
    living = puppet()
    content = bytearray(Path(segment).read_bytes())
    header_field("state", lib.MTLSHM_RETIRED)(content)
    with open(segment, "r+b") as file:
        file.write(content[:HEADER])
    newcomer = puppet()
    assert attached_inodes(newcomer.pid, segment) == attached_inodes(living.pid, segment)
    assert living.claim(1) == 0
    assert newcomer.claim(1) == -EBUSY


@pytest.mark.parametrize(("processes", "kills"), [(30, 60), (3, 200)])  # few meet at the same step more often
def test_random_create_and_remove_never_yields_two_segments_in_use(
    puppet: Start, segment: str, processes: int, kills: int
) -> None:
    chance = random.Random(2)

    def start(n: int) -> Puppet:
        replacer = puppet(ready=False)
        assert replacer.replace(n) == 0
        return replacer

    replacers = [start(n) for n in range(processes)]
    for n in range(kills):
        time.sleep(chance.uniform(0, 0.02))
        victim = replacers.pop(0)
        assert victim.running(), "it ended by itself, because something was wrong"
        victim.kill()
        replacers.append(start(processes + n))
    for replacer in replacers:
        assert replacer.running(), "it ended by itself, because something was wrong"
        replacer.kill()
    assert puppet().claim(0) == 0
