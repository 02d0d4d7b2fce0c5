/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Model of mtlshm/legacy/lending.py and mtlshm/daemon/legacy.py: lcores move between our table and libmtl's legacy one,
 * while processes claim and release in either, and all of them, the daemon and mtlshm-ctl included, die at any step.
 * Steps have the names of the functions there; each changes one table.
 *
 * Shown, with two legacy processes, one that claims in our table, a daemon that lends one of two lcores and is started again
 * when it died, and somebody with mtlshm-ctl or one that reserves an lcore of ours:
 *
 *   owned once    whoever takes an lcore, by whatever table, is the only one alive who thinks he has it
 *   no clash      the daemon never finds two owners
 *   nothing lost  when all others are gone, a look of the daemon's leaves each lcore ours and free or lent, one of them lent;
 *                 but one that is reserved stays so
 *
 * The legacy processes are attached from the beginning, with the daemon there: one that attaches with nobody there zeroes
 * the table, which nothing protects from. What our table does with its own dead is lease.pml's: here it takes one step.
 */
#define LCORES 2
#define LENT 1   /* how many the daemon lends */
#if defined(CTL_TOO) || defined(RESERVES)
#define OTHERS 4
#else
#define OTHERS 3
#endif

/* An entry of the legacy table, or process(n). */
#define INACTIVE 0
#define RESERVED 1
/* A word of ours, or instance(n) of a legacy process. */
#define FREE 0
#define POOL 1
#define SHM 9
#define RESERVATION 10

#define process(n) (2 + (n))
#define instance(n) (2 + (n))
#define is_process(entry) ((entry) >= 2)
#define number(entry) ((entry) - 2)
#define lent(holder) ((holder) != FREE && (holder) != SHM && (holder) != RESERVATION)

/* Who has the legacy lock. */
#define NOBODY 0
#define DAEMON 3
#define CTL 4

byte legacy[LCORES] = RESERVED;
byte ours[LCORES];
byte lock;                /* a legacy process, + 1; DAEMON, CTL */
bool alive[2] = true;
byte uses[LCORES];        /* who thinks it is his, and lives: legacy process + 1, or SHM */
bool kept;                /* lcore 1 has been reserved, and nobody ends that */
byte deaths = DEATHS;
byte gone;

#define step(what)                                                        \
	atomic {                                                          \
		if                                                        \
		:: deaths > 0 -> deaths--; goto died                      \
		:: true                                                   \
		fi;                                                       \
		what                                                      \
	}

#define take_lock(me) lock == NOBODY; lock = me

inline drop_lock(me)
{
	if
	:: lock == me -> lock = NOBODY
	:: else
	fi
}

inline swap(lcore, expected, desired)
{
	ok = ours[lcore] == (expected);
	if
	:: ok -> ours[lcore] = desired
	:: else
	fi
}

inline use(lcore, who)
{
	assert(uses[lcore] == 0);
	uses[lcore] = who
}

/* --- libmtl, as it is -------------------------------------------------------------------------------- */

inline legacy_claim()
{
	step(take_lock(me + 1));
	i = 0;
	do
	:: i < LCORES ->
		if
		:: is_process(legacy[i]) -> /* one of the dead is cleared, by any of the same user */
			step(if :: !alive[number(legacy[i])] -> legacy[i] = INACTIVE :: else fi)
		:: else
		fi;
		if
		:: legacy[i] == INACTIVE -> step(legacy[i] = process(me); use(i, me + 1)); break
		:: else -> i++
		fi
	:: else -> break
	od;
	i = 0;
	step(drop_lock(me + 1))
}

inline legacy_release()
{
	step(take_lock(me + 1));
	i = 0;
	do
	:: i < LCORES ->
		if
		:: uses[i] == me + 1 -> step(uses[i] = 0; legacy[i] = INACTIVE)
		:: else
		fi;
		i++
	:: else -> break
	od;
	i = 0;
	step(drop_lock(me + 1))
}

proctype legacy_process(byte me)
{
	byte i;

	legacy_claim();
	if
	:: legacy_release(); legacy_claim()
	:: skip
	fi;
died:
	atomic {
		drop_lock(me + 1);
		alive[me] = false;
		for (i : 0 .. LCORES - 1) {
			if
			:: uses[i] == me + 1 -> uses[i] = 0
			:: else
			fi
		};
		i = 0;
		gone++
	}
}

/* --- in our table ------------------------------------------------------------------------------------ */

proctype shm_process()
{
	byte i, calls = 2;
	bool ok;

	do
	:: calls > 0 ->
		calls--;
		if
		:: i = 0
		:: i = 1
		fi;
		step(swap(i, FREE, SHM); if :: ok -> use(i, SHM) :: else fi);
		if
		:: ok -> step(uses[i] = 0); step(swap(i, SHM, FREE); assert(ok))
		:: else
		fi;
		i = 0; ok = false
	:: else -> break
	od;
died:
	atomic { /* collected */
		for (i : 0 .. LCORES - 1) {
			if
			:: ours[i] == SHM -> ours[i] = FREE; uses[i] = 0
			:: else
			fi
		};
		i = 0;
		gone++
	}
}

