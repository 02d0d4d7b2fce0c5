# SPDX-License-Identifier: BSD-3-Clause
"""The reaper: what a process held when it died is free at once. The tests only look, so it is the daemon's work."""

from __future__ import annotations

import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from lab.processes import (
    UNPRIVILEGED,
    Daemon,
    Puppet,
    as_user,
    eventually,
    held,
    look,
    namespaces,
    needs_root,
    pid_inside,
    same_namespaces,
    waiting_room,
)

StartPuppet = Callable[..., Puppet]
StartDaemon = Callable[..., Daemon]


def collected(segment: str) -> int:
    return look(segment).collected


@pytest.fixture
def others_come_and_die(puppet: StartPuppet, segment: str) -> Callable[[], None]:
    """Gives the daemon every reason to look around. Afterwards, whom it left alone it takes for living."""

    def run() -> None:
        for _ in range(3):
            other = puppet()
            before = collected(segment)
            other.kill()
            eventually(lambda before=before: collected(segment) > before)

    return run


def die_by_sigkill(victim: Puppet, _: Path) -> None:
    victim.kill()


def die_by_a_fault(victim: Puppet, _: Path) -> None:
    victim.tell("fault")


def die_while_stopped(victim: Puppet, _: Path) -> None:
    victim.stop()
    victim.kill()


def exit_without_a_word(victim: Puppet, _: Path) -> None:
    victim.tell("exit", 0)


def become_another_program(victim: Puppet, directory: Path) -> None:
    os.mkfifo(directory / "never-opened")
    victim.tell("exec", directory / "never-opened")


def die_after_the_main_thread(victim: Puppet, _: Path) -> None:
    victim.leave_main()
    eventually(lambda: psutil.Process(victim.pid).status() == psutil.STATUS_ZOMBIE)
    victim.kill()


@pytest.mark.parametrize("place", ["outside", "in namespaces of its own"])
@pytest.mark.parametrize(
    "die",
    [
        die_by_sigkill,
        die_by_a_fault,
        die_while_stopped,
        exit_without_a_word,
        become_another_program,
        die_after_the_main_thread,
    ],
)
def test_lcores_of_the_dead_are_free_at_once(
    daemon: StartDaemon,
    puppet: StartPuppet,
    segment: str,
    tmp_path: Path,
    place: str,
    die: Callable[[Puppet, Path], None],
) -> None:
    daemon(prefix=namespaces("pid", "ipc") if place != "outside" else ())
    living = puppet()
    living.claim(0)
    for prefix in (), namespaces("pid", "ipc"):
        victim = puppet(prefix=prefix)
        victim.claim(5)
        victim.claim(6)
        directory = tmp_path / f"{len(prefix)}"
        directory.mkdir()
        die(victim, directory)
        eventually(lambda: held(segment) == {0})
    eventually(lambda: collected(segment) == 2)
    assert living.release(0) == 0


def test_many_that_die_together_are_all_collected(daemon: StartDaemon, puppet: StartPuppet, segment: str) -> None:
    daemon()
    puppets = [puppet(prefix=namespaces("pid") if n % 4 == 0 else ()) for n in range(40)]
    for lcore, each in enumerate(puppets):
        each.claim(lcore)
    for each in puppets[10:]:
        each.send(signal.SIGKILL)
    eventually(lambda: collected(segment) == 30)
    assert held(segment) == set(range(10))


def test_unregistering_is_not_reported_as_a_death(daemon: StartDaemon, puppet: StartPuppet, segment: str) -> None:
    server = daemon()
    leaver = puppet()
    leaver.claim(5)
    leaver.unregister()
    leaver.register()
    leaver.claim(6)
    assert held(segment) == {6}
    leaver.kill()
    eventually(lambda: held(segment) == set())
    assert collected(segment) == 1
    assert server.log().count("died") == 1


def test_a_process_without_proc_is_watched_by_its_lock(daemon: StartDaemon, puppet: StartPuppet, segment: str) -> None:
    daemon()
    hermit = puppet(prefix=(*namespaces("mount"), "sh", "-c", 'mount -t tmpfs none /proc && exec "$@"', "sh"))
    hermit.claim(5)
    hermit.kill()
    eventually(lambda: held(segment) == set())


# --- the living are left alone -------------------------------------------------------------------------


def test_the_stopped_live(
    daemon: StartDaemon, puppet: StartPuppet, segment: str, others_come_and_die: Callable[[], None]
) -> None:
    daemon()
    stopped = puppet()
    stopped.claim(5)
    stopped.stop()
    others_come_and_die()
    assert held(segment) == {5}
    stopped.send(signal.SIGCONT)
    assert stopped.release(5) == 0


def test_a_process_lives_without_its_main_thread(
    daemon: StartDaemon, puppet: StartPuppet, segment: str, others_come_and_die: Callable[[], None]
) -> None:
    daemon()
    holder = puppet()
    holder.claim(5)
    holder.leave_main()
    eventually(lambda: psutil.Process(holder.pid).status() == psutil.STATUS_ZOMBIE)
    others_come_and_die()
    assert held(segment) == {5}
    assert holder.claim(6) == 0


