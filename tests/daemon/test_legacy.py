# SPDX-License-Identifier: BSD-3-Clause
"""The legacy bridge: processes on libmtl's System V table, the daemon, and clients of ours, all real, and killed."""

from __future__ import annotations

import errno
import itertools
import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import sysv_ipc

from lab.legacy_clients import available, claim_all, container, falls_asleep, lent, of_legacy
from lab.processes import (
    UNPRIVILEGED,
    Daemon,
    Puppet,
    as_user,
    compile_program,
    eventually,
    held,
    look,
    needs_root,
)
from mtlshm import Host, Kind, Process
from mtlshm.legacy.table import LegacyTable

StartPuppet = Callable[..., Puppet]
StartDaemon = Callable[..., Daemon]


# --- lent, taken, given back ----------------------------------------------------------------------------


def test_legacy_process_gets_lent_lcores_only(bridge: StartDaemon, legacy: StartPuppet, segment: str) -> None:
    bridge("5-7")
    process = legacy()
    assert claim_all(process) == [5, 6, 7]
    eventually(lambda: of_legacy(segment) == dict.fromkeys((5, 6, 7), process.pid))


def test_lent_lcores_are_refused_to_others(
    bridge: StartDaemon, legacy: StartPuppet, puppet: StartPuppet, segment: str
) -> None:
    bridge("5-7")
    process, client = legacy(), puppet()
    assert process.claim(0) == 5
    assert [client.claim(lcore) for lcore in (5, 6, 7)] == [-errno.EBUSY] * 3
    eventually(lambda: of_legacy(segment) == {5: process.pid})
    assert [client.claim(lcore) for lcore in (5, 6, 7)] == [-errno.EBUSY] * 3


def test_table_shows_legacy_processes(bridge: StartDaemon, legacy: StartPuppet, segment: str) -> None:
    bridge("5-7")
    process = legacy()
    process.claim(0, 127, 1)
    eventually(lambda: of_legacy(segment))
    lcore = next(lcore for lcore in look(segment).lcores if lcore.owner.kind == Kind.LEGACY)
    assert (lcore.number, lcore.type.name, lcore.owner.pid) == (5, "TAP", process.pid)
    assert lcore.owner.comm == "legacy_process"
    assert lcore.owner.hostname == os.uname().nodename
    assert lcore.owner.uid == os.getuid()


def test_released_lcore_can_be_taken_again(bridge: StartDaemon, legacy: StartPuppet, segment: str) -> None:
    bridge("5-6")
    first, second = legacy(), legacy()
    claim_all(first)
    eventually(lambda: len(of_legacy(segment)) == 2)
    assert first.release(6) == 0
    assert second.claim(0) == 6
    eventually(lambda: of_legacy(segment) == {5: first.pid, 6: second.pid})
    assert first.release(5) == 0
    eventually(lambda: lent(segment) == {5})
    assert second.release(6) == 0
    eventually(lambda: lent(segment) == {5, 6})
    assert of_legacy(segment) == {}


def test_loan_of_a_number_keeps_that_many_free_and_returns_the_rest(
    bridge: StartDaemon, legacy: StartPuppet, puppet: StartPuppet, segment: str
) -> None:
    online = sorted(os.sched_getaffinity(0))
    if len(online) < 2 or max(online) >= 128:
        pytest.skip("needs two CPUs; not tested otherwise: lending by number")
    bridge(1)
    process = legacy()
    (first,) = available(process)
    assert process.claim(0) == first
    (second,) = eventually(lambda: available(process))
    assert second != first
    assert process.claim(0) == second
    eventually(lambda: len(of_legacy(segment)) == 2)
    assert process.release(first) == 0
    eventually(lambda: lent(segment) == {first})
    assert process.release(second) == 0
    eventually(lambda: held(segment) == {first})
    assert available(process) == {first}
    assert puppet().claim(second) == 0


def test_held_lcore_is_lent_once_it_is_released(
    bridge: StartDaemon, legacy: StartPuppet, puppet: StartPuppet, segment: str
) -> None:
    client = puppet()
    client.claim(5)
    bridge("5-6")
    process = legacy()
    assert claim_all(process) == [6]
    client.kill()
    eventually(lambda: lent(segment) == {5})
    assert claim_all(process) == [5]


def test_with_nothing_to_lend_legacy_processes_get_nothing(
    bridge: StartDaemon, legacy: StartPuppet, segment: str
) -> None:
    bridge(0)
    assert claim_all(legacy()) == []


