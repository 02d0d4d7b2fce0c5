# SPDX-License-Identifier: BSD-3-Clause
"""Was an lcore its owner's alone? Plain data, in the shape of audit.schema.json."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field

from mtlshm import CpuSet, Snapshot
from mtlshm.ctl.audit import counters
from mtlshm.ctl.audit.counters import Counters, Source, Times
from mtlshm.ctl.audit.settings import Settings
from mtlshm.ctl.audit.threads import Share, Watch
from mtlshm.ctl.families import Families
from mtlshm.kinds import TableOwner

_MOST = 16  # of each kind that are told of one lcore; the figures count all
_DOUBT = 5.0  # per cent: /proc/stat may count in ticks, and so be wrong by that much


@dataclass(frozen=True, slots=True)
class Intruder:
    """A thread that ran where it should not."""

    pid: int
    tid: int
    comm: str
    process: str
    kernel: bool
    percent: float
    exact: bool  # else an upper bound: it may have been elsewhere meanwhile
    instance: str | None  # the owner of lcores that it belongs to
    setting: str | None


@dataclass(frozen=True, slots=True)
class Interrupts:
    """The interrupts of one source."""

    name: str
    about: str
    count: int
    per_second: float
    setting: str | None


@dataclass(frozen=True, slots=True)
class Sibling:
    """Another hardware thread of the same core."""

    lcore: int
    busy_percent: float | None
    others_percent: float
    threads: list[Intruder]


@dataclass(slots=True)
class Audited:
    """One lcore."""

    lcore: int
    owner: str | None
    label: str | None
    verdict: str = "alone"
    reasons: list[str] = field(default_factory=list)
    others_percent: float = 0.0
    interrupts_percent: float | None = None
    stolen_percent: float | None = None
    unseen_percent: float | None = None
    own_percent: float = 0.0
    waited_percent: float = 0.0
    switches: int = 0
    ticks_per_second: float | None = None
    tick_setting: str | None = None
    threads: list[Intruder] = field(default_factory=list)
    interrupts: list[Interrupts] = field(default_factory=list)
    soft_interrupts: list[Interrupts] = field(default_factory=list)
    siblings: list[Sibling] = field(default_factory=list)
    governor: str | None = None
    governor_setting: str | None = None


@dataclass(frozen=True, slots=True)
class Measured:
    """Everything measured in one interval."""

    snapshot: Snapshot
    watch: Watch
    before: Counters
    after: Counters
    siblings: dict[int, CpuSet]  # of each lcore, without itself
    settings: Settings
    lost: frozenset[TableOwner]  # owners whose process cannot be found from here
    limit: float  # per cent

    @property
    def seconds(self) -> float:
        """How long it was."""
        return self.after.at - self.before.at

    def audit(self, lcore: int) -> Audited:
        """One lcore."""
        held = next((one.owner for one in self.snapshot.lcores if one.number == lcore), None)
        found = Audited(lcore, f"{held.owner:#x}" if held else None, held.label if held else None)
        ours = self._household(held.owner) if held else frozenset[TableOwner]()
        others, own = self._split(lcore, ours)
        found.others_percent = self._percent(share.seconds for share in others)
        found.threads = self._intruders(others, lcore)
        found.own_percent = self._percent(share.seconds for share in own)
        found.waited_percent = self._percent(share.waited for share in own)
        found.switches = sum(share.switches for share in own)
        self._times(found)
        self._interrupts(found)
        found.siblings = [self._sibling(sibling, ours) for sibling in sorted(self.siblings.get(lcore, ()))]
        found.governor = counters.governor(lcore)
        found.governor_setting = self.settings.governor(lcore, found.governor)
        self._shut_out(found, ours)
        self._judge(found, lost=held is not None and held.owner in self.lost, single=len(own) == 1)
        return found

    def _household(self, owner: TableOwner) -> frozenset[TableOwner]:
        """The owner and its tenants."""
        return frozenset({owner} | {info.owner for info in Families(self.snapshot).tenants(owner)})

    def _split(self, cpu: int, ours: frozenset[TableOwner]) -> tuple[list[Share], list[Share]]:
        """The threads that ran on the CPU, longest first: those of others, those of these owners."""
        here = [share for (at, _, _), share in self.watch.shares.items() if at == cpu]
        here = [share for share in here if share.thread.pid != os.getpid()]
        here.sort(key=lambda share: -share.seconds)
        own: list[Share] = []
        others: list[Share] = []
        for share in here:
            (own if self.watch.owner(share.thread.pid) in ours else others).append(share)
        return others, own

    def _percent(self, seconds: Iterable[float]) -> float:
        return round(100 * min(max(sum(seconds), 0.0) / self.seconds, 1.0), 2)

    def _intruders(self, shares: list[Share], cpu: int) -> list[Intruder]:
        return [self._intruder(share, cpu) for share in shares[:_MOST]]

    def _intruder(self, share: Share, cpu: int) -> Intruder:
        thread = share.thread
        allowed: set[int] = set()
        with suppress(OSError):  # it has ended
            allowed = os.sched_getaffinity(thread.tid)
        owner = self.watch.owner(thread.pid)
        return Intruder(
            pid=thread.pid,
            tid=thread.tid,
            comm=thread.comm,
            process=self.watch.comms.get(thread.pid, thread.comm),
            kernel=thread.kernel,
            percent=self._percent([share.seconds]),
            exact=allowed == {cpu},
            instance=next((info.label for info in self.snapshot.instances if info.owner == owner), None),
            setting=self.settings.thread(thread, allowed == {cpu}),
        )

    def _busy(self, cpu: int) -> Times | None:
        """In per cent."""
        before, after = self.before.times.get(cpu), self.after.times.get(cpu)
        if before is None or after is None:
            return None
        return Times(
            self._percent([after.threads - before.threads]),
            self._percent([after.interrupts - before.interrupts]),
            self._percent([after.stolen - before.stolen]),
        )

    def _times(self, found: Audited) -> None:
        if busy := self._busy(found.lcore):
            found.interrupts_percent, found.stolen_percent = busy.interrupts, busy.stolen
            auditor = sum(
                share.seconds
                for (cpu, _, _), share in self.watch.shares.items()
                if cpu == found.lcore and share.thread.pid == os.getpid()
            )
            seen = found.own_percent + found.others_percent + self._percent([auditor])
            found.unseen_percent = round(max(busy.threads - seen, 0.0), 2)

    def _interrupts(self, found: Audited) -> None:
        cpu = found.lcore
        came = counters.counted(self.before.interrupts, self.after.interrupts, cpu)
        if self.after.interrupts:
            ticks = sum(count for source, count in came.items() if source.is_tick)
            found.ticks_per_second = round(ticks / self.seconds, 1)
            found.tick_setting = self.settings.tick(cpu)
        others = {source: count for source, count in came.items() if not source.is_tick}
        found.interrupts = [self._source(s, n, self.settings.interrupt(s)) for s, n in others.items()][:_MOST]
        soft = counters.counted(self.before.soft, self.after.soft, cpu)
        found.soft_interrupts = [self._source(s, n, self.settings.soft_interrupt(s)) for s, n in soft.items()]

    def _source(self, source: Source, count: int, setting: str | None) -> Interrupts:
        return Interrupts(source.name, source.about, count, round(count / self.seconds, 1), setting)

    def _sibling(self, cpu: int, ours: frozenset[TableOwner]) -> Sibling:
        others, _ = self._split(cpu, ours)
        busy = self._busy(cpu)
        percent = self._percent(share.seconds for share in others)
        return Sibling(cpu, busy.threads if busy else None, percent, self._intruders(others, cpu))

    def _shut_out(self, found: Audited, ours: frozenset[TableOwner]) -> None:
        """The owner claimed it while it was in its affinity. Since then its cpuset may have shrunk."""
        allowed = self.watch.allowed(ours)
        if allowed is not None and found.lcore not in allowed:
            found.reasons.append(
                f"its owner may run on {allowed} only: its cpuset was changed, or its threads were pinned elsewhere"
            )

    def _judge(self, found: Audited, *, lost: bool, single: bool) -> None:
        if lost:
            found.verdict = "unknown"
            found.reasons.append("the process that holds it cannot be found from here")
            return
        # If only one of its threads was there, it waited for nobody of its own.
        taken = max(found.others_percent, found.waited_percent if single else 0.0)
        away = min(taken + (found.interrupts_percent or 0.0) + (found.stolen_percent or 0.0), 100.0)
        if away > self.limit:
            found.reasons.append(f"others had {away:.1f} % of it")
        for sibling in found.siblings:
            if sibling.others_percent > self.limit:
                found.reasons.append(
                    f"others had {sibling.others_percent:.1f} % of lcore {sibling.lcore}, on the same core"
                )
        if found.reasons:
            found.verdict = "disturbed"
        elif found.unseen_percent is None and (self.watch.hidden or self.watch.unfinished):
            found.verdict = "unknown"
            found.reasons.append("not all threads are seen, and no times of CPUs")
        elif (found.unseen_percent or 0.0) > max(self.limit, _DOUBT):
            found.verdict = "unknown"
            found.reasons.append(f"it was busy for {found.unseen_percent:.1f} % with threads that were not seen")
