# SPDX-License-Identifier: BSD-3-Clause
"""Planted bugs: one step of the protocol left out or swapped, which a tool must find, or it would find nothing.

Each is a piece of source text and what takes its place, in a copy of the sources made for one test build; the core
itself knows nothing of them. A piece that is not there exactly once is an error: a bug that was not planted cannot be
found.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Plant:
    what: str
    file: str
    old: str
    new: str

    def into(self, directory: Path) -> None:
        """Change the file there."""
        path = directory / self.file
        text = path.read_text()
        if (count := text.count(self.old)) != 1:
            raise SystemExit(
                f"plant {self.what!r}: its text is {count} times in {self.file}, not once; the source has changed, so "
                "change the plant in tools/proof/plants.py"
            )
        path.write_text(text.replace(self.old, self.new))


def planted(source: Path, plant: Plant | None, copy: Path) -> Path:
    """A copy of the sources, with the bug."""
    shutil.copytree(source, copy)
    if plant:
        plant.into(copy)
    return copy


CORE = {
    "believes-half-an-event": Plant(
        "who reads an event looks at its number only",
        "event.c",
        "number || seal(&copy) != sealed ||",
        "number || (seal(&copy) != sealed && 0) ||",
    ),
    "claims-by-load-and-store": Plant(
        "a claim looks, then writes",
        "lease.c",
        "	if (unlikely(!swap(wanted, &expected, owner | type)))\n		return claim_slowly(me, lcore, type);\n",
        "	if (__atomic_load_n(&wanted->owner, __ATOMIC_ACQUIRE) != expected)\n"
        "		return claim_slowly(me, lcore, type);\n"
        "	__atomic_store_n(&wanted->owner, owner | type, __ATOMIC_RELEASE);\n",
    ),
    "clears-by-store": Plant(
        "a collector clears what was the dead's when it looked",
        "lease.c",
        "		if (owner_of(token) == owner && give_back(slot(host, i), &token, lease))\n"
        "			cpuset_add(cleared, i);",
        "		if (owner_of(token) == owner) {\n"
        "			__atomic_store_n(&slot(host, i)->owner, lease, __ATOMIC_RELEASE);\n"
        "			cpuset_add(cleared, i);\n"
        "		}",
    ),
    "collects-the-living": Plant(
        "a collector asks no life lock",
        "life.c",
        "	return try_lock(life, F_RDLCK, byte);\n",
        "	try_lock(life, F_RDLCK, byte);\n"
        "	if (!life_holds(life, byte))\n"
        "		life->locked[life->locks++] = byte;\n"
        "	return 0;\n",
    ),
    "refuses-for-the-next-owner": Plant(
        "a collector takes the life lock of the record's next owner for that of the dead one",
        "lease.c",
        "		return segment_knows(host, owner) ? -EBUSY : -ESRCH;\n	if (rc)",
        "		return -EBUSY;\n	if (rc)",
    ),
    "buries-what-is-not-retired": Plant(
        "who waited to bury a retired segment does not look whether it still is one",
        "retire.c",
        "	if (!rc && retire_named(host) && retire_marked(host)) {",
        "	if (!rc && retire_named(host)) {",
    ),
    "frees-the-record-only": Plant(
        "a collector forgets the lcores",
        "lease.c",
        "	*cleared = lease_clear(host, owner, lease_of(parent), &event.lcores);\n",
        "",
    ),
    "frees-the-record-first": Plant(
        "a collector frees the record before it clears the lcores",
        "lease.c",
        "	*cleared = lease_clear(host, owner, lease_of(parent), &event.lcores);\n"
        "	segment_count(&host->segment->header.recovered, *cleared);\n"
        "	gone = !kept && ",
        "	bool first = !kept && __atomic_compare_exchange_n(&record->control, &live, control_after(live), false,\n"
        "							  __ATOMIC_RELEASE, __ATOMIC_RELAXED);\n"
        "	*cleared = lease_clear(host, owner, lease_of(parent), &event.lcores);\n"
        "	if (first)\n		return true;\n	gone = !kept && ",
    ),
    "keeps-the-record": Plant(
        "a collector clears the lcores and forgets the record",
        "lease.c",
        "	gone = !kept && __atomic_compare_exchange_n(&record->control",
        "	gone = false && __atomic_compare_exchange_n(&record->control",
    ),
    "takes-half": Plant(
        "a claim of several keeps what it got when it is refused the rest",
        "claim_many.c",
        "			while (i--) {\n				held = token;\n",
        "			while (0 && i--) {\n				held = token;\n",
    ),
    "takes-from-the-living": Plant(
        "a claim takes the lcore of whoever has it",
        "lease.c",
        "			if (rc < 0 && rc != -ESRCH)\n				return rc;\n			held",
        "			if (rc < 0 && rc != -ESRCH && swap(lcore, &held, token))\n"
        "				return 0;\n			held",
    ),
    "leaves-what-the-dead-had": Plant(
        "a newcomer takes a dead one's record without collecting it",
        "instance.c",
        "	if (lease_collect(host, life, owner, MTLSHM_EVENT_DIED,\n"
        "			  &cleared)) /* LIVE, and nobody holds the write lock: dead */\n",
        "	cleared = 0;\n"
        "	__atomic_store_n(&record->control, control_make(owner_generation(owner), MTLSHM_FREE), __ATOMIC_RELEASE);\n"
        "	if (cleared)\n",
    ),
    "same-generation": Plant(
        "a record that goes to another keeps its generation",
        "token.h",
        "	uint64_t next = (control_generation(control) + 1) & GENERATION_MASK;\n",
        "	uint64_t next = control_generation(control);\n",
    ),
    "live-before-the-lock": Plant(
        "a newcomer has only the read lock",
        "instance.c",
        "	rc = life_take(life, byte);\n	if (!rc)\n		return 0;\n	life_drop",
        "	rc = 0;\n	if (!rc)\n		return 0;\n	life_drop",
    ),
    "lock-not-pinned": Plant(
        "the life lock ends with the call that took it",
        "life.c",
        "	*pin = memory;\n	return 0;",
        "	*pin = NULL;\n	munmap(memory, page);\n	return 0;",
    ),
    "no-takeover": Plant(
        "a waiter believes every holder alive",
        "semaphore.c",
        "		alive = holder_alive(host, owner_of(held));\n",
        "		(void)holder_alive, alive = 1;\n",
    ),
    "takeover-from-the-living": Plant(
        "a waiter believes every holder dead",
        "semaphore.c",
        "		alive = holder_alive(host, owner_of(held));\n",
        "		(void)holder_alive, alive = 0;\n",
    ),
    "gives-up-when-forestalled": Plant(
        "a waiter gives up if another takes over from the dead holder first",
        "semaphore.c",
        "			if (!swap(word, &held, owner | WAITERS))\n				continue;\n",
        "			if (!swap(word, &held, owner | WAITERS))\n				return -EAGAIN;\n",
    ),
    "takeover-not-told": Plant(
        "who takes over from a dead holder is not told",
        "semaphore.c",
        "			event_write(host, &event);\n			return 1;",
        "			event_write(host, &event);\n			return 0;",
    ),
    "releases-to-anybody": Plant(
        "what a tenant gives back is free, and not its parent's",
        "lease.c",
        "	if (unlikely(!give_back(slot(me->host, lcore), &token, me->lease))) {\n",
        "	if (unlikely(!give_back(slot(me->host, lcore), &token, 0))) {\n",
    ),
    "rolls-back-to-anybody": Plant(
        "what a tenant's claim of several gives back when it is refused the rest is free, and not its parent's",
        "claim_many.c",
        "				give_back(slot(host, lcores[i]), &held, lease);\n",
        "				give_back(slot(host, lcores[i]), &held, 0);\n",
    ),
    "takes-what-is-not-lent": Plant(
        "a tenant takes what is free, though its parent does not hold it",
        "lease.c",
        "			return -EDOM; /* it is not the parent's */\n",
        "			if (swap(lcore, &held, token))\n				return 0;\n",
    ),
    "clears-to-anybody": Plant(
        "what a dead tenant had is free, and not its parent's",
        "lease.c",
        "	*cleared = lease_clear(host, owner, lease_of(parent), &event.lcores);\n",
        "	*cleared = lease_clear(host, owner, 0, &event.lcores);\n",
    ),
    "keeps-no-parent": Plant(
        "a collector frees the record of a tenant that has tenants",
        "lease.c",
        "	gone = !kept && __atomic_compare",
        "	gone = __atomic_compare",
    ),
    "registers-under-the-dead": Plant(
        "a tenant does not look again whether its parent lives once it is LIVE itself",
        "instance.c",
        "		rc = tenancy_admits(me->host, life, entry->parent);\n",
        "		rc = tenancy_admits(me->host, NULL, entry->parent);\n",
    ),
    "leaves-without-a-look": Plant(
        "a tenant frees its record without looking for tenants of its own",
        "instance.c",
        "	if (me->lease)\n		leave_lease(me, owner);\n",
        "	if (0)\n		leave_lease(me, owner);\n",
    ),
    "clears-before-the-end": Plant(
        "who ends a reservation clears its words before its record is free",
        "reservation.c",
        "	if (!segment_proxied(host, owner) ||\n	    __atomic_load_n(&segment_record(host, owner)->kind",
        "	lease_clear(host, owner_of(owner), 0);\n"
        "	if (!segment_proxied(host, owner) ||\n	    __atomic_load_n(&segment_record(host, owner)->kind",
    ),
    "reserves-one-by-one": Plant(
        "a reservation is one before it has its lcores",
        "reservation.c",
        "	lease.type = MTLSHM_LCORE_LEASE;\n",
        "	lease.type = MTLSHM_LCORE_LEASE;\n	__atomic_store_n(&segment_record(host, mtlshm_owner(made))->control,\n"
        "			 control_make(owner_generation(mtlshm_owner(made)), MTLSHM_PROXIED), __ATOMIC_SEQ_CST);\n",
    ),
    "named-before-it-is-filled": Plant(
        "the segment gets its name before its header",
        "segment.c",
        "	if (!rc)\n		rc = write_header(fd, sysfs);\n",
        '	snprintf(self, sizeof(self), "/proc/self/fd/%d", fd);\n'
        "	if (!rc && linkat(AT_FDCWD, self, AT_FDCWD, path, AT_SYMLINK_FOLLOW))\n"
        "		rc = -errno;\n"
        "	if (!rc)\n		rc = write_header(fd, sysfs);\n"
        "	if (!rc)\n		rc = set_access(fd);\n"
        "	goto out;\n",
    ),
    "registers-in-the-retired": Plant(
        "a newcomer does not look whether the segment is retired",
        "instance.c",
        "	if (__atomic_load_n(&header->state, __ATOMIC_SEQ_CST) != MTLSHM_IN_USE) {\n		__atomic_store_n",
        "	if (0) {\n		__atomic_store_n",
    ),
    "retires-without-a-second-look": Plant(
        "who retires the segment does not look again for somebody who came meanwhile",
        "retire.c",
        "		rc = refuse_the_living(host, &life);\n		if (!rc)\n			rc = life_pin",
        "		if (!rc)\n			rc = life_pin",
    ),
}

FUZZ_SEGMENT = {
    "index-not-checked": Plant(
        "an owner's index is taken for one that a record has",
        "host.h",
        "	return index < MTLSHM_INSTANCES ? &host->segment->instances[index] : NULL;",
        "	return &host->segment->instances[index];",
    ),
    "lcores-not-checked": Plant(
        "the number of lcores in the header is believed",
        "segment.c",
        "header.lcores < MTLSHM_LCORES_MIN || header.lcores > MTLSHM_LCORES)",
        "header.lcores < MTLSHM_LCORES_MIN)",
    ),
    "believes-any-event": Plant(
        "what lies in the ring is believed if its number fits",
        "event.c",
        "number || seal(&copy) != sealed ||",
        "number || (seal(&copy) != sealed && 0) ||",
    ),
    "text-not-ended": Plant(
        "a name in a record is taken for one that ends",
        "snapshot.c",
        "		info->process.comm[sizeof(info->process.comm) - 1] = '\\0';\n",
        "",
    ),
    "waits-for-ever": Plant(
        "who waits for the semaphore forgets the time",
        "semaphore.c",
        "		if (left <= 0)\n",
        "		if (left <= 0 && alive < 0)\n",
    ),
    "examines-beyond": Plant(
        "the doctor takes an index for one that a record has",
        "examine.c",
        "	bool hidden[1 << MTLSHM_INDEX_BITS] = {false};",
        "	bool hidden[MTLSHM_INSTANCES] = {false};",
    ),
    "unmaps-what-is-watched": Plant(
        "a table is unmapped while the list still says that its addresses are ours",
        "fault.c",
        "	__atomic_store_n(&watched->memory, NULL, __ATOMIC_RELEASE);\n	unmap(memory);\n",
        "	unmap(memory);\n	__atomic_store_n(&watched->memory, NULL, __ATOMIC_RELEASE);\n",
    ),
    "unwatches-without-the-guard": Plant(
        "a handle that is closed takes its table off the list without the guard",
        "segment.c",
        "	life_guard(&guard);\n	retire_undo(host);\n",
        "	detach(host);\n	life_guard(&guard);\n	retire_undo(host);\n",
    ),
    "truncation-kills": Plant(
        "nobody catches SIGBUS",
        "fault.c",
        "	sigaction(SIGBUS, &handler, NULL);\n",
        "	(void)handler;\n",
    ),
}

# In cffi_build, of what the daemon answers in C.
FUZZ_SELECTOR = {
    "half-a-record-answered": Plant(
        "half a record is answered as if the rest had come",
        "selector/session.c",
        "	if (arrived != sizeof(request) || ",
        "	if (arrived < RECORD_HEADER || ",
    ),
    "newcomer-kept": Plant(
        "the pidfd of a client that goes before Python knows it stays open",
        "selector/newcomer.c",
        "	close(newcomer->pidfd);\n	close(newcomer->socket);\n",
        "	close(newcomer->socket);\n",
    ),
}

FUZZ_SOCKET = {
    "half-a-record-lost": Plant(
        "half a record that was read is forgotten",
        "daemon/connection.py",
        "            self._half = record\n",
        '            self._half = b""\n',
    ),
    "unknown-not-answered": Plant(
        "a type that is not known gets no answer",
        "daemon/requests.py",
        "lambda _session, _body: -errno.ENOTSUP",
        'lambda _session, _body: Reply(b"")',
    ),
    "descriptor-kept": Plant(
        "the pidfd of a client that has gone stays open",
        "daemon/connection.py",
        "            self._server.loop.remove_reader(self._peer.pidfd)\n            os.close(self._peer.pidfd)\n",
        "            self._server.loop.remove_reader(self._peer.pidfd)\n",
    ),
    "instance-kept": Plant(
        "a client that has gone stays in the table",
        "daemon/session.py",
        "        self._instance.unregister()\n        self._instance = None  # for",
        "        self._instance.close()\n        self._instance = None  # for",
    ),
    "interface-kept": Plant(
        "what a client that has gone had of interfaces stays its own",
        "daemon/session.py",
        "        return lambda: self.interfaces.tell(lambda interfaces: interfaces.gone(client))\n",
        "        return lambda: None\n",
    ),
    "late-descriptor-kept": Plant(
        "what is got for a client that has gone meanwhile stays open",
        "daemon/connection.py",
        "        if self._ended:\n            reply.close()\n",
        "        if self._ended:\n",
    ),
    "heartbeat-of-another": Plant(
        "a heartbeat is answered with another number",
        "daemon/requests.py",
        "Type.HEARTBEAT_ACK, body)",
        "Type.HEARTBEAT_ACK, wire.Heartbeat(body.seq & 0xFFFF))",
    ),
}

FUZZ_TEXT = {
    "absurd-numbers": Plant(
        "a number may have any length",
        "net/ethtool.py",
        '_NUMBER = r"[0-9]{1,10}"',
        '_NUMBER = r"[0-9]+"',
    ),
    "not-a-number": Plant(
        "what ethtool does not know is taken for a number",
        "net/ethtool.py",
        'for number in numbers.values() if number != "n/a")',
        "for number in numbers.values())",
    ),
    "nested-too-deeply": Plant(
        "a file nested too deeply is no error of the file",
        "config.py",
        "    except RecursionError:\n",
        "    except NotImplementedError:\n",
    ),
}

# What no single call shows.
PROCESSES = {
    "child-is-its-parent": Plant(
        "a forked child may use its parent's instance",
        "handle.h",
        "	if (__builtin_expect(!owner || instance->process != life_process(), 0)) {\n",
        "	if (__builtin_expect(!owner, 0)) {\n",
    ),
    "child-gives-back-its-parents": Plant(
        "a forked child may release an lcore of its parent's",
        "lease.c",
        "	uint64_t owner = handle_owner(me, &rc), token;\n\n	if (unlikely(!owner))\n",
        "	uint64_t owner = me && me->owner ? me->owner : handle_owner(me, &rc), token;\n\n"
        "	if (unlikely(!owner))\n",
    ),
    "gives-back-one-type": Plant(
        "to release all is to release what the application uses itself",
        "lease.c",
        "	rc = (int)lease_clear(me->host, owner, me->lease, &cleared);\n",
        "	(void)cleared;\n"
        "	for (uint32_t i = 0; i < me->host->lcores; i++) {\n"
        "		uint64_t token = owner | MTLSHM_LCORE_APP;\n\n"
        "		rc += give_back(slot(me->host, i), &token, me->lease);\n	}\n",
    ),
    "reserves-too-few": Plant(
        "a reservation has one lcore fewer than it was asked for",
        "reservation.c",
        "	lease.type = MTLSHM_LCORE_LEASE;\n"
        "	rc = claim_look(made, &topology, &allowed);\n"
        "	if (!rc)\n"
        "		rc = claim_choice(made, topology, &allowed, &lease, reserved->lcores);\n"
        "	if (!rc) {\n"
        "		reserved->owner = mtlshm_owner(made);\n"
        "		reserved->count = want->count;\n",
        "	lease.type = MTLSHM_LCORE_LEASE;\n"
        "	lease.count--;\n"
        "	rc = claim_look(made, &topology, &allowed);\n"
        "	if (!rc)\n"
        "		rc = claim_choice(made, topology, &allowed, &lease, reserved->lcores);\n"
        "	if (!rc) {\n"
        "		reserved->owner = mtlshm_owner(made);\n"
        "		reserved->count = lease.count;\n",
    ),
    "knows-no-reservation": Plant(
        "what a reservation holds is said to be nobody's",
        "lease.c",
        "	if (!segment_knows(host, *owner))\n		*owner = 0;\n	return segment_lost(host) ? -EBADMSG : 0;\n}\n",
        "	if (!segment_knows(host, *owner) || segment_proxied(host, *owner))\n		*owner = 0;\n"
        "	return segment_lost(host) ? -EBADMSG : 0;\n}\n",
    ),
}
