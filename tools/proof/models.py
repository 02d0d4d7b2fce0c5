# SPDX-License-Identifier: BSD-3-Clause
"""The models of the protocol in cffi_build/model/: in which sizes they are searched, and the mutants that must fail."""

from __future__ import annotations

from dataclasses import dataclass

from proof.plants import Plant


@dataclass(frozen=True, slots=True)
class Search:
    """One exhaustive search of a model."""

    sizes: dict[str, int | None]  # what is defined for it
    fair: bool = (
        False  # for cycles in which nobody gets on, though none is left out; else for assertions and stuck ends
    )

    @property
    def name(self) -> str:
        words = [name if value is None else f"{name}={value}" for name, value in self.sizes.items()]
        return " ".join([*words, *["fair"] * self.fair])


SEARCHES: dict[str, list[Search]] = {
    "lease": [
        Search({"RECORDS": 1, "LCORES": 1, "LIVES": 2, "CALLS": 2, "DEATHS": 3}),
        Search({"RECORDS": 2, "LCORES": 1, "LIVES": 1, "CALLS": 2, "DEATHS": 3}),
        Search({"RECORDS": 2, "LCORES": 2, "LIVES": 1, "CALLS": 1, "DEATHS": 3}),
    ],
    "semaphore": [
        Search({"LIVES": 2, "DEATHS": 0}),
        Search({"LIVES": 1, "DEATHS": 3, "LIMIT": None}),
        Search({"LIVES": 2, "DEATHS": 1, "LIMIT": None}),
        Search({"LIVES": 1, "DEATHS": 2, "LIMIT": None}, fair=True),
        Search({"LIVES": 1, "DEATHS": 0, "UNLOCKERS": 2}),
        Search({"LIVES": 1, "DEATHS": 1, "LIMIT": None, "UNLOCKERS": 1}),
    ],
    "segment": [
        Search({"LIVES": 1, "DEATHS": 3}),
    ],
    "transfer": [
        Search({"LOOKS": 1, "DEATHS": 2}),
        Search({"LOOKS": 2, "DEATHS": 1}),
        Search({"LOOKS": 1, "DEATHS": 1, "CTL_TOO": None}),
        Search({"LOOKS": 1, "DEATHS": 1, "RESERVES": None}),
    ],
    "tenancy": [
        Search({"DEATHS": 2}),
        Search({"DEATHS": 1, "EVICT": None}),
        Search({"DEATHS": 3, "STAYS": None, "EVICT": None}),
        Search({"DEATHS": 2, "RESERVATION": None}),
        Search({"DEATHS": 2, "NEWCOMER": None}),
    ],
    "policy": [
        Search({"DEATHS": 1, "POLICIES": None, "STAYS": None}),
        Search({"DEATHS": 1, "STAYS": None}),
        Search({"DEATHS": 2, "THREADS": None, "ALONE": None, "STAYS": None}),
        Search({"DEATHS": 0, "THREADS": None, "STAYS": None}),
        Search({"DEATHS": 1}),
    ],
}

LEASE, SEMAPHORE, SEGMENT, TRANSFER, TENANCY, POLICY = (f"{name}.pml" for name in SEARCHES)

