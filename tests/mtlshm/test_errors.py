# SPDX-License-Identifier: BSD-3-Clause
"""Every refusal of the core becomes an exception that carries its errno, and has a sentence of its own."""

from __future__ import annotations

import errno
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lab.processes import needs_root, run_python
from mtlshm import Busy, Host, InstanceGone, MtlshmError, NoSegment, NotPermitted, TimedOut
from mtlshm._core import ffi, lib
from mtlshm.damage import examine
from mtlshm.errors import check, error, failure

HEADER = (Path(__file__).parents[2] / "cffi_build/mtlshm.h").read_text()

DOCUMENTED = sorted({getattr(errno, name) for name in re.findall(r"-(E[A-Z]+)\b", HEADER)})


def sentence(number: int) -> str:
    return ffi.string(lib.mtlshm_strerror(number)).decode()


def test_every_documented_error_has_a_sentence_of_its_own() -> None:
    assert len(DOCUMENTED) > 20
    assert len({sentence(number) for number in DOCUMENTED}) == len(DOCUMENTED)
    unknown = sentence(errno.EXFULL)
    assert unknown
    assert unknown not in {sentence(number) for number in DOCUMENTED}


def test_the_sign_does_not_matter() -> None:
    assert sentence(-errno.EBUSY) == sentence(errno.EBUSY)


@pytest.mark.parametrize(
    ("number", "kinds"),
    [
        (errno.ENOENT, (NoSegment, FileNotFoundError)),
        (errno.EACCES, (NotPermitted, PermissionError)),
        (errno.EBUSY, (Busy,)),
        (errno.EALREADY, (Busy,)),
        (errno.EBADF, (InstanceGone,)),
        (errno.ECHILD, (InstanceGone,)),
        (errno.ETIMEDOUT, (TimedOut, TimeoutError)),
        (errno.ERANGE, (MtlshmError, OSError)),
    ],
)
def test_exception_class_follows_the_errno(number: int, kinds: tuple[type[Exception], ...]) -> None:
    raised = error(-number, "lcore 5")
    assert all(isinstance(raised, kind) for kind in kinds)
    assert raised.errno == number
    assert "lcore 5" in str(raised)
    assert sentence(number) in str(raised)


def test_results_pass_and_errors_raise() -> None:
    assert check(3, "anything") == 3
    with pytest.raises(Busy):
        check(-errno.EBUSY, "anything")


# --- what fails in the operating system ---------------------------------------------------------------


def refusal(path: object, **how: object) -> MtlshmError:
    with pytest.raises(MtlshmError) as caught:
        Host(str(path), **how)  # type: ignore[arg-type]
    return caught.value


def test_a_missing_directory_is_named_and_is_no_missing_segment(tmp_path: Path) -> None:
    error = refusal(tmp_path / "imtl/mtlshm")
    assert error.errno == errno.ENOENT
    assert not isinstance(error, NoSegment)
    assert f"{tmp_path}/imtl/ does not exist" in str(error)
    assert "mtlshmd" not in str(error)
    assert isinstance(refusal(tmp_path / "mtlshm", create=False), NoSegment)


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize(
    ("make", "what"),
    [
        (os.mkdir, "is a directory"),
        (lambda path: os.symlink("elsewhere", path), "is a symbolic link"),
        (os.mkfifo, "is a FIFO"),
        (lambda path: socket.socket(socket.AF_UNIX).bind(path), "is a socket"),
    ],
)
def test_error_names_the_file_in_the_segments_place(
    manager_socket: Path, make: Callable[[str], object], what: str, read_only: bool
) -> None:
    make(str(manager_socket))
    error = refusal(manager_socket, read_only=read_only)
    assert error.errno == errno.EBADMSG
    assert f"segment {manager_socket}: {what}" in str(error)
    with pytest.raises(MtlshmError, match=what):
        examine(str(manager_socket))


def test_a_file_of_sysfs_is_named_and_no_segment_is_blamed(segment: str, host64: Path) -> None:
    possible = host64 / "devices/system/cpu/possible"
    possible.write_text("a few\n")
    error = refusal(segment, sysfs=host64)
    assert error.errno == errno.EBADMSG
    assert f"{possible} is not what the kernel writes there" in str(error)
    possible.unlink()
    error = refusal(segment, sysfs=host64)
    assert f"cannot open {possible}: No such file" in str(error)
    assert not isinstance(error, NoSegment)
    error = refusal(segment, sysfs=host64 / "nowhere")
    assert f"cannot open {host64}/nowhere: No such file" in str(error)