def test_switched_off_it_leaves_that_table_alone(
    bridge: StartDaemon, legacy: StartPuppet, table: Callable[[], LegacyTable]
) -> None:
    bridge("off")
    process = legacy()
    assert process.claim(0) == 0
    assert [entry for entry in table().entries() if entry and entry.pid != process.pid] == []


def test_reservations_are_none_that_libmtl_would_clear(bridge: StartDaemon, table: Callable[[], LegacyTable]) -> None:
    bridge(0)
    entries = table().entries()
    assert len(entries) >= 128
    for entry in entries:
        assert entry
        assert entry.hostname != os.uname().nodename
        assert entry.pid == 0, "the one PID for which kill(pid, 0) cannot fail"


# --- what was there before -------------------------------------------------------------------------------


def test_earlier_owners_keep_their_lcores(
    bridge: StartDaemon, legacy: StartPuppet, puppet: StartPuppet, segment: str
) -> None:
    first, second, client = legacy(), legacy(), puppet()
    assert [first.claim(0), second.claim(0), first.claim(0)] == [0, 1, 2]
    bridge("8-9")
    assert of_legacy(segment) == {0: first.pid, 1: second.pid, 2: first.pid}
    assert [client.claim(lcore) for lcore in (0, 1, 2)] == [-errno.EBUSY] * 3
    assert claim_all(second) == [8, 9]
    first.release(0)
    eventually(lambda: client.claim(0) == 0)


def test_the_dead_from_before_its_start_are_not_taken_over(
    bridge: StartDaemon, legacy: StartPuppet, puppet: StartPuppet, segment: str
) -> None:
    living, dead, contained = legacy(), legacy(), legacy(prefix=container())
    assert [each.claim(0) for each in (living, dead, contained)] == [0, 1, 2]
    dead.kill()
    contained.kill()
    bridge(0)
    assert of_legacy(segment) == {0: living.pid}
    assert puppet().claim(1) == 0
    assert claim_all(living) == []


def test_held_lcores_are_reserved_at_start(bridge: StartDaemon, legacy: StartPuppet, puppet: StartPuppet) -> None:
    process, client = legacy(), puppet()
    client.claim(3)
    assert process.claim(0) == 0
    bridge("3-4")
    assert claim_all(process) == [4]


def test_a_clash_is_reported_and_nothing_taken_from_either(
    bridge: StartDaemon, legacy: StartPuppet, puppet: StartPuppet, segment: str
) -> None:
    process, client = legacy(), puppet()
    assert process.claim(0) == 0
    client.claim(0)
    server = bridge("5-5")
    assert "lcore 0 has two owners" in server.log()
    assert f"pid {client.pid}" in server.log()
    assert f"pid {process.pid}" in server.log()
    assert process.claim(1) == 5
    eventually(lambda: of_legacy(segment) == {5: process.pid})
    assert process.active(0)
    assert not process.reserved(0)
    assert client.release(0) == 0, "it was its own all the time"


@pytest.mark.parametrize("end", ["give back", "die"])
@pytest.mark.parametrize("who", ["the client", "the legacy process"])
def test_a_clash_ends_with_the_other_as_the_owner(
    bridge: StartDaemon, legacy: StartPuppet, puppet: StartPuppet, segment: str, who: str, end: str
) -> None:
    process, client, other = legacy(), puppet(), legacy()
    assert process.claim(0) == 0
    client.claim(0)
    server = bridge(0)
    leaver = client if who == "the client" else process
    if end == "die":
        leaver.kill()
    else:
        leaver.release(0)
        other.take_lock()
        other.give_lock()
    server.await_log("no longer has two owners")
    if leaver is client:
        assert of_legacy(segment) == {0: process.pid}
    else:
        assert held(segment) == {0}
        assert of_legacy(segment) == {}
        assert claim_all(other) == []


# --- surroundings ----------------------------------------------------------------------------------------


def test_a_lock_file_that_is_replaced_is_followed(
    bridge: StartDaemon, legacy: StartPuppet, legacy_place: dict[str, str], segment: str
) -> None:
    bridge("5-7")
    process = legacy()
    lock = Path(legacy_place["MTLSHM_LEGACY_LOCK"])
    for lcore in 5, 6, 7:
        old = lock.stat().st_ino
        keep = lock.open()  # else its inode may come again
        with keep:
            lock.unlink()
            assert process.claim(0) == lcore
            eventually(lambda lcore=lcore: lcore in of_legacy(segment))
            assert lock.stat().st_ino != old
        assert process.release(lcore) == 0
        assert process.claim(lcore, lcore) == lcore


