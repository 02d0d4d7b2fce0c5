# SPDX-License-Identifier: BSD-3-Clause
"""Several processes have the ledger: it is whole after any kill, and readable while it is written."""

from __future__ import annotations

import errno
import fcntl
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from lab.ledgers import IF, check_whole, process
from lab.processes import DEADLINE, needs_root
from lab.refusals import refused
from mtlshm.net.ledger import Ledger


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

def at_last(attempt, *arguments):
    while True:
        try:
            return attempt(*arguments)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise

token = int(sys.argv[2])
with at_last(Ledger, Path(sys.argv[1])) as ledger:
    owner = at_last(ledger.enter, token, Process(token, 1, 1, 1, 0, "", "", ""))
    for _ in range(30):
        at_last(ledger.claim_queue, owner, 7, 2000)
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
from lab.ledgers import check_whole
from mtlshm.net.ledger import Ledger

os.setgroups([])
os.setgid(65534)
os.setuid(65534)
numbers, looks = set(), 0
while looks < int(sys.argv[2]) or len(numbers) < int(sys.argv[3]):
    looks += 1
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


def read_as_another(state: Path, times: int, states: int = 1) -> subprocess.CompletedProcess[str]:
    """So many times at least, and until it has seen so many states."""
    command = [sys.executable, "-c", READS, *map(str, (state, times, states))]
    return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE)


@needs_root("reading as another user")
def test_others_read_a_whole_state_while_it_is_written(open_path: Path) -> None:
    with writing(open_path, 1):
        result = read_as_another(open_path, 20, states=2)  # it does change meanwhile
    assert result.returncode == 0, result.stderr


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
def test_reader_delays_a_change_but_not_for_ever(open_path: Path) -> None:
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


def test_endless_reader_does_not_make_the_ledger_grow(tmp_path: Path) -> None:
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
