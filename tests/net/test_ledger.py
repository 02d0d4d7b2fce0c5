# SPDX-License-Identifier: BSD-3-Clause
"""What the ledger promises: nothing owned twice, whole after any kill, and readable while it is written."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest

from mtlshm import Process
from mtlshm.net.flow import FlowSpec, FlowType
from mtlshm.net.ledger import Flow, Ledger, PortReference, Queue, State, Use
from networks import sandbox
from processes import DEADLINE, UNPRIVILEGED, namespaces, needs_root

IF = 7  # an interface; the ledger does not look at it
SPEC = FlowSpec(FlowType.UDP4, None, IPv4Address("239.1.1.1"), 0, 30002)
LAST = 2**64 - 1


def process(pid: int = 100) -> Process:
    return Process(pid, 4026531836, 12345, 4711, 1000, "worker", "vm", "worker")


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path / "state") as ledger:
        yield ledger


@contextmanager
def refused(number: int) -> Iterator[None]:
    with pytest.raises(OSError, match=r".") as caught:
        yield
    assert caught.value.errno == number, caught.value


# -- owners


def test_an_owner_is_found_again_by_who_it_is(ledger: Ledger) -> None:
    first = ledger.enter(0xABC0, process())
    assert ledger.enter(0xABC0, process()) == first
    assert ledger.enter(0xABC0, process(101)) != first
    assert ledger.enter(0xDEF0, process()) != first
    assert ledger.enter(0xABC0, replace(process(), start_ticks=1)) != first
    assert [owner.id for owner in ledger.owners()][:1] == [first]
    assert ledger.owners()[0].process == process()


def test_any_token_that_a_segment_can_hold_is_kept(ledger: Ledger) -> None:
    ledger.enter(LAST, process())
    assert ledger.owners()[0].token == LAST


def test_the_number_of_an_owner_is_not_used_again(ledger: Ledger) -> None:
    first = ledger.enter(1, process())
    ledger.leave(first)
    assert ledger.settle(first)
    assert ledger.enter(1, process()) > first


def test_who_is_leaving_gets_nothing_more(ledger: Ledger) -> None:
    owner = ledger.enter(1, process())
    ledger.leave(owner)
    for attempt in (
        lambda: ledger.use(owner, IF),
        lambda: ledger.claim_queue(owner, IF, 4),
        lambda: ledger.intend_flow(owner, IF, 1, 1, SPEC),
        lambda: ledger.add_port(owner, IF, 5000),
        lambda: ledger.add_port(99, IF, 5000),
    ):
        with refused(errno.ESRCH):
            attempt()
    assert ledger.state() == State(ledger.owners(), (), (), (), ())
    assert ledger.enter(1, process()) != owner


def test_who_has_left_is_forgotten_once_its_rules_are_gone(ledger: Ledger) -> None:
    owner, other = ledger.enter(1, process()), ledger.enter(2, process())
    assert ledger.claim_queue(owner, IF, 4) == 1
    ledger.intend_flow(owner, IF, 2, 10, SPEC)
    ledger.complete_flow(IF, 10)
    ledger.use(owner, IF)
    for port in (5000, 5001, 5002):
        ledger.add_port(owner, IF, port)
    ledger.add_port(other, IF, 5001)
    ledger.leave(owner)
    assert ledger.last_references(owner) == {IF: (5000, 5002)}
    assert not ledger.settle(owner)
    assert ledger.queues() == (Queue(IF, 2, owner),)  # the rule leads there
    assert ledger.ports(IF) == {5001}
    assert [each.leaving for each in ledger.owners()] == [True, False]
    ledger.forget_flow(IF, 10)
    assert ledger.settle(owner)
    assert ledger.queues() == ()
    assert [each.id for each in ledger.owners()] == [other]
    assert ledger.settle(owner)  # again, after a kill: nothing happens


# -- interfaces


def test_the_first_user_and_the_last_are_told(ledger: Ledger) -> None:
    a, b = ledger.enter(1, process()), ledger.enter(2, process())
    assert ledger.use(a, IF)
    assert not ledger.use(a, IF)
    assert not ledger.use(b, IF)
    assert not ledger.keep(IF)
    assert ledger.uses() == (Use(IF, True, (a, b)),)
    ledger.leave(a)
    assert not ledger.unkeep(IF)
    assert ledger.in_use(IF)
    ledger.leave(b)
    assert not ledger.in_use(IF)
    assert ledger.keep(IF)
    assert ledger.unkeep(IF)


def test_an_interface_that_is_gone_takes_everything_with_it_and_nothing_else(ledger: Ledger) -> None:
    owner = ledger.enter(1, process())
    for ifindex in (IF, IF + 1):
        ledger.use(owner, ifindex)
        ledger.intend_flow(owner, ifindex, ledger.claim_queue(owner, ifindex, 4), 1, SPEC)
        ledger.add_port(owner, ifindex, 5000)
    ledger.keep(IF)
    ledger.forget_interface(IF)
    left = ledger.state()
    assert {each.ifindex for each in (*left.uses, *left.queues, *left.flows, *left.ports)} == {IF + 1}


# -- queues


def test_queues_are_given_once_and_queue_0_never(ledger: Ledger) -> None:
    a, b = ledger.enter(1, process()), ledger.enter(2, process())
    assert [ledger.claim_queue(owner, IF, 4) for owner in (a, b, a)] == [1, 2, 3]
    with refused(errno.ENOSPC):
        ledger.claim_queue(b, IF, 4)
    assert ledger.claim_queue(b, IF + 1, 4) == 1
    with refused(errno.ENOSPC):
        ledger.claim_queue(b, IF + 2, 1)
    ledger.put_queue(b, IF, 2)
    assert ledger.claim_queue(a, IF, 4) == 2


@pytest.mark.parametrize("queue", [0, 1, 3, 65535])
def test_a_queue_can_only_be_given_back_by_its_owner(ledger: Ledger, queue: int) -> None:
    a, b = ledger.enter(1, process()), ledger.enter(2, process())
    ledger.claim_queue(a, IF, 4)
    before = ledger.state()
    with refused(errno.EINVAL):
        ledger.put_queue(b, IF, queue)
    assert ledger.state() == before


def test_a_queue_that_rules_lead_to_is_not_given_back(ledger: Ledger) -> None:
    owner = ledger.enter(1, process())
    ledger.intend_flow(owner, IF, ledger.claim_queue(owner, IF, 4), 5, SPEC)
    ledger.complete_flow(IF, 5)
    with refused(errno.EBUSY):
        ledger.put_queue(owner, IF, 1)
    ledger.forget_flow(IF, 5)
    ledger.put_queue(owner, IF, 1)


# -- flow rules


@pytest.mark.parametrize(
    "spec",
    [
        SPEC,
        FlowSpec(FlowType.UDP4),
        FlowSpec(FlowType.UDP6, IPv6Address("2001:db8::1"), IPv6Address("ff02::1"), 1, 65535),
        FlowSpec(FlowType.IP4, IPv4Address("192.0.2.1")),
    ],
)
def test_a_rule_is_kept_as_it_was_asked_for(ledger: Ledger, spec: FlowSpec) -> None:
    owner = ledger.enter(1, process())
    ledger.intend_flow(owner, IF, 3, 12, spec)
    assert ledger.flows() == (Flow(IF, 12, 3, owner, spec, False),)
    ledger.complete_flow(IF, 12)
    assert ledger.flows(IF, owner) == (Flow(IF, 12, 3, owner, spec, True),)
    assert ledger.flows(IF + 1) == ledger.flows(owner=owner + 1) == ()


def test_a_queue_that_nobody_holds_comes_with_the_rule_and_goes_if_the_rule_fails(ledger: Ledger) -> None:
    owner = ledger.enter(1, process())
    ledger.intend_flow(owner, IF, 3, 12, SPEC)
    assert ledger.queues() == (Queue(IF, 3, owner),)
    ledger.forget_flow(IF, 12)
    assert ledger.queues() == ()


def test_a_queue_that_came_with_a_rule_stays_after_it(ledger: Ledger) -> None:
    owner = ledger.enter(1, process())
    ledger.intend_flow(owner, IF, 3, 12, SPEC)
    ledger.complete_flow(IF, 12)
    ledger.forget_flow(IF, 12)
    assert ledger.queues() == (Queue(IF, 3, owner),)


def test_nor_does_it_go_while_another_rule_leads_to_it(ledger: Ledger) -> None:
    owner = ledger.enter(1, process())
    ledger.intend_flow(owner, IF, 3, 12, SPEC)
    ledger.intend_flow(owner, IF, 3, 13, SPEC)
    ledger.complete_flow(IF, 13)
    ledger.forget_flow(IF, 12)
    assert ledger.queues() == (Queue(IF, 3, owner),)


def test_a_rule_to_somebody_elses_queue_is_refused(ledger: Ledger) -> None:
    a, b = ledger.enter(1, process()), ledger.enter(2, process())
    ledger.claim_queue(a, IF, 4)
    with refused(errno.EBUSY):
        ledger.intend_flow(b, IF, 1, 12, SPEC)
    assert ledger.flows() == ()


# -- ports


def test_references_are_counted_per_owner_and_the_first_and_last_told(ledger: Ledger) -> None:
    a, b = ledger.enter(1, process()), ledger.enter(2, process())
    assert [ledger.add_port(owner, IF, 5000) for owner in (a, a, b)] == [True, False, False]
    assert ledger.state().ports == (PortReference(IF, 5000, a, 2), PortReference(IF, 5000, b, 1))
    assert [ledger.drop_port(owner, IF, 5000) for owner in (a, b, a)] == [False, False, True]
    assert ledger.ports(IF) == frozenset()


def test_del_without_add_is_an_error_that_changes_nothing(ledger: Ledger) -> None:
    a, b = ledger.enter(1, process()), ledger.enter(2, process())
    ledger.add_port(a, IF, 5000)
    before = ledger.state()
    for owner, ifindex, port in ((b, IF, 5000), (a, IF, 5001), (a, IF + 1, 5000), (99, IF, 5000)):
        with refused(errno.EINVAL):
            ledger.drop_port(owner, ifindex, port)
    assert ledger.state() == before


def test_all_ports_and_no_others(ledger: Ledger) -> None:
    owner = ledger.enter(1, process())
    start = time.perf_counter()
    for port in range(65536):
        assert ledger.add_port(owner, IF, port)
    print(f"65,536 ADDs: {time.perf_counter() - start:.2f} s")
    assert ledger.ports(IF) == set(range(65536))
    start = time.perf_counter()
    ledger.leave(owner)
    assert ledger.last_references(owner) == {IF: tuple(range(65536))}
    assert ledger.settle(owner)
    print(f"dropped: {time.perf_counter() - start:.2f} s")
    assert ledger.ports(IF) == frozenset()


@pytest.mark.parametrize("port", [-1, 65536])
def test_a_port_that_there_cannot_be_is_refused(ledger: Ledger, port: int) -> None:
    owner = ledger.enter(1, process())
    with pytest.raises(OSError, match="CHECK"):
        ledger.add_port(owner, IF, port)


# -- the file


def test_what_was_entered_is_there_after_it_was_closed(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        ledger.keep(IF)
    with Ledger(tmp_path) as ledger:
        assert ledger.in_use(IF)
    with Ledger(tmp_path, read_only=True) as ledger:
        assert ledger.in_use(IF)


def test_what_an_earlier_boot_left_is_forgotten(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        ledger.intend_flow(ledger.enter(1, process()), IF, 1, 1, SPEC)
        ledger.keep(IF)
    with sqlite3.connect(tmp_path / "ledger") as db:
        db.execute("UPDATE place SET boot_id = 'earlier'")
    db.close()
    with refused(errno.ENOENT):
        Ledger(tmp_path, read_only=True)
    with Ledger(tmp_path) as ledger:
        assert ledger.state() == State((), (), (), (), ())


def test_the_state_of_another_network_namespace_is_refused(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        ledger.keep(IF)
    code = "import sys; from pathlib import Path; from mtlshm.net.ledger import Ledger; Ledger(Path(sys.argv[1])"
    for how, advice in (")", "use another directory"), (", read_only=True)", "enter that"):
        command = [*namespaces("net"), sys.executable, "-c", code + how, str(tmp_path)]
        result = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE)
        assert f"another network namespace; {advice}" in result.stderr
    with Ledger(tmp_path) as ledger:
        assert ledger.in_use(IF)


def test_the_layout_of_another_version_is_refused(tmp_path: Path) -> None:
    Ledger(tmp_path).close()
    with sqlite3.connect(tmp_path / "ledger") as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with refused(errno.EPROTO):
        Ledger(tmp_path)
    with refused(errno.EPROTO):
        Ledger(tmp_path, read_only=True)


def test_a_damaged_file_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        owner = ledger.enter(1, process())
        for port in range(3000):
            ledger.add_port(owner, IF, port)
    file = tmp_path / "ledger"
    data = bytearray(file.read_bytes())
    data[8192:] = random.Random(1).randbytes(len(data) - 8192)
    file.write_bytes(data)
    with refused(errno.EUCLEAN):
        Ledger(tmp_path)
    file.write_bytes(b"no ledger at all, but just as long as it takes")
    with refused(errno.EUCLEAN):
        Ledger(tmp_path)
    assert file.read_bytes().startswith(b"no ledger")


def test_there_is_nothing_to_read_before_there_is_a_ledger(tmp_path: Path) -> None:
    with refused(errno.ENOENT):
        Ledger(tmp_path, read_only=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mode", [0o775, 0o757])
def test_a_directory_that_others_can_write_is_refused(tmp_path: Path, mode: int) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state").chmod(mode)
    with refused(errno.EPERM):
        Ledger(tmp_path / "state")
    assert list((tmp_path / "state").iterdir()) == []


@needs_root("directories of another user")
def test_a_directory_of_another_user_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    os.chown(tmp_path / "state", UNPRIVILEGED, UNPRIVILEGED)
    with refused(errno.EPERM):
        Ledger(tmp_path / "state")


def test_the_umask_does_not_change_who_may_read(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        with Ledger(tmp_path / "state") as ledger:
            ledger.keep(IF)
            modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "state").iterdir()}
    finally:
        os.umask(before)
    assert modes == {"ledger": 0o640, "ledger-wal": 0o640, "ledger-shm": 0o640}


@needs_root("a ledger of another group")
def test_who_serves_says_which_group_may_read_and_others_leave_it(tmp_path: Path) -> None:
    def rights() -> dict[str, tuple[int, int]]:
        return {path.name: (path.stat().st_gid, path.stat().st_mode & 0o777) for path in tmp_path.iterdir()}

    with Ledger(tmp_path) as ledger:
        ledger.keep(IF)
        assert set(rights().values()) == {(os.getegid(), 0o640)}
        (tmp_path / "ledger").chmod(0o644)  # as it was made by an earlier version
        with Ledger(tmp_path, gid=UNPRIVILEGED) as other:
            other.keep(IF + 1)
            assert rights() == dict.fromkeys(("ledger", "ledger-wal", "ledger-shm"), (UNPRIVILEGED, 0o640))
    with Ledger(tmp_path) as ledger:
        ledger.keep(IF + 2)
        assert rights() == dict.fromkeys(("ledger", "ledger-wal", "ledger-shm"), (UNPRIVILEGED, 0o640))


@needs_root("the ill will of another user")
def test_who_is_not_in_the_group_can_open_none_of_its_files(open_path: Path) -> None:
    code = """
        import os, sys
        os.setgroups([]); os.setgid(65533); os.setuid(65533)
        for name in sys.argv[1:]:
            try:
                os.open(name, os.O_RDONLY)
            except PermissionError:
                print(name)
    """
    with Ledger(open_path) as ledger:
        ledger.keep(IF)
        ledger.serve()
        names = sorted(str(path) for path in open_path.iterdir())
        command = [sys.executable, "-c", textwrap.dedent(code), *names]
        refused = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.split()
    assert len(names) == 4
    assert refused == names


@needs_root("a small file system")
def test_on_a_small_file_system_it_goes_on_once_there_is_room() -> None:
    small = Path("/run/small")
    with sandbox():
        small.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=384k,mode=755", "none", small], check=True)
        with Ledger(small / "state") as ledger:
            for number in range(1, 200):  # the WAL would come to megabytes
                come_and_go(ledger, number)
            others = small / "others"
            with suppress(OSError), others.open("wb", buffering=0) as file:
                while file.write(bytes(4096)):
                    pass
            with refused(errno.ENOSPC):
                for number in range(200, 400):
                    ledger.enter(number, process(number))
            with refused(errno.ENOSPC):
                for number in range(400, 600):
                    ledger.enter(number, process(number))
            os.truncate(others, others.stat().st_size - (48 << 10))
            for number in range(1000, 1100):
                come_and_go(ledger, number)


def come_and_go(ledger: Ledger, number: int) -> None:
    owner = ledger.enter(number, process(number))
    ledger.leave(owner)
    assert ledger.settle(owner)


def test_a_full_disk_is_told_and_changes_nothing(ledger: Ledger) -> None:
    ledger._db.execute("PRAGMA max_page_count = 20")  # SQLite's own way to have no room
    owner = ledger.enter(1, process())
    added = 0
    with refused(errno.ENOSPC):
        for port in range(65536):
            ledger.add_port(owner, IF, port)
            added += 1
    assert ledger.ports(IF) == set(range(added))
    ledger._db.execute("PRAGMA max_page_count = 1000000")
    assert ledger.add_port(owner, IF, 65535)


# -- several processes


def test_a_second_server_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    with Ledger(tmp_path) as first, Ledger(tmp_path) as second:
        first.serve()
        with refused(errno.EBUSY):
            second.serve()
        first.close()
        second.serve()


CLAIMS = """
import errno, sys
from pathlib import Path
from mtlshm import Process
from mtlshm.net.ledger import Ledger