def test_anybody_may_use_the_lock_file_and_the_table_it_makes(
    bridge: StartDaemon, legacy_place: dict[str, str], table: Callable[[], LegacyTable]
) -> None:
    mask = os.umask(0o077)
    try:
        bridge("5-7")
    finally:
        os.umask(mask)
    assert Path(legacy_place["MTLSHM_LEGACY_LOCK"]).stat().st_mode & 0o777 == 0o666
    assert sysv_ipc.SharedMemory(int(legacy_place["MTLSHM_LEGACY_KEY"], 0)).mode & 0o777 == 0o666


def test_a_stopped_process_that_has_the_lock_stops_only_the_legacy_side(
    bridge: StartDaemon, legacy: StartPuppet, puppet: StartPuppet, segment: str
) -> None:
    holder, process, client = legacy(), legacy(), puppet()
    server = bridge("5-7")
    assert process.claim(0) == 5
    eventually(lambda: of_legacy(segment))
    holder.take_lock()
    holder.stop()
    process.kill()
    client.claim(20)
    client.kill()
    eventually(lambda: 20 not in held(segment))
    assert of_legacy(segment) == {5: process.pid}
    assert falls_asleep(server)
    holder.send(signal.SIGCONT)
    holder.give_lock()
    eventually(lambda: lent(segment) == {5, 6, 7})


def test_started_while_the_lock_is_held_it_serves_and_takes_over_later(
    bridge: StartDaemon, legacy: StartPuppet, puppet: StartPuppet, segment: str
) -> None:
    holder = legacy()
    assert holder.claim(0) == 0
    holder.take_lock()
    server = bridge("5-7")
    client = puppet()
    client.claim(20)
    client.kill()
    eventually(lambda: held(segment) == set())
    holder.give_lock()
    eventually(lambda: of_legacy(segment) == {0: holder.pid})
    eventually(lambda: lent(segment) == {5, 6, 7})
    assert server.end(signal.SIGTERM) == 0


def test_lending_starts_once_an_instance_record_is_free(bridge: StartDaemon, legacy: StartPuppet, segment: str) -> None:
    holder = legacy()
    holder.take_lock()
    server = bridge("5-7")
    with Host(segment) as host:
        ourselves = Process(os.getpid(), 0, 0, 0, 0, "", "", "")
        taken = [host.register_proxy(Kind.SOCKET, ourselves) for _ in range(255)]  # and the daemon's
        holder.give_lock()
        server.await_log("all 256 instance records are held")
        for each in taken:
            each.unregister()
            each.close()
    eventually(lambda: lent(segment) == {5, 6, 7})


@pytest.mark.parametrize("free", range(5))
def test_legacy_look_is_repeated_until_descriptors_are_free(
    bridge: StartDaemon, legacy: StartPuppet, segment: str, free: int
) -> None:
    server = bridge("5-7")
    process = legacy()
    used = {int(name) for name in os.listdir(f"/proc/{server.pid}/fd")}
    unused = (number for number in itertools.count() if number not in used)
    limit = next(itertools.islice(unused, free, None))
    before = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (limit, before[1]))
    assert process.claim(0) == 5
    assert process.claim(0) == 6
    server.await_log("Too many open files")
    eventually(lambda: psutil.Process(server.pid).status() == psutil.STATUS_SLEEPING)
    assert of_legacy(segment) == {}
    seen = psutil.Process(server.pid)
    slept = seen.num_ctx_switches().voluntary
    resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (limit + 1, before[1]))  # the next step fails for want of one
    assert process.claim(0) == 7
    eventually(lambda: seen.num_ctx_switches().voluntary > slept)
    resource.prlimit(server.pid, resource.RLIMIT_NOFILE, before)
    eventually(lambda: of_legacy(segment) == dict.fromkeys((5, 6, 7), process.pid))
    # The reaper may want one for itself.
    said = [line for line in server.log().splitlines() if "Too many open files" in line and "sweep of" not in line]
    assert len(said) <= 1, said
    assert falls_asleep(server)


@pytest.mark.parametrize("room", [0, 4, 12, 24])
def test_legacy_owners_are_adopted_once_descriptors_are_free(
    bridge: StartDaemon, legacy: StartPuppet, segment: str, room: int
) -> None:
    """The dead give theirs back, and nobody is taken for two owners."""
    server = bridge("5-12")
    used = len(os.listdir(f"/proc/{server.pid}/fd"))
    limits = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)
    processes = [legacy() for _ in range(8)]
    assert [process.claim(0) for process in processes] == list(range(5, 13))
    eventually(lambda: len(of_legacy(segment)) == 8)
    server.kill()
    for victim in processes[:3]:
        victim.kill()
    server = bridge("5-12", prefix=("prlimit", f"--nofile={used + 2 + room}:{limits[1]}"))
    processes[3].kill()
    resource.prlimit(server.pid, resource.RLIMIT_NOFILE, limits)
    eventually(lambda: lent(segment) == {5, 6, 7, 8})
    processes[4].kill()
    eventually(lambda: lent(segment) == {5, 6, 7, 8, 9})
    assert of_legacy(segment) == {n + 5: processes[n].pid for n in (5, 6, 7)}
    assert "two owners" not in server.log()