/* Makes a reservation of one lcore, which outlasts it, and may end it. */
proctype reserver()
{
	bool ok;

	step(swap(1, FREE, RESERVATION); kept = ok);
	if
	:: ok -> step(kept = false; swap(1, RESERVATION, FREE); assert(ok))
	:: true
	fi;
died:
	atomic { ok = false; gone++ }
}

/* --- mtlshm/legacy/lending.py ------------------------------------------------------------------------------- */

inline reserve(lcore)
{
	step(legacy[lcore] = RESERVED)
}

inline clear(lcore)
{
	step(legacy[lcore] = INACTIVE)
}

inline evict(lcore, holder)
{
	step(swap(lcore, holder, FREE))
}

/* Sets ok. */
inline lend(lcore)
{
	step(swap(lcore, FREE, POOL)); /* pool.claim */
	if
	:: ok -> clear(lcore)
	:: else
	fi
}

inline bring_home(lcore, holder)
{
	reserve(lcore);
	evict(lcore, holder)
}

/* --- mtlshm-ctl legacy ------------------------------------------------------------------------------- */

proctype ctl()
{
	byte i;
	bool ok;

	step(take_lock(CTL));
	do
	:: legacy[0] == RESERVED && ours[0] == FREE -> lend(0); break
	:: legacy[1] == RESERVED && ours[1] == FREE -> lend(1); break
	:: legacy[0] == INACTIVE && ours[0] == POOL -> bring_home(0, POOL); break
	:: legacy[1] == INACTIVE && ours[1] == POOL -> bring_home(1, POOL); break
	:: break
	od;
	ok = false;
	step(drop_lock(CTL));
died:
	atomic { drop_lock(CTL); gone++ }
}

/* --- mtlshm/daemon/legacy.py ------------------------------------------------------------------------- */

/* In our table as well. */
inline pass_to(who, lcore)
{
	if
	:: holder == instance(who)
	:: holder != instance(who) && lent(holder) -> step(swap(lcore, holder, instance(who)); assert(ok)) /* take */
	:: else -> step(swap(lcore, FREE, instance(who)); assert(ok)) /* or it is a clash */
	fi
}

#define wanted (available < LENT)

inline balance()
{
	i = 0;
	do
	:: i < LCORES ->
		if
		:: given_back[i] ->
			given_back[i] = false;
			holder = ours[i];
			if
			:: wanted ->
				if
				:: holder != POOL -> step(swap(i, holder, POOL); assert(ok))
				:: else
				fi;
				clear(i);
				available++
			:: else -> bring_home(i, holder)
			fi
		:: else
		fi;
		i++
	:: else -> break
	od;
	i = 0;
	do
	:: i < LCORES ->
		if
		:: wanted && legacy[i] == RESERVED ->
			lend(i);
			if
			:: ok -> available++
			:: else
			fi
		:: else
		fi;
		i++
	:: else -> break
	od
}

inline settle()
{
	i = 0;
	do
	:: i < LCORES -> /* what nothing else protects comes first */
		step(ok = legacy[i] == INACTIVE && !lent(ours[i]));
		if
		:: ok -> reserve(i)
		:: else
		fi;
		i++
	:: else -> break
	od;
	i = 0;
	do
	:: i < LCORES ->
		step(holder = ours[i]; ok = is_process(legacy[i]) && alive[number(legacy[i])]);
		if
		:: ok -> pass_to(number(legacy[i]), i)
		:: else ->
			if
			:: !lent(holder) && is_process(legacy[i]) -> reserve(i)
			:: !lent(holder) && !is_process(legacy[i])
			:: lent(holder) && legacy[i] == RESERVED -> evict(i, holder)
			:: lent(holder) && legacy[i] == INACTIVE && holder == POOL -> available++
			:: lent(holder) && legacy[i] != RESERVED && !(legacy[i] == INACTIVE && holder == POOL) ->
				given_back[i] = true
			fi
		fi;
		i++
	:: else -> break
	od;
	balance();
	i = 0; ok = false; holder = 0; available = 0
}

proctype daemon()
{
	byte i, holder, available, looks;
	bool ok, last;
	bool given_back[LCORES];

	do
	:: !last && looks < LOOKS ->
		looks++;
	again:
		step(take_lock(DAEMON));
		settle();
		step(drop_lock(DAEMON));
		goto looked;
	died:
		atomic { /* and the next begins; that it finds all others gone it has to see for itself */
			drop_lock(DAEMON);
			i = 0; ok = false; holder = 0; available = 0; given_back[0] = false; given_back[1] = false
		};
		goto again;
	looked:
		skip
	:: !last && gone == OTHERS -> last = true; deaths = 0; goto again
	:: last -> break
	od;
	atomic {
		for (i : 0 .. LCORES - 1) {
			assert((legacy[i] == RESERVED && ours[i] == (i == 1 && kept -> RESERVATION : FREE)) ||
			       (legacy[i] == INACTIVE && ours[i] == POOL && !(i == 1 && kept)));
			available = available + (ours[i] == POOL)
		};
		assert(available >= LENT)
	}
}

init
{
	atomic {
		run legacy_process(0);
		run legacy_process(1);
		run shm_process();
#ifdef CTL_TOO
		run ctl();
#endif
#ifdef RESERVES
		run reserver();
#endif
		run daemon()
	}
}