token = int(sys.argv[2])
with Ledger(Path(sys.argv[1])) as ledger:
    owner = ledger.enter(token, Process(token, 1, 1, 1, 0, "", "", ""))
    for _ in range(30):
        while True:
            try:
                ledger.claim_queue(owner, 7, 2000)
                break
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise
"""


def test_several_writers_come_one_after_the_other(tmp_path: Path) -> None:
    """On a ledger that none of them finds there."""
    writers = [subprocess.Popen([sys.executable, "-c", CLAIMS, str(tmp_path / "state"), str(n)]) for n in range(6)]
    assert [writer.wait(DEADLINE) for writer in writers] == [0] * 6
    with Ledger(tmp_path / "state") as ledger:
        assert [queue.queue for queue in ledger.queues()] == list(range(1, 181))


def test_a_writer_that_was_stopped_keeps_nobody_waiting_for_ever(tmp_path: Path) -> None:
    with Ledger(tmp_path, patience=0.25) as ledger, Ledger(tmp_path) as other, other._change():
        with refused(errno.EBUSY):
            ledger.keep(IF)
        assert not ledger.in_use(IF)  # reading is possible meanwhile


# Each change keeps the sum of a pair of ports' counts even; what is half done would show.
PAIRS = """
import itertools, random, sys
from pathlib import Path
from mtlshm import Process
from mtlshm.net.ledger import Ledger
from mtlshm.net.flow import FlowSpec, FlowType