def test_with_nothing_going_on_it_never_wakes(bridge: StartDaemon, legacy: StartPuppet, segment: str) -> None:
    server = bridge("5-7")
    process = legacy()
    claim_all(process)
    eventually(lambda: len(of_legacy(segment)) == 3)
    assert falls_asleep(server)


@pytest.mark.parametrize("lcores", [4, 64, 256])
def test_any_build_of_libmtl_is_served(
    bridge: StartDaemon,
    legacy: StartPuppet,
    legacy_place: dict[str, str],
    segment: str,
    build_once: Callable[..., Path],
    lcores: int,
) -> None:
    """With another RTE_MAX_LCORE its table has another size, be it older than the daemon's or younger."""
    source = Path(__file__).parent / "legacy_process.c"
    program = build_once(
        f"legacy_process_{lcores}",
        lambda program: compile_program(program, source, flags=[f"-DRTE_MAX_LCORE={lcores}"]),
    )
    for older in True, False:
        process = legacy(program=program) if older else None
        server = bridge("2-3")
        process = process or legacy(program=program)
        assert claim_all(process) == [2, 3]
        eventually(lambda process=process: of_legacy(segment) == dict.fromkeys((2, 3), process.pid))
        process.kill()
        eventually(lambda: lent(segment) == {2, 3})
        assert server.end(signal.SIGTERM) == 0
        sysv_ipc.SharedMemory(int(legacy_place["MTLSHM_LEGACY_KEY"], 0)).remove()


def test_foreign_system_v_segment_is_refused_and_left_alone(
    bridge: StartDaemon, legacy_place: dict[str, str], puppet: StartPuppet
) -> None:
    key = int(legacy_place["MTLSHM_LEGACY_KEY"], 0)
    memory = sysv_ipc.SharedMemory(key, sysv_ipc.IPC_CREX, mode=0o666, size=5000, init_character=b"x")
    server = bridge("2-3")
    assert "5000 bytes" in server.log()
    assert "--legacy off" in server.log()
    assert memory.read() == b"x" * 5000
    memory.detach()
    assert puppet().claim(2) == 0, "all else is served"


def test_second_daemon_leaves_the_legacy_table_to_the_first(
    bridge: StartDaemon, legacy: StartPuppet, puppet: StartPuppet, tmp_path: Path
) -> None:
    first = bridge("5-7")
    other = str(tmp_path / "another")
    second = bridge("8-9", "--segment", other, "--socket", "")
    assert "a daemon of another segment" in second.log()
    process, client = legacy(), puppet(path=other)
    assert claim_all(process) == [5, 6, 7]
    assert client.claim(5) == 0, "it serves its own all the same"
    client.kill()
    eventually(lambda: held(other) == set())
    first.kill()
    process.kill()
    assert "cannot look after" not in second.log()


@needs_root("a daemon that may not use the legacy table")
def test_daemon_without_access_to_the_legacy_table_serves_its_segment(
    bridge: StartDaemon, legacy_place: dict[str, str], puppet: StartPuppet, segment: str
) -> None:
    puppet()
    os.chown(segment, UNPRIVILEGED, UNPRIVILEGED)
    Path(legacy_place["MTLSHM_LEGACY_LOCK"]).touch(mode=0o600)
    os.chmod(Path(legacy_place["MTLSHM_LEGACY_LOCK"]).parent, 0o755)
    code = as_user(UNPRIVILEGED, UNPRIVILEGED, []) + "mtlshm.daemon.app.main()"
    server = bridge("5-7", "--socket", "", command=[sys.executable, "-c", code])
    assert "legacy processes are not served" in server.log()
    assert legacy_place["MTLSHM_LEGACY_LOCK"] in server.log()


def test_it_leaves_nothing_of_its_own_in_our_table_if_nothing_is_lent(bridge: StartDaemon, segment: str) -> None:
    server = bridge(0)
    assert server.end(signal.SIGTERM) == 0
    assert look(segment).instances == ()


@pytest.mark.parametrize("lent", ["some", "7-5", "", "5-", "-1"])
def test_malformed_loan_is_refused(bridge: StartDaemon, lent: str) -> None:
    server = bridge(lent, ready=False)
    assert server.wait() == 2
    assert "--legacy" in server.log()
