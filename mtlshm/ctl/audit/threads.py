# SPDX-License-Identifier: BSD-3-Clause
"""Which threads ran on which CPU, as far as /proc tells it to anybody.

The kernel counts a thread's time to the nanosecond, but not where it was spent: it only says on which CPU a thread ran
last. So all threads are looked at several times a second. What a thread ran between two looks is put down to the CPU
that it was on at the second one; if that was another than at the first one, to both. For a thread that may run on one
CPU only this is exact, for all others an upper bound of what it ran there.

NOT SEEN is a thread that came to a CPU and left it between two looks, or began and ended between them. Two figures know
of it nevertheless, though not its name: the time that the owner's threads were ready to run and had to wait, and the
time that /proc/stat says the CPU was busy. verdict.py compares them with what was seen.

BOUNDED. Anybody can start threads. What a look may cost has a limit, and what it did not reach is told. It reads only
files whose length the kernel decides and that need no lock of the process: never maps, environ or cmdline.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice

from mtlshm import CpuSet
from mtlshm.kinds import TableOwner
from mtlshm.snapshot import printable

_PF_KTHREAD = 0x00200000  # linux/sched.h
_TICK = os.sysconf("SC_CLK_TCK")
_OF_A_PROCESS = 1024  # threads that are looked at
_OF_AN_OWNER = 4096
_LOOK = 2.0  # seconds of CPU time
_STATUS = 65536  # bytes; its line of groups is as long as root likes
_SWITCHES = b"\nnonvoluntary_ctxt_switches:"
_GONE = (FileNotFoundError, ProcessLookupError)
_DEPTH = 64  # of processes below an owner


@dataclass(slots=True)
class Thread:
    """A thread, as at the last look that it ran before."""

    pid: int
    tid: int
    start_ticks: int
    comm: str
    kernel: bool
    parent: int  # of its process
    cpu: int  # the last one
    run: float  # seconds since it began
    waited: float | None  # seconds that it was ready to run and did not; None: not known
    raw: bytes  # what the file said, to see whether it changed
    switches: int | None = None  # involuntary ones; of owners only
    seen: int = 0  # the number of the look


@dataclass(slots=True)
class Share:
    """The time that one thread spent on one CPU."""

    thread: Thread
    seconds: float = 0.0
    waited: float = 0.0
    switches: int = 0


@dataclass(slots=True)
class Watch:
    """Looks at all threads again and again. `roots` are the processes of owners."""

    roots: dict[int, TableOwner]
    shares: dict[tuple[int, int, int], Share] = field(default_factory=dict)  # by CPU, TID and start time
    families: dict[int, TableOwner] = field(default_factory=dict)  # by PID: the owner, or the one it descends from
    comms: dict[int, str] = field(default_factory=dict)  # of processes
    truncated: set[int] = field(default_factory=set)  # PIDs of those with more threads than are looked at
    unfinished: bool = False  # there was a look without time for all
    coarse: bool = False  # the kernel tells times to a clock tick only
    hidden: bool = False  # there are processes that /proc does not show us
    started: int = 0  # threads that began meanwhile and were seen
    _threads: dict[int, Thread] = field(default_factory=dict)
    _looks: int = 0
    _previous: float = 0.0  # when, in clock ticks since boot

    def look(self) -> float:
        """Once more. Returns how long it took."""
        begin, until = time.monotonic(), time.process_time() + _LOOK
        now = time.clock_gettime(time.CLOCK_BOOTTIME) * _TICK
        self._looks += 1
        pids = sorted(int(name) for name in os.listdir("/proc") if name.isdecimal())
        # From another one each time: where time is short, none is left out always.
        turn = self._looks * 997 % len(pids) if self.unfinished else 0
        for pid in pids[turn:] + pids[:turn]:
            if time.process_time() > until:
                self.unfinished = True
                break
            try:
                for tid in self._tids(pid):
                    self._look_at(pid, tid)
            except PermissionError:  # hidepid=1
                self.hidden = True
            except _GONE:
                continue
        self._threads = {tid: thread for tid, thread in self._threads.items() if thread.seen == self._looks}
        self._previous = now
        return time.monotonic() - begin

    def owner(self, pid: int) -> TableOwner | None:
        """The owner that a process is, or that it nearest descends from."""
        if pid not in self.families:
            chain = [pid]
            for _ in range(_DEPTH):
                if chain[-1] in self.families or chain[-1] in self.roots:
                    break
                thread = self._threads.get(chain[-1])
                if thread is None or not thread.parent:
                    return None
                chain.append(thread.parent)
            found = self.roots.get(chain[-1]) or self.families.get(chain[-1])
            if found is None:
                return None
            self.families |= dict.fromkeys(chain, found)  # for good: when its parent ends it gets another
        return self.families[pid]

    def allowed(self, owners: frozenset[TableOwner]) -> CpuSet | None:
        """The CPUs that threads of these owners may run on, as the kernel keeps them inside their cpusets; None if no
        thread of theirs is seen."""
        found: set[int] = set()
        seen = False
        for tid, thread in self._threads.items():
            if self.owner(thread.pid) in owners:
                with suppress(OSError):  # it has ended
                    found |= os.sched_getaffinity(tid)
                    seen = True
        return CpuSet(found) if seen else None

    def family(self, owner: TableOwner) -> list[int]:
        """The PIDs of those that were found to belong to an owner."""
        return [pid for pid, found in self.families.items() if found == owner]

    def _tids(self, pid: int) -> Iterator[int]:
        most = _OF_AN_OWNER if pid in self.families or pid in self.roots else _OF_A_PROCESS
        with os.scandir(f"/proc/{pid}/task") as entries:
            yield from (int(entry.name) for entry in islice(entries, most))
            if next(entries, None):
                self.truncated.add(pid)

    def _look_at(self, pid: int, tid: int) -> None:
        task = f"/proc/{pid}/task/{tid}"
        before = self._threads.get(tid)
        try:
            raw = b"" if self.coarse else _read(f"{task}/schedstat")
        except _GONE:
            if not os.path.exists(task):
                return
            raw, self.coarse = b"", True  # a kernel without CONFIG_SCHED_INFO
        if before and raw and before.raw == raw:
            before.seen = self._looks
            return
        with suppress(*_GONE):
            now = _parse(pid, tid, _read(f"{task}/stat"), raw)
            if tid == pid:
                self.comms[pid] = now.comm
            now.seen = self._looks
            self._threads[tid] = now
            if self.owner(pid) is not None:
                now.switches = _switches(_read(f"{task}/status"))
            if before and before.start_ticks == now.start_ticks:
                self._note(before, now)
            elif self._previous and now.start_ticks + 1 >= self._previous:
                self.started += 1
                self._note(None, now)

    def _note(self, before: Thread | None, now: Thread) -> None:
        seconds = now.run - (before.run if before else 0.0)
        if seconds <= 0:
            return
        for cpu in {now.cpu, before.cpu if before else now.cpu}:
            share = self.shares.setdefault((cpu, now.tid, now.start_ticks), Share(now))
            share.thread = now
            share.seconds += seconds
        share = self.shares[now.cpu, now.tid, now.start_ticks]
        share.waited += (now.waited or 0.0) - ((before.waited or 0.0) if before else 0.0)
        if before and before.switches is not None and now.switches is not None:
            share.switches += now.switches - before.switches


def _read(path: str, most: int = _STATUS) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, most)
    finally:
        os.close(fd)


def _parse(pid: int, tid: int, stat: bytes, schedstat: bytes) -> Thread:
    """proc(5) stat, whose second field may hold spaces and brackets, and schedstat: ran, waited, number of slices."""
    head, _, tail = stat.rpartition(b")")
    fields = tail.split()  # from the third on
    times = schedstat.split()
    return Thread(
        pid=pid,
        tid=tid,
        start_ticks=int(fields[22 - 3]),
        comm=printable(head.partition(b"(")[2].decode(errors="replace")),
        kernel=bool(int(fields[9 - 3]) & _PF_KTHREAD),
        parent=int(fields[4 - 3]),
        cpu=int(fields[39 - 3]),
        run=int(times[0]) / 1e9 if times else (int(fields[14 - 3]) + int(fields[15 - 3])) / _TICK,
        waited=int(times[1]) / 1e9 if times else None,
        raw=schedstat,
    )


def _switches(status: bytes) -> int | None:
    """None if its line is beyond what is read."""
    _, found, rest = status.partition(_SWITCHES)
    return int(rest.split(None, 1)[0]) if found else None