def test_an_instance_lives_on_in_a_vforked_child_and_is_collected_after_it(
    daemon: StartDaemon, puppet: StartPuppet, segment: str, tmp_path: Path, others_come_and_die: Callable[[], None]
) -> None:
    """Its pidfd says that the process is dead long before."""
    daemon()
    parent = puppet()
    parent.claim(5)
    with waiting_room(tmp_path / "room") as arrive:
        parent.tell("vfork", tmp_path / "room")
        arrive()
        parent.kill()
        others_come_and_die()
        assert held(segment) == {5}
    eventually(lambda: held(segment) == set())


def test_only_the_dead_among_a_hundred_lose_their_lcores(
    daemon: StartDaemon, puppet: StartPuppet, host64: Path, segment: str
) -> None:
    daemon()
    chance = random.Random(4)
    clients = [puppet(sysfs=host64) for _ in range(100)]
    for lcore in range(64):
        chance.choice(clients).claim(lcore)
    victims = chance.sample(clients, 50)
    pids = {victim.pid for victim in victims}
    of_the_living = {lcore.number for lcore in look(segment).lcores if lcore.owner.pid not in pids}
    for victim in victims:
        victim.kill()
    eventually(lambda: collected(segment) == 50)
    assert held(segment) == of_the_living
    assert all(client.alive(client.owner()) == 1 for client in clients if client not in victims)


def test_newcomer_with_a_reused_pid_is_told_from_the_dead(
    daemon: StartDaemon, puppet: StartPuppet, segment: str, others_come_and_die: Callable[[], None]
) -> None:
    """All in one PID namespace, so that a pid can be given out again. The daemon sleeps meanwhile."""
    first = puppet(prefix=namespaces("pid"))
    within = same_namespaces(first.pid)
    server = daemon("--log-level", "debug", prefix=within)
    holder = puppet(prefix=within)
    holder.claim(5)
    pid = pid_inside(holder)
    server.await_log(f"(pid {pid})")
    server.send(signal.SIGSTOP)
    holder.kill()
    first.next_pid(pid)
    newcomer = puppet(prefix=within)
    newcomer.claim(6)
    assert pid_inside(newcomer) == pid

    server.resume()
    eventually(lambda: held(segment) == {6})
    others_come_and_die()
    assert held(segment) == {6}
    newcomer.kill()
    eventually(lambda: held(segment) == set())


# --- the daemon's own end ------------------------------------------------------------------------------


def test_earlier_deaths_are_collected_at_start(daemon: StartDaemon, puppet: StartPuppet, segment: str) -> None:
    living, *dead = [puppet(prefix=prefix) for prefix in ((), (), namespaces("pid"), ())]
    for lcore, each in enumerate([living, *dead]):
        each.claim(lcore)
    for each in dead:
        each.kill()
    daemon()
    assert held(segment) == {0}


def test_killed_and_started_again_it_misses_nobody(daemon: StartDaemon, puppet: StartPuppet, segment: str) -> None:
    clients = [puppet(prefix=namespaces("pid") if n % 2 else ()) for n in range(7)]
    for lcore, client in enumerate(clients):
        client.claim(lcore)
    while len(clients) > 1:
        server = daemon()
        assert held(segment) == set(range(len(clients)))
        clients.pop().kill()
        eventually(lambda: held(segment) == set(range(len(clients))))
        server.end(signal.SIGKILL)
        clients.pop().kill()
    daemon()
    assert held(segment) == {0}
    assert clients[0].release(0) == 0


@needs_root("a daemon without privileges, and clients of another user")
def test_it_needs_no_privilege(daemon: StartDaemon, puppet: StartPuppet, segment: str) -> None:
    code = as_user(UNPRIVILEGED, UNPRIVILEGED, []) + "mtlshm.daemon.app.main()"
    daemon(command=[sys.executable, "-c", code])
    assert os.stat(segment).st_uid == UNPRIVILEGED
    for prefix in (), ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc"):
        of_root = puppet(prefix=prefix)
        of_root.claim(5)
        of_root.kill()
        eventually(lambda: held(segment) == set())


def test_it_works_with_fewer_descriptors_than_clients(daemon: StartDaemon, puppet: StartPuppet, segment: str) -> None:
    server = daemon(prefix=("prlimit", "--nofile=24"))
    clients = [puppet() for _ in range(40)]
    for lcore, client in enumerate(clients):
        client.claim(lcore)
    for n, client in enumerate(clients[:39], start=1):
        client.kill()
        eventually(lambda n=n: collected(segment) == n)
    assert held(segment) == {39}
    assert server.end(signal.SIGTERM) == 0


@pytest.mark.parametrize("remove", [os.unlink, lambda path: os.rename(path, f"{path}-moved")], ids=["removed", "moved"])
def test_a_segment_gone_from_its_place_is_reported_and_ends_it(
    daemon: StartDaemon, puppet: StartPuppet, segment: str, remove: Callable[[str], None]
) -> None:
    server = daemon()
    holder = puppet()
    holder.claim(5)
    try:
        remove(segment)
        assert server.wait() == 1
    finally:
        Path(f"{segment}-moved").unlink(missing_ok=True)
    assert "retired or replaced" in server.log()
    assert holder.release(5) == 0


def test_a_look_that_is_due_does_not_outlive_the_daemons_segment(daemon: StartDaemon, segment: str) -> None:
    server = daemon()
    os.kill(server.pid, signal.SIGSTOP)  # for it to hear of both at once
    try:
        os.close(os.open(segment, os.O_RDWR))
        os.unlink(segment)
    finally:
        os.kill(server.pid, signal.SIGCONT)
    assert server.wait() == 1
    assert "Traceback" not in server.log()
