# SPDX-License-Identifier: BSD-3-Clause
"""`mtlshm-ctl doctor` names what is wrong, and puts right what takes nothing from a living owner."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from errno import EBUSY, ESTALE
from pathlib import Path
from typing import Any

import pytest
from inotify_simple import INotify, flags

from lab.damages import SIZE, on_disk, peek, poke, token
from lab.processes import UNPRIVILEGED, Daemon, Puppet, eventually, held, look, needs_root, run_python
from mtlshm import Host, Kind, Process

Start = Callable[..., Puppet]
Ctl = Callable[..., subprocess.CompletedProcess[str]]


LOGIN_USER = os.geteuid() > 999  # whose segments in /dev/shm logind deletes


@pytest.fixture
def environment(environment: dict[str, str], legacy_place: dict[str, str]) -> dict[str, str]:
    return environment | legacy_place


@pytest.fixture
def doctor(ctl: Ctl) -> Callable[..., dict[str, str]]:
    """Runs it; returns what it found, each kind with its text, but what it repaired with "repaired"."""

    def run(*options: str) -> dict[str, str]:
        done = ctl("doctor", "--json", *options)
        assert not done.stderr
        data = json.loads(done.stdout)
        found = {one["what"]: "repaired" if one["repaired"] else one["text"] for one in data["findings"]}
        assert data["sound"] == (set(found.values()) <= {"repaired"})
        assert done.returncode == (0 if data["sound"] else 1)
        if LOGIN_USER:
            found.pop("logout", None)
        return found

    return run


Doctor = Callable[..., dict[str, str]]


def test_a_segment_in_use_is_sound(puppet: Start, daemon: Any, doctor: Doctor, ctl: Ctl, segment: str) -> None:
    daemon()
    client = puppet()
    client.claim(3)
    client.lock(1000)
    assert doctor() == {}
    if not LOGIN_USER:
        assert ctl("doctor").stdout.startswith(f"{segment}: nothing is wrong\nhost:\n")


def test_no_segment_is_said_as_by_every_other_command(ctl: Ctl) -> None:
    assert ctl("doctor").returncode == 3


def test_doctor_names_the_remedy(puppet: Start, ctl: Ctl, segment: str) -> None:
    puppet()
    poke(segment, "header", "magic", value=b"X")
    done = ctl("doctor")
    assert (done.returncode, done.stderr) == (1, "")
    assert "the magic is wrong" in done.stdout
    assert "mtlshm-ctl doctor --repair" in done.stdout
    assert "repaired: the magic is wrong" in ctl("doctor", "--repair").stdout


@pytest.mark.parametrize("field", ["magic", "version", "size", "lcores"])
def test_a_damaged_header_is_written_anew_under_living_owners(
    puppet: Start, doctor: Doctor, segment: str, field: str
) -> None:
    owner = puppet()
    owner.claim(3)
    before = Path(segment).read_bytes()[:32]
    poke(segment, "header", field, value=b"????")
    assert puppet(ready=False).open(0) < 0
    assert set(doctor()) == {"header"}
    assert puppet(ready=False).open(0) < 0, "nothing is changed without --repair"
    assert doctor("--repair") == {"header": "repaired"}
    assert Path(segment).read_bytes()[:32] == before
    assert puppet().claim(3) == -EBUSY
    assert owner.release(3) == 0


ANOTHER_BOOT = b"11111111-2222-3333-4444-555555555555"


def test_a_boot_id_condemns_nothing_that_somebody_alive_uses(
    puppet: Start, ctl: Ctl, segment: str, tmp_path: Path
) -> None:
    """In a container with a boot id of its own doctor is the odd one, not the segment."""
    for path in segment, on_disk(tmp_path):
        puppet(path=path)
        poke(path, "header", "boot_id", value=ANOTHER_BOOT)
        before = Path(path).read_bytes()
        assert "another boot" not in ctl("--segment", path, "doctor", "--repair").stdout
        assert Path(path).read_bytes() == before


def test_another_boots_segment_is_removed(ctl: Ctl, tmp_path: Path) -> None:
    path = on_disk(tmp_path)
    Host(path).close()
    poke(path, "header", "boot_id", value=ANOTHER_BOOT)
    assert "another boot" in ctl("--segment", path, "doctor").stdout
    assert "repaired" in ctl("--segment", path, "doctor", "--repair").stdout
    assert not os.path.exists(path)


def test_a_truncated_one_is_removed_once_nobody_uses_it(puppet: Start, doctor: Doctor, segment: str, ctl: Ctl) -> None:
    owner = puppet()
    owner.claim(3)
    os.truncate(segment, 5000)
    assert f"truncated to 5000 of {SIZE} bytes" in doctor()["short"]
    assert f"pid {owner.pid}" in doctor("--repair")["short"]
    assert "a living process" in ctl("doctor", "--repair").stdout
    owner.kill()
    assert doctor("--repair") == {"short": "repaired"}
    assert not os.path.exists(segment)
    assert puppet().claim(3) == 0


@pytest.mark.parametrize(("offset", "what"), [(0, "foreign"), (16, "layout")])
def test_foreign_file_is_named(doctor: Doctor, segment: str, offset: int, what: str) -> None:
    Host(segment).close()
    content = bytearray(Path(segment).read_bytes())
    content[offset : offset + 24] = bytes(24)
    Path(segment).write_bytes(content)
    assert set(doctor()) == {what}
    assert doctor("--repair").get(what) == ("repaired" if what == "layout" else doctor()["foreign"])
    assert os.path.exists(segment) == (what == "foreign")


def test_one_of_another_layout_that_somebody_uses_is_left_alone(puppet: Start, doctor: Doctor, segment: str) -> None:
    puppet()
    poke(segment, "header", "fingerprint", value=1)
    assert doctor("--repair")["layout"] != "repaired"
    assert os.path.exists(segment)


@pytest.mark.parametrize("byte", [0, 4096, (1 << 30) + 100000, (1 << 62)])
@pytest.mark.parametrize("kind", [fcntl.F_RDLCK, fcntl.F_WRLCK])
def test_its_users_may_lock_any_byte_to_show_that_they_live(segment: str, doctor: Doctor, byte: int, kind: int) -> None:
    Host(segment).close()
    poke(segment, "header", "fingerprint", value=1)
    with open(segment, "r+b") as file:
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", kind, os.SEEK_SET, byte, 1, 0))
        assert doctor("--repair")["layout"] != "repaired"
        assert os.path.exists(segment)
    assert doctor("--repair") == {"layout": "repaired"}


def test_removed_under_running_clients(puppet: Start, doctor: Doctor, segment: str) -> None:
    clients = [puppet() for _ in range(3)]
    os.unlink(segment)
    assert all(f"pid {client.pid}" in doctor("--repair")["removed"] for client in clients)


@pytest.mark.parametrize("by", ["another", "a copy"])
def test_replaced_under_running_clients(puppet: Start, doctor: Doctor, segment: str, by: str) -> None:
    clients = [puppet() for _ in range(3)]
    shutil.copy(segment, f"{segment}.new")
    os.rename(f"{segment}.new", segment)
    if by == "another":
        os.unlink(segment)
        Host(segment).close()
    text = doctor()["replaced"]
    assert all(f"pid {client.pid}" in text for client in clients)
    for client in clients:
        client.kill()
    assert set(doctor("--repair").values()) <= {"repaired"}  # a copy has their records


@contextmanager
def mapping(path: bytes, comm: bytes) -> Iterator[int]:
    """The PID of a process that has a file in its memory, and calls itself so."""
    program = (
        f"import ctypes, mmap, os\nctypes.CDLL(None).prctl(15, {comm!r}, 0, 0, 0)\n"
        f"memory = mmap.mmap(os.open({path!r}, os.O_RDONLY), 0, prot=mmap.PROT_READ)\nprint(flush=True)\ninput()\n"
    )
    command = [sys.executable, "-SEc", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline()
        yield process.pid
        process.communicate(b"\n")


@pytest.mark.parametrize("comm", [b"\xff\x80", b"\x1b[2J"], ids=["no text", "an escape sequence"])
def test_whatever_a_user_calls_himself_is_said_in_characters_that_harm_nobody(
    doctor: Doctor, segment: str, comm: bytes
) -> None:
    Host(segment).close()
    with mapping(os.fsencode(segment), comm) as pid:
        os.unlink(segment)
        text = doctor()["removed"]
    assert f"(pid {pid})" in text
    assert text.isprintable()


@pytest.mark.parametrize("name", ["\udcff", "{elsewhere} 7 {segment}", "{elsewhere}{segment}"])
def test_file_names_do_not_make_a_process_a_user(doctor: Doctor, segment: str, tmp_path: Path, name: str) -> None:
    Host(segment).close()
    file = tmp_path / name.format(elsewhere=tmp_path / "x", segment=segment)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"x")
    with mapping(os.fsencode(file), b"stranger"):
        assert doctor() == {}


def test_unknown_state_is_repaired(puppet: Start, doctor: Doctor, segment: str) -> None:
    owner = puppet()
    owner.claim(3)
    poke(segment, "header", "state", value=7)
    assert puppet(ready=False).open(0) == 0
    assert owner.register() == -ESTALE
    assert set(doctor()) == {"state"}
    assert doctor("--repair") == {"state": "repaired"}
    assert puppet().claim(3) == -EBUSY


@pytest.mark.parametrize("alive", [True, False])
def test_retired_mark_of_the_dead_is_repaired(puppet: Start, doctor: Doctor, segment: str, alive: bool) -> None:
    owner = puppet()
    owner.claim(3)
    if not alive:
        owner.kill()
    poke(segment, "header", "state", value=2)
    assert "retired" in doctor()
    assert doctor("--repair")["retired"] == "repaired"
    assert os.path.exists(segment) == alive
    if alive:
        assert puppet().claim(3) == -EBUSY


def test_dead_instances_and_their_semaphore_are_repaired(puppet: Start, doctor: Doctor, segment: str) -> None:
    living, dead = puppet(), puppet()
    living.claim(1)
    dead.claim(2)
    dead.lock(1000)
    dead.kill()
    found = doctor()
    assert set(found) == {"dead", "semaphore"}
    assert set(doctor("--repair").values()) == {"repaired"}
    assert held(segment) == {1}
    assert living.lock(0) == 0


def test_tokens_of_nobody(puppet: Start, doctor: Doctor, segment: str) -> None:
    puppet().claim(1)
    for lcore, word in (2, token(7, 5)), (3, 2**64 - 1), (4, token(0, 999)):
        poke(segment, "lcores", lcore, "owner", value=word)
    assert set(doctor()) == {"token"}
    assert doctor("--repair") == {"token": "repaired"}
    assert [peek(segment).lcores[n].owner for n in (2, 3, 4)] == [0, 0, 0]
    assert held(segment) == {1}


def test_a_record_in_no_state(doctor: Doctor, segment: str, puppet: Start) -> None:
    puppet()
    poke(segment, "instances", 9, "control", value=5 << 8 | 77)
    assert set(doctor()) == {"record"}
    assert doctor("--repair") == {"record": "repaired"}


@pytest.mark.parametrize("control", [0, 2**64 - 1, 5 << 8 | 77])
def test_overwritten_record_of_a_living_owner_is_restored(
    puppet: Start, doctor: Doctor, segment: str, control: int
) -> None:
    owner = puppet()
    owner.claim(3)
    poke(segment, "instances", 0, "control", value=control)
    assert held(segment) == set()
    assert set(doctor()) == {"hidden"}
    assert doctor("--repair") == {"hidden": "repaired"}
    assert puppet().claim(3) == -EBUSY
    assert owner.release(3) == 0


@pytest.mark.parametrize("control", [0, 2**64 - 1])
def test_overwritten_proxied_record_is_restored(doctor: Doctor, segment: str, control: int) -> None:
    with Host(segment) as host:
        me = Process(os.getpid(), 1, 1, 0, 0, "", "", "somebody")
        proxy = host.register_proxy(Kind.SOCKET, me)
        proxy.claim(3)
        poke(segment, "instances", 0, "control", value=control)
        assert set(doctor()) == {"hidden"}
        assert doctor("--repair") == {"hidden": "repaired"}
        assert host.holder(3)[0] == proxy.owner
        proxy.unregister()


@pytest.mark.parametrize("word", [token(7, 5, 0), token(0, 999, 0), 2**64 - 2])
def test_a_semaphore_of_nobody(puppet: Start, doctor: Doctor, segment: str, word: int) -> None:
    puppet()
    poke(segment, "header", "semaphore", value=word)
    assert set(doctor()) == {"semaphore"}
    assert doctor("--repair") == {"semaphore": "repaired"}
    assert peek(segment).header.semaphore == 0


def test_one_of_a_living_holder_is_not_taken(puppet: Start, doctor: Doctor, segment: str) -> None:
    holder = puppet()
    holder.lock(1000)
    holder.stop()
    assert doctor("--repair") == {}
    assert peek(segment).header.semaphore == look(segment).instances[0].owner


@pytest.mark.parametrize("control", [0, 5 << 8 | 77])
def test_semaphore_holder_with_an_overwritten_record_keeps_it(
    puppet: Start, doctor: Doctor, segment: str, control: int
) -> None:
    holder = puppet()
    holder.lock(1000)
    word = peek(segment).header.semaphore
    poke(segment, "instances", 0, "control", value=control)
    assert set(doctor("--repair")) == {"hidden"}
    assert peek(segment).header.semaphore == word
    holder.kill()
    assert doctor("--repair")["semaphore"] == "repaired"


def test_unknown_kind_is_reported(puppet: Start, doctor: Doctor, segment: str) -> None:
    puppet()
    poke(segment, "instances", 0, "kind", value=99)
    assert "has an unknown kind" in doctor("--repair")["kind"]


def test_modes_that_keep_the_group_out_or_let_anybody_in(puppet: Start, doctor: Doctor, segment: str) -> None:
    puppet()
    os.chmod(segment, 0o600)
    assert "0600" in doctor()["mode"]
    assert doctor("--repair") == {"mode": "repaired"}
    os.chmod(segment, 0o666)
    assert "anybody may write it" in doctor("--repair")["mode"]


def test_file_put_in_its_place_meanwhile_is_left_alone(
    puppet: Start, start_ctl: Any, segment: str, tmp_path: Path, legacy_place: dict[str, str]
) -> None:
    """Who may write the directory could have root open any file to its group."""
    puppet()
    os.chmod(segment, 0o600)
    victim = tmp_path / "victim"
    victim.touch(mode=0o600)
    os.symlink(victim, f"{segment}.link")
    with INotify() as events, open(legacy_place["MTLSHM_LEGACY_LOCK"], "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # as anyone can, to make it wait
        events.add_watch(segment, flags.OPEN)
        doctor = start_ctl("doctor", "--repair")
        events.read()
        os.rename(f"{segment}.link", segment)
    said, _ = doctor.communicate()
    assert doctor.returncode == 1
    assert victim.stat().st_mode & 0o777 == 0o600
    assert "its mode is 0600" in said
    assert "repaired: its mode" not in said


@needs_root("a segment that another user has made")
@pytest.mark.parametrize("member", [True, False])
def test_an_outsiders_segment_is_not_given_to_the_group(
    puppet: Start, start_ctl: Any, segment: str, tmp_path: Path, member: bool
) -> None:
    """Its group is what mtlshmd goes by to tell whether to trust it."""
    stranger = puppet(ready=False)
    stranger.become(12345, 12345)
    assert stranger.open(1) == 0
    groups, users = tmp_path / "group", tmp_path / "passwd"
    users.write_text("root:x:0:0::/:/bin/sh\nstranger:x:12345:12345::/:/bin/sh\n")
    groups.write_text(f"root:x:0:\nmtl:x:4321:{'stranger' if member else ''}\n")
    mounts = f"mount --bind {groups} /etc/group && mount --bind {users} /etc/passwd"
    doctor = start_ctl("doctor", "--repair", within=("unshare", "--mount", "sh", "-c", f'{mounts} && exec "$@"', "sh"))
    said, _ = doctor.communicate()
    assert os.stat(segment).st_gid == (4321 if member else 12345)
    assert ("repaired: it belongs to group 12345" in said) == member
    assert member or "uid 12345" in said


@needs_root("a segment that belongs to another group")
def test_a_group_by_which_somebody_lives_is_not_changed(
    puppet: Start, start_ctl: Any, segment: str, tmp_path: Path
) -> None:
    Host(segment).close()
    os.chown(segment, 0, 4321)
    member = puppet(ready=False)
    assert member.become(UNPRIVILEGED, UNPRIVILEGED, 4321) == 0
    assert (member.open(0), member.register(), member.claim(3)) == (0, 0, 0)
    groups = tmp_path / "group"
    groups.write_text("root:x:0:\nmtl:x:54321:\n")
    within = ("unshare", "--mount", "sh", "-c", f'mount --bind {groups} /etc/group && exec "$@"', "sh")

    def repair() -> str:
        said, _ = start_ctl("doctor", "--repair", within=within).communicate()
        return str(said)

    assert "not repaired, as a living process would lose by it; stop its users" in repair()
    assert os.stat(segment).st_gid == 4321
    assert member.release(3) == 0
    member.kill()
    assert "repaired: it belongs to group 4321" in repair()
    assert os.stat(segment).st_gid == 54321


@pytest.mark.parametrize("content", [b"", b"secret\n", b"x" * 100_000], ids=["empty", "short", "long"])
def test_the_access_of_a_file_that_is_no_segment_is_not_changed(doctor: Doctor, segment: str, content: bytes) -> None:
    Path(segment).write_bytes(content)
    os.chmod(segment, 0o600)
    before = os.stat(segment)
    assert set(doctor("--repair")) == {"foreign"}
    after = os.stat(segment)
    assert (after.st_mode, after.st_gid) == (before.st_mode, before.st_gid)
    assert Path(segment).read_bytes() == content


def test_a_segment_of_another_layout_that_somebody_has_in_memory_is_left_alone(doctor: Doctor, segment: str) -> None:
    """How its users show that they live is not known."""
    Host(segment).close()
    poke(segment, "header", "fingerprint", value=1)
    os.chmod(segment, 0o600)
    with mapping(os.fsencode(segment), b"user"):
        found = doctor("--repair")
        assert set(found) == {"layout"}
        assert found["layout"] != "repaired"
        assert os.stat(segment).st_mode & 0o777 == 0o600


@needs_root("a segment that a login user has made")
def test_a_file_that_logind_deletes_is_named(ctl: Ctl, start_ctl: Any, segment: str, tmp_path: Path) -> None:
    Host(segment).close()
    os.chown(segment, 1000, -1)
    for said in "no", "yes":
        (tmp_path / "systemd").mkdir(exist_ok=True)
        (tmp_path / "systemd/logind.conf").write_text(f"[Login]\n#RemoveIPC=maybe\nRemoveIPC={said}\n")
        hide = f'mount --bind {tmp_path}/systemd /etc/systemd && exec "$@"'
        told, _ = start_ctl("doctor", within=("unshare", "--mount", "sh", "-c", hide, "sh")).communicate()
        assert ("RemoveIPC=yes" in told) == (said == "yes")
    os.chown(segment, 999, -1)
    assert "RemoveIPC=yes" not in ctl("doctor").stdout


def test_create_makes_the_segment_once(ctl: Ctl, segment: str) -> None:
    done = ctl("create")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{segment}\n", "")
    first = os.stat(segment).st_ino
    assert ctl("create").returncode == 0
    assert os.stat(segment).st_ino == first


@needs_root("who may not look")
def test_unreadable_segment_is_reported(puppet: Start, segment: str) -> None:
    puppet()
    said = run_python(
        "import os, grp, pwd, mtlshm.damage\n"
        f"os.setgroups([]); os.setgid({UNPRIVILEGED}); os.setuid({UNPRIVILEGED})\n"
        f"try: mtlshm.damage.examine('{segment}')\n"
        "except mtlshm.NotPermitted as error: print(error.strerror)\n"
    )
    assert "not permitted" in said


def test_a_legacy_table_out_of_step(
    puppet: Start, legacy: Start, daemon: Any, doctor: Doctor, legacy_place: dict[str, str], segment: str
) -> None:
    server: Daemon = daemon("--legacy", "1", environment=legacy_place)
    keeper = legacy()  # so that the table stays
    server.kill()
    assert doctor("--repair").get("dead") == "repaired"  # the daemon
    from mtlshm.legacy.table import LegacyTable

    with LegacyTable(int(legacy_place["MTLSHM_LEGACY_KEY"], 0), create=False) as table:
        table.clear(100)
        assert "lcore 100" in doctor()["legacy"]
        assert doctor("--repair") == {"legacy": "repaired"}
        entry = table.entries()[100]
        assert entry
        assert entry.reserved
    assert keeper.running()


def test_transient_states_are_no_damage(puppet: Start, doctor: Doctor, host64: Path, tmp_path: Path) -> None:
    churners = [puppet(sysfs=host64) for _ in range(4)]
    for n, churner in enumerate(churners):
        churner.churn(tmp_path / "witness", n)
    for _ in range(5):
        assert doctor("--repair") == {}
    assert all(churner.running() for churner in churners)


def test_repairs_amid_claims_take_nothing_from_anyone(
    puppet: Start, doctor: Doctor, host64: Path, tmp_path: Path, segment: str
) -> None:
    """Each churner dies at once if something of its own is another's."""
    churners = [puppet(sysfs=host64) for _ in range(4)]
    for n, churner in enumerate(churners):
        churner.churn(tmp_path / "witness", n)
    for n in range(5):
        poke(segment, "header", "magic", value=b"????")
        poke(segment, "instances", 200, "control", value=n << 8 | 77)
        for lcore in range(70, 90):
            poke(segment, "lcores", lcore, "owner", value=token(200, 3 + n))
        assert set(doctor("--repair").values()) == {"repaired"}
    assert all(churner.running() for churner in churners)
    eventually(lambda: look(segment).instances)