ledger = Ledger(Path(sys.argv[1]))
dice = random.Random(int(sys.argv[2]))
owner = ledger.enter(1, Process(1, 1, 1, 1, 0, "", "", ""))
print("ready", flush=True)
for n in itertools.count():
    with ledger._change() as db:
        for port in dice.sample(range(3000), 40):
            db.execute("INSERT OR REPLACE INTO ports VALUES (7, ?, ?, ?)", (port, owner, n + 1))
        db.execute("DELETE FROM ports WHERE ifindex = 8")
        db.execute("INSERT INTO ports VALUES (8, 0, ?, ?)", (owner, n + 1))
        db.execute("INSERT INTO ports VALUES (8, 1, ?, ?)", (owner, n + 1))
        db.execute("INSERT OR REPLACE INTO ports SELECT 9, 0, ?, count(*) + 1 FROM ports WHERE ifindex = 7", (owner,))
"""


@contextmanager
def writing(directory: Path, seed: int) -> Iterator[subprocess.Popen[bytes]]:
    """A process that changes the ledger all the time; each of its transactions is whole() or not."""
    with subprocess.Popen([sys.executable, "-c", PAIRS, str(directory), str(seed)], stdout=subprocess.PIPE) as writer:
        assert writer.stdout
        try:
            assert writer.stdout.readline() == b"ready\n"
            yield writer
        finally:
            writer.kill()


def check_whole(state: State) -> int:
    """None of the transactions of writing() is half there; returns how many there were."""
    pair = [each.count for each in state.ports if each.ifindex == 8]
    number = sum(each.count - 1 for each in state.ports if each.ifindex == 9)
    assert len(pair) in (0, 2)
    assert len(set(pair)) <= 1
    assert number == sum(each.ifindex == 7 for each in state.ports)
    return pair[0] if pair else 0


def test_it_is_whole_after_a_kill_at_any_moment(tmp_path: Path) -> None:
    dice = random.Random(4)
    transactions = 0
    for seed in range(25):
        with writing(tmp_path, seed) as writer:
            time.sleep(dice.uniform(0, 0.05))
            writer.send_signal(signal.SIGKILL)
            writer.wait(DEADLINE)
        with Ledger(tmp_path) as ledger:
            transactions += check_whole(ledger.state())
            owner = ledger.enter(2, process())
            assert ledger.claim_queue(owner, IF, 2) == 1
            ledger.put_queue(owner, IF, 1)
    assert transactions > 25


READS = """
import os, sys
from pathlib import Path
sys.path[:0] = sys.argv[3:]
from mtlshm.net.ledger import Ledger
from test_ledger import check_whole