def test_a_file_that_may_be_missing_is_no_reason_for_anything(segment: str, tmp_path: Path) -> None:
    """No caches are there, no isolated CPUs and no nodes, which harms nothing; then too much is wanted."""
    cpus = tmp_path / "devices/system/cpu"
    cpus.mkdir(parents=True)
    for name in "possible", "online":
        (cpus / name).write_text("0-3\n")
    with Host(segment, sysfs=tmp_path) as host, host.register(cpus=range(4)) as me:
        with pytest.raises(MtlshmError, match="could ever have"):
            me.claim_many(5)
        os.mkdir(tmp_path / "place")
        assert failure(-errno.ENOENT) == ""


def test_earlier_failure_is_not_repeated(segment: str, tmp_path: Path) -> None:
    assert "does not exist" in str(refusal(tmp_path / "no/segment"))
    assert "no segment there" in str(refusal(segment, create=False))


def test_descriptor_shortage_names_the_path_and_the_remedy(segment: str) -> None:
    said = run_python(
        "import os, resource, sys, mtlshm\n"
        "host = mtlshm.Host(sys.argv[1]); me = host.register()\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))\n"
        "try: host.alive(me.owner)\n"
        "except mtlshm.MtlshmError as error: print(error.strerror)\n",
        segment,
    )
    assert f"cannot open {segment}: Too many open files: raise the limit" in said


def in_its_own_mounts(mounts: str, code: str, *arguments: object) -> str:
    command = ["unshare", "--mount", "sh", "-ec", f'{mounts}; exec "$@"', "sh", sys.executable, "-c", code]
    return subprocess.run([*command, *map(str, arguments)], check=True, stdout=subprocess.PIPE, text=True).stdout


OPEN = """
import grp, os, pwd, sys, mtlshm, mtlshm.segment
if len(sys.argv) > 2:
    os.setgroups([]); os.setgid(int(sys.argv[2])); os.setuid(int(sys.argv[2]))
try: mtlshm.Host(sys.argv[1])
except mtlshm.MtlshmError as error: print(type(error).__name__, error.strerror)
"""


@needs_root("a read-only file system")
@pytest.mark.parametrize("there", [True, False])
def test_a_read_only_file_system_is_said_to_be_that(tmp_path: Path, there: bool) -> None:
    made = f"touch {tmp_path}/segment" if there else "true"
    mount = f"mount -t tmpfs none {tmp_path}; {made}; mount -o remount,ro {tmp_path}"
    said = in_its_own_mounts(mount, OPEN, tmp_path / "segment")
    assert f"{tmp_path}/" in said
    assert "Read-only file system" in said
    assert "opened for reading only" not in said


@needs_root("who may not use the segment")
@pytest.mark.parametrize(
    ("group", "owner", "advice"),
    [
        ("mtl:x:4321:", 0, "the group mtl exists: become a member (usermod -aG mtl stranger), have root or root give"),
        ("mtl:x:4321:stranger", 0, "the group mtl exists: become a member"),
        ("", 0, "there is no group mtl: make it (groupadd --system mtl), put stranger into it"),
        ("mtl:x:4321:", 23456, "uid 23456 is no member, so ask root whose file this is"),
        ("video:x:4322:", 0, "there is no group mtl: make it"),
    ],
)
def test_not_permitted_error_says_how_to_get_access(
    segment: str, tmp_path: Path, group: str, owner: int, advice: str
) -> None:
    Host(segment).close()
    os.chown(segment, owner, owner)
    os.chmod(segment, 0o660)
    (tmp_path / "passwd").write_text("root:x:0:0::/:/bin/sh\nstranger:x:12345:12345::/:/bin/sh\n")
    (tmp_path / "group").write_text(f"root:x:0:\n{group}\n")
    mounts = f"mount --bind {tmp_path}/group /etc/group; mount --bind {tmp_path}/passwd /etc/passwd"
    said = in_its_own_mounts(mounts, OPEN, segment, 12345)
    assert said.startswith("NotPermitted")
    assert advice in said
    assert ("chgrp mtl" in said) == (owner == 0)
    assert "remove" not in said


@needs_root("who may not use the segment")
def test_non_member_is_told_to_join_the_files_group(segment: str, tmp_path: Path) -> None:
    Host(segment).close()
    os.chown(segment, 0, 4321)
    (tmp_path / "group").write_text("root:x:0:\nmtl:x:4321:\n")
    said = in_its_own_mounts(f"mount --bind {tmp_path}/group /etc/group", OPEN, segment, 12345)
    assert "group mtl, mode -rw-rw----; become a member (usermod -aG mtl uid 12345)" in said
    assert "chgrp" not in said