MUTANTS = {
    "lease-claims-by-load-and-store": Plant(
        "a claim looks, then writes",
        LEASE,
        "	step(swap(lcore, held, owner); if :: ok -> got() :: else fi);\n	do\n",
        "	step(held = lcores[lcore]; ok = held == 0);\n"
        "	if\n	:: ok -> step(lcores[lcore] = owner; got())\n	:: else\n	fi;\n	do\n",
    ),
    "lease-clears-by-store": Plant(
        "a collector clears what was the dead's when it looked",
        LEASE,
        "	:: lcores[i] == token -> assert(belongs[i] == 0); lcores[i] = 0\n	:: else\n",
        "	:: assert(belongs[i] == 0); lcores[i] = 0\n",
    ),
    "lease-collects-the-living": Plant(
        "a collector asks no life lock",
        LEASE,
        "	step(life_share(owner_index(whose), ok); justified = ok || lives(whose));",
        "	step(ok = true);",
    ),
    "lease-refuses-for-the-next-owner": Plant(
        "a collector takes the life lock of the record's next owner for that of the dead one",
        LEASE,
        "	:: !ok ->\n		step(ok = segment_knows(whose))",
        "	:: !ok ->\n		ok = true",
    ),
    "lease-frees-the-record-only": Plant(
        "a collector forgets the lcores",
        LEASE,
        "	lease_clear(whose);\n	step(control",
        "	step(control",
    ),
    "lease-leaves-what-the-dead-had": Plant(
        "a newcomer takes a dead one's record without collecting it",
        LEASE,
        "			lease_collect(owner);\n",
        "			step(records[index] = control_make(control_generation(control), FREE));\n",
    ),
    "lease-live-before-the-lock": Plant(
        "a newcomer has only the read lock",
        LEASE,
        "		step(life_take(index, ok));\n",
        "		step(ok = true);\n",
    ),
    "lease-same-generation": Plant(
        "a record that goes to another keeps its generation",
        LEASE,
        "control_make(control_generation(control) + 1, FREE)",
        "control_make(control_generation(control), FREE)",
    ),
    "lease-takes-from-the-living": Plant(
        "a claim takes the lcore of whoever has it",
        LEASE,
        "		:: held -> step(ok = segment_knows(held))\n",
        "		:: held -> ok = false\n",
    ),
    "semaphore-no-takeover": Plant(
        "a waiter believes every holder alive",
        SEMAPHORE,
        "			step(alive = mtlshm_alive(owner_of(held)));\n",
        "			step(alive = true);\n",
    ),
    "semaphore-takeover-from-the-living": Plant(
        "a waiter believes every holder dead",
        SEMAPHORE,
        "			step(alive = mtlshm_alive(owner_of(held)));\n",
        "			step(alive = false);\n",
    ),
    "semaphore-takeover-by-store": Plant(
        "who takes over does not look whether another was faster",
        SEMAPHORE,
        "				step(swap(held, owner | WAITERS); got(1))",
        "				step(semaphore = owner | WAITERS; ok = true; got(1))",
    ),
    "semaphore-takeover-not-told": Plant(
        "who takes over from a dead holder is not told",
        SEMAPHORE,
        "got(1)",
        "got(0)",
    ),
    "semaphore-forgets-who-waits": Plant(
        "who was woken does not say that others may still sleep",
        SEMAPHORE,
        "			step(swap(held, owner | WAITERS); got(0))",
        "			step(swap(held, owner); got(0))",
    ),
    "semaphore-wakes-nobody": Plant(
        "who gives back does not wake",
        SEMAPHORE,
        "	:: held & WAITERS -> step(wake_one())\n",
        "	:: held & WAITERS\n",
    ),
    "semaphore-unlocks-by-store": Plant(
        "a thread that unlocks does not look whether another was faster",
        SEMAPHORE,
        "		step(swap(held, 0); if",
        "		step(held = semaphore; semaphore = 0; ok = true; if",
    ),
    "semaphore-sleeps-blindly": Plant(
        "a waiter goes to sleep without the kernel's look at the word",
        SEMAPHORE,
        "	:: semaphore == (expected) -> asleep[me] = true\n	:: else\n",
        "	:: asleep[me] = true\n",
    ),
    "segment-named-before-it-is-filled": Plant(
        "the segment gets its name before its header",
        SEGMENT,
        "	step(filled = IN_USE);\n	step(link()); /* EEXIST: somebody was faster */\n",
        "	step(link());\n	step(if :: state[name] == 0 -> state[name] = IN_USE :: else fi);\n",
    ),
    "segment-retires-without-a-second-look": Plant(
        "who retires the segment does not look again for somebody who came meanwhile",
        SEGMENT,
        "				step(ok = !anyone_alive(file));\n				if\n",
        "				ok = true;\n				if\n",
    ),
    "segment-registers-in-the-retired": Plant(
        "a newcomer does not look whether the segment is retired",
        SEGMENT,
        "		step(ok = state[file] == IN_USE; if",
        "		step(ok = true; if",
    ),
    "segment-registers-after-the-look": Plant(
        "a newcomer looks whether the segment is retired before it takes its life lock",
        SEGMENT,
        "		step(life_locks[file] = life_locks[file] | (1 << me)); /* and LIVE, before the next */\n"
        "		step(ok = state[file] == IN_USE; if :: ok -> ",
        "		step(ok = state[file] == IN_USE);\n"
        "		step(if :: ok -> life_locks[file] = life_locks[file] | (1 << me); ",
    ),
    "segment-buries-what-is-not-retired": Plant(
        "who waited to bury a retired segment does not look whether it still is one",
        SEGMENT,
        "			:: ok -> step(ok = state[file] == RETIRED)\n",
        "			:: ok\n",
    ),
    "segment-buries-without-the-lock": Plant(
        "several may bury at once",
        SEGMENT,
        "		step(take_burial(file));\n		if\n		:: ok ->\n			step(ok = still_named(file));\n"
        "			if\n			:: ok -> step(ok = state",
        "		if\n		:: ok ->\n			step(ok = still_named(file));\n"
        "			if\n			:: ok -> step(ok = state",
    ),
    "transfer-lends-in-the-wrong-order": Plant(
        "an lcore is free in the legacy table before it is the pool's in ours",
        TRANSFER,
        "	step(swap(lcore, FREE, POOL)); /* pool.claim */\n	if\n	:: ok -> clear(lcore)\n	:: else\n	fi\n",
        "	clear(lcore);\n	step(swap(lcore, FREE, POOL));\n	if\n	:: !ok -> reserve(lcore)\n	:: else\n	fi\n",
    ),
    "transfer-brings-home-in-the-wrong-order": Plant(
        "an lcore is free in our table before it is reserved in the legacy one",
        TRANSFER,
        "	reserve(lcore);\n	evict(lcore, holder)\n",
        "	evict(lcore, holder);\n	reserve(lcore)\n",
    ),
    "transfer-without-the-lock": Plant(
        "the daemon looks without the legacy lock",
        TRANSFER,
        "		step(take_lock(DAEMON));\n",
        "",
    ),
    "transfer-forgets-what-is-between": Plant(
        "what a killed daemon left between the tables stays there",
        TRANSFER,
        "			:: lent(holder) && legacy[i] == RESERVED -> evict(i, holder)\n",
        "			:: lent(holder) && legacy[i] == RESERVED\n",
    ),
    "transfer-frees-what-the-dead-had": Plant(
        "what a dead legacy process had is freed in our table and left to others in the legacy one",
        TRANSFER,
        "				given_back[i] = true\n",
        "				evict(i, holder)\n",
    ),
    "transfer-believes-the-dead": Plant(
        "the daemon takes every entry for a living process's",
        TRANSFER,
        "ok = is_process(legacy[i]) && alive[number(legacy[i])]);",
        "ok = is_process(legacy[i]));",
    ),
    "transfer-takes-reservations": Plant(
        "the daemon takes what is reserved for what it has lent",
        TRANSFER,
        "(holder) != SHM && (holder) != RESERVATION)\n",
        "(holder) != SHM)\n",
    ),
    "tenancy-claims-from-the-dead": Plant(
        "a claim takes what a dead tenant has, instead of giving it to the parent first",
        TENANCY,
        "!segment_knows(owner_of(word))))\n",
        "(!segment_knows(owner_of(word)) || writer[owner_index(owner_of(word))] == 0)))\n",
    ),
    "tenancy-releases-by-store": Plant(
        "a release does not look whether the lcore is still its own",
        TENANCY,
        "			:: lcore == token_of(owner_make(me), 0) -> lcore = lease_of(parent)\n",
        "			:: true -> lcore = lease_of(parent)\n",
    ),
    "tenancy-releases-to-anybody": Plant(
        "what a tenant gives back is free",
        TENANCY,
        "			:: lcore == token_of(owner_make(me), 0) -> lcore = lease_of(parent)\n",
        "			:: lcore == token_of(owner_make(me), 0) -> lcore = 0\n",
    ),
    "tenancy-evicts-to-anybody": Plant(
        "what an operator takes from a tenant is free",
        TENANCY,
        "			:: lcore == held -> lcore = lease_of(above); belongs",
        "			:: lcore == held -> lcore = 0; belongs",
    ),
    "tenancy-registers-without-a-second-look": Plant(
        "a tenant does not look again whether its parent lives once it is LIVE itself",
        TENANCY,
        "	step(ok = is_proxied(owner_make(me - 1)) || writer[me - 1] != 0); /* tenancy_admits(): life_held() */\n"
        "	step(\n		ok = ok && segment_knows(owner_make(me - 1));\n",
        "	step(\n",
    ),
    "tenancy-looks-for-tenants-too-late": Plant(
        "a collector looks for tenants after it has cleared words",
        TENANCY,
        "		step(tenancy_has_tenants());\n		step(lease_clear(lease_of(above)));\n",
        "		step(lease_clear(lease_of(above)));\n		step(tenancy_has_tenants());\n",
    ),
    "tenancy-collects-reservations": Plant(
        "a collector takes every record for dead that is not FREE and has no life lock",
        TENANCY,
        "		ok = is_live(whose);\n		if\n		:: !ok -> drop_if",
        "		ok = segment_knows(whose);\n		if\n		:: !ok -> drop_if",
    ),
    "tenancy-unregisters-at-once": Plant(
        "a tenant frees its record without looking for tenants of its own",
        TENANCY,
        "		step(forget(); writer[me] = 0; collect_ask(owner_make(me)));\n		collect_up()\n",
        "		step(forget(); whose = owner_make(me); lease_clear(lease_of(parent)); whose = 0);\n"
        "		step(records[me] = GONE; writer[me] = 0)\n",
    ),
    "tenancy-keeps-nothing": Plant(
        "a collector frees the record of a tenant that has tenants",
        TENANCY,
        "	ok = !kept && is_live(whose);\n",
        "	ok = is_live(whose);\n",
    ),
    "tenancy-overwrites-the-kept": Plant(
        "a newcomer does not look whether the record that it found is free now",
        TENANCY,
        "			ok = control_free(index);\n",
        "			ok = true;\n",
    ),
    "tenancy-clears-before-the-end": Plant(
        "who ends a reservation clears its words before its record is free",
        TENANCY,
        "if :: ok -> end_free() :: else fi);\n	if\n	:: ok -> step_of(true, ok = false; end_clear())\n",
        "if :: ok -> end_clear() :: else fi);\n	if\n	:: ok -> step_of(true, ok = false; end_free())\n",
    ),
    "policy-takes-half": Plant(
        "a claim of several keeps what it got when it is refused the rest",
        POLICY,
        "			:: n > 0 -> n--; step(roll_back((n + first) % LCORES))\n",
        "			:: n > 0 -> n--\n",
    ),
    "policy-rolls-back-to-anybody": Plant(
        "what a claim of several gives back when it is refused the rest is free, and not the parent's",
        POLICY,
        "inline roll_back(lcore)\n{\n	give_back(lcore)\n",
        "inline roll_back(lcore)\n{\n	lease = 0; give_back(lcore); lease = home\n",
    ),
    "policy-rolls-back-by-store": Plant(
        "a claim of several gives back without a look whether the lcore is still its own",
        POLICY,
        "inline roll_back(lcore)\n{\n	give_back(lcore)\n",
        "inline roll_back(lcore)\n{\n	give_back(lcore); lcores[lcore] = lease\n",
    ),
    "policy-takes-by-store": Plant(
        "a claim of several believes its survey",
        POLICY,
        "		step(swap((n + first) % LCORES); held = 0);\n",
        "		step(swap((n + first) % LCORES); held = 0;\n"
        "		     if :: !ok -> lcores[(n + first) % LCORES] = token_of(owner_make(me), 0); ok = true;"
        " got((n + first) % LCORES) :: else fi);\n",
    ),
    "policy-without-the-semaphore": Plant(
        "two claims of several go on at once",
        POLICY,
        "	step((semaphore == 0 || !locked[owner_index(semaphore)]) -> semaphore = owner_make(me));\n",
        "	step(semaphore = owner_make(me));\n",
    ),
    "policy-keeps-what-is-void": Plant(
        "a thread does not look again whether another has unregistered the instance meanwhile",
        POLICY,
        "	step(ok = registered[me]);\n",
        "	step(ok = true);\n",
    ),
    "policy-stops-threads-too-late": Plant(
        "an instance gives up its lcores before its own threads have stopped",
        POLICY,
        "	step(forget());\n	step(locked[me] = false; whose = owner_make(me));\n	collect()\n}\n",
        "	step(locked[me] = false; whose = owner_make(me));\n	collect();\n	step(forget())\n}\n",
    ),
}