os.setgroups([])
os.setgid(65534)
os.setuid(65534)
numbers = set()
for _ in range(int(sys.argv[2])):
    with Ledger(Path(sys.argv[1]), read_only=True) as ledger:
        numbers.add(check_whole(ledger.state()))
    try:
        Ledger(Path(sys.argv[1]))
    except PermissionError:
        pass
    else:
        raise SystemExit("it could write")
print(len(numbers))
"""


@pytest.fixture
def open_path(tmp_path: Path) -> Iterator[Path]:
    """A state directory that others may look into, as /run/mtlshm is, with a ledger that their group may read."""
    state = Path("/run") / f"mtlshm-test-{os.getpid()}-{random.getrandbits(32):x}"
    state.mkdir(mode=0o755)
    Ledger(state, gid=UNPRIVILEGED).close()
    yield state
    for path in state.iterdir():
        path.unlink()
    state.rmdir()


def read_as_another(state: Path, times: int) -> subprocess.CompletedProcess[str]:
    here = str(Path(__file__).parent)
    command = [sys.executable, "-c", READS, str(state), str(times), here, str(Path(here).parent)]
    return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE)


@needs_root("reading as another user")
def test_others_read_a_whole_state_while_it_is_written(open_path: Path) -> None:
    with writing(open_path, 1):
        result = read_as_another(open_path, 20)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) > 1  # it did change meanwhile


@needs_root("reading as another user")
def test_others_read_it_when_the_daemon_was_killed_and_when_it_stopped(open_path: Path) -> None:
    with writing(open_path, 1) as writer:
        time.sleep(0.05)
        writer.send_signal(signal.SIGKILL)
        writer.wait(DEADLINE)
    assert (open_path / "ledger-wal").exists()
    assert read_as_another(open_path, 1).stdout == "1\n"
    Ledger(open_path).close()
    assert [path.name for path in open_path.iterdir()] == ["ledger"]
    assert read_as_another(open_path, 1).stdout == "1\n"


@needs_root("the ill will of another user")
def test_who_may_read_it_can_delay_a_change_but_not_for_ever(open_path: Path) -> None:
    """SQLite's locks are byte locks of files, and reading suffices to hold a read lock on the writers' byte."""
    code = """
        import fcntl, os, sys
        os.setgroups([]); os.setgid(65534); os.setuid(65534)
        index = os.open(sys.argv[1], os.O_RDONLY)
        fcntl.lockf(index, fcntl.LOCK_SH, 8, 120)
        print("held", flush=True)
        sys.stdin.read()
    """
    with Ledger(open_path, patience=0.25) as ledger:
        command = [sys.executable, "-c", textwrap.dedent(code), str(open_path / "ledger-shm")]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as villain:
            assert villain.stdout
            assert villain.stdout.readline() == b"held\n"
            with refused(errno.EBUSY):
                ledger.keep(IF)
            villain.communicate()
        assert ledger.keep(IF)


def test_who_reads_it_for_ever_does_not_make_it_grow_for_ever(tmp_path: Path) -> None:
    """What is written while somebody reads is kept apart until he is done, and the state directory is in memory."""
    with Ledger(tmp_path) as ledger, Ledger(tmp_path, read_only=True) as reader, ExitStack() as reading:
        reading.enter_context(reader._still())
        reader.owners()
        with refused(errno.EBUSY):
            for _ in range(20000):
                ledger.keep(IF)
                ledger.unkeep(IF)
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 1 << 25
        reading.close()
        assert ledger.keep(IF)
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 1 << 20


def test_no_lock_is_lost_when_a_file_is_looked_at(tmp_path: Path) -> None:
    """Closing any descriptor of a file drops all of a process's byte locks on it, so serve() uses another file."""
    with Ledger(tmp_path) as ledger, Ledger(tmp_path, patience=0.25) as other:
        ledger.serve()
        with ledger._change():
            with refused(errno.EBUSY):
                other.serve()
            with pytest.raises(OSError, match="locked"):
                other.keep(IF)
        with (tmp_path / "serve.lock").open() as lock, pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
