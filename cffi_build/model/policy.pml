/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Model of claim_many.c, lease.c and instance.c: claims of several lcores, all or none, beside single ones, and threads
 * of one instance. Steps have the names of the C functions. Memory is sequentially consistent here.
 *
 *   ROOT      holds all lcores for its tenants
 *   MANY      a tenant of root; claims all lcores by policy, and may give them back
 *   RIVAL     a tenant of root; claims one lcore, or with POLICIES all of them by policy, too
 *   STRANGER  claims one lcore, which collects the dead
 *
 * With THREADS another thread of MANY unregisters its instance at any moment, and with ALONE there is no rival. Each may
 * leave or die at any step, DEATHS of them. With STAYS root lives until all others have gone.
 *
 *   owned once     whoever is given an lcore is the only one alive who thinks it has it
 *   all or none    who is refused several has none of them
 *   in the family  the stranger gets no lcore while root lives
 *   one of two     if two claim all by policy, and nobody dies, one of them gets them (POLICIES)
 *   comes home     when all others have gone, a sweep leaves the lcores with a root that lives
 *   nothing left   when all have gone, a sweep leaves every lcore and record free
 *
 * "In the family" and "comes home" have one exception, which mtlshm_unregister() documents: an lcore that a thread claims
 * just after another has unregistered the instance counts as free until the first has looked again.
 *
 * A STEP is one access to what is shared, or several where each order with others' steps has the same outcome as if they
 * were one: so a word is loaded, and exchanged if it is what was expected. The survey is one step, since it is a guess,
 * which each exchange proves. The semaphore, which takes one step here, is semaphore.pml's.
 *
 * Left out: how lcores are chosen, newcomers (lease.pml), parents that are tenants (tenancy.pml).
 */
#define LCORES 2
#define ALL 4
#define ROOT 0
#define MANY 1
#define RIVAL 2
#define STRANGER 3
#define TRIES 2 /* CHOICE_TRIES */
#if defined(THREADS) && !defined(ALONE)
#define OTHERS 4 /* who goes, but for root */
#else
#define OTHERS 3
#endif

/* Everybody lives once and has a record of its own. A token is an owner and one bit, that it is LEASE. */
#define owner_make(index) ((index) + 1)
#define owner_index(owner) ((owner) - 1)
#define owner_of(token) ((token) / 2)
#define token_of(owner, lease) ((owner) * 2 + (lease))
#define LENT token_of(owner_make(ROOT), 1)
#define segment_knows(owner) ((owner) && live[owner_index(owner)])

byte lcores[LCORES] = LENT; /* the words */
bool live[ALL] = true;      /* the records: LIVE or FREE */
bool locked[ALL] = true;    /* the life locks */
byte semaphore;             /* the owner of its holder */

/* What is true, whatever the table says. */
bool registered[ALL] = true; /* the owner in the memory of the process */
bool dead[ALL];
bool refused[ALL];
byte belongs[LCORES];        /* process + 1 that has the lcore, and lives */
bool late[LCORES];           /* a thread has claimed it after another had unregistered the instance */
bool lost[LCORES];           /* and before it looked again somebody took it, or the process died */
byte deaths = DEATHS;
byte gone;

#ifdef STAYS
#define mortal (me == MANY || me == RIVAL)
#else
#define mortal (me != STRANGER)
#endif

/* Before each step the process may die, and all its threads with it. */
#define step(what)                                                         \
	atomic {                                                           \
		if                                                         \
		:: dead[me] -> goto died                                   \
		:: !dead[me] && mortal && deaths > 0 -> deaths--; goto died \
		:: !dead[me]                                               \
		fi;                                                        \
		what                                                       \
	}

#define for_all(what)                               \
	i = 0;                                      \
	do                                          \
	:: i < LCORES -> what; i++                  \
	:: else -> i = 0; break                     \
	od

inline got(lcore)
{
	assert(belongs[lcore] == 0);
	if
	:: registered[me] -> belongs[lcore] = me + 1
	:: else -> late[lcore] = true
	fi
}

inline give_back(lcore)
{
	belongs[lcore] = (belongs[lcore] == me + 1 -> 0 : belongs[lcore]);
	if
	:: lcores[lcore] == token_of(owner_make(me), 0) -> lcores[lcore] = lease; late[lcore] = false
	:: else
	fi
}

/* Of whose. */
inline lease_clear(back)
{
	for_all(step(
		if
		:: owner_of(lcores[i]) == whose ->
			assert(belongs[i] == 0);
			late[i] = false;
			lcores[i] = back
		:: else
		fi))
}

/* Of whose, which may be alive, and then busy says so. */
inline collect()
{
	step(
		busy = segment_knows(whose) && locked[owner_index(whose)];
		if
		:: busy || !segment_knows(whose) -> whose = 0
		:: else
		fi);
	if
	:: whose ->
		step(
			if
			:: segment_knows(whose) -> lease = (whose == owner_make(MANY) || whose == owner_make(RIVAL) -> LENT : 0)
			:: else -> whose = 0
			fi);
		if
		:: whose -> lease_clear(lease); step(live[owner_index(whose)] = false; whose = 0)
		:: else
		fi;
		lease = home
	:: else
	fi
}

/* A claim expects `home` or, where that is 0, an owner that the table does not know stands for it. */
#define may_be_had(word) ((word) == home || (!home && !segment_knows(owner_of(word))))

/* Sets held if somebody may have to be collected. */
inline swap(lcore)
{
	if
	:: may_be_had(lcores[lcore]) ->
		assert(me != STRANGER || dead[ROOT] || !registered[ROOT] || late[lcore]);
		lost[lcore] = lost[lcore] || late[lcore]; late[lcore] = false;
		lcores[lcore] = token_of(owner_make(me), 0); held = 0; ok = true; got(lcore)
	:: else -> held = owner_of(lcores[lcore]); ok = false
	fi
}

/* After a claim; sets ok if the instance is still there. */
inline keep(lcore)
{
	step(ok = registered[me]);
	if
	:: !ok -> step(give_back(lcore))
	:: else
	fi
}

inline mtlshm_claim(lcore)
{
	step(swap(lcore));
	do
	:: held ->
		step(
			whose = (segment_knows(held) && held != owner_make(me) -> held : 0);
			held = (whose || !home -> held : 0)); /* -EDOM, -EALREADY */
		if
		:: whose -> collect()
		:: else
		fi;
		if
		:: held && !busy -> step(swap(lcore))
		:: else -> atomic { held = 0; busy = false } /* -EBUSY */
		fi
	:: !held -> break
	od;
	if
	:: ok && home -> keep(lcore)
	:: else
	fi
}

/* Of the others in the family: the stranger's death gives a tenant nothing. */
inline sweep()
{
	n = 0;
	do
	:: n < STRANGER ->
		if
		:: n != me -> whose = owner_make(n); collect()
		:: else
		fi;
		n++
	:: else -> n = 0; busy = false; break
	od
}

/* All or none. Sets ok. */
inline take_all()
{
	n = 0;
	do
	:: n < LCORES ->
		step(swap((n + first) % LCORES); held = 0);
		if
		:: ok -> n++
		:: else ->
			do
			:: n > 0 -> n--; step(roll_back((n + first) % LCORES))
			:: else -> break
			od;
			break
		fi
	:: else -> n = 0; break
	od
}

inline roll_back(lcore)
{
	give_back(lcore)
}

inline none_is_mine()
{
	for_all(assert(belongs[i] != me + 1))
}

#define all_free (lcores[0] == home && lcores[1] == home)

inline choose_and_take()
{
	tries = 0; swept = false;
	do
	:: tries < TRIES ->
		step(ok = all_free);
		if
		:: ok ->
			if
			:: first = 0
			:: first = 1
			fi;
			take_all();
			first = 0;
			if
			:: ok -> break
			:: else -> tries++
			fi
		:: !ok && !swept -> sweep(); swept = true
		:: else -> break
		fi
	:: else -> ok = false; break
	od;
	atomic { tries = 0; swept = false }
}

inline mtlshm_claim_many()
{
	step((semaphore == 0 || !locked[owner_index(semaphore)]) -> semaphore = owner_make(me));
	choose_and_take();
	if
	:: ok ->
		n = 0;
		do
		:: n < LCORES -> keep(n); n++
		:: else -> n = 0; break
		od
	:: else ->
		atomic { refused[me] = true; none_is_mine() }
	fi;
	step(semaphore = (semaphore == owner_make(me) -> 0 : semaphore))
}

inline mtlshm_release(lcore)
{
	step(
		if
		:: belongs[lcore] == me + 1 -> give_back(lcore)
		:: else
		fi)
}

inline forget()
{
	registered[me] = false;
	for_all(belongs[i] = (belongs[i] == me + 1 -> 0 : belongs[i]))
}

/* A tenant lets go of its life lock and is collected like the dead. */
inline mtlshm_unregister()
{
	step(forget());
	step(locked[me] = false; whose = owner_make(me));
	collect()
}

inline die()
{
	dead[me] = true;
	locked[me] = false;
	forget();
	for_all(lost[i] = lost[i] || (late[i] && owner_of(lcores[i]) == owner_make(me)))
}

/* mtlshm_sweep() with nobody else about. */
inline last_sweep()
{
	for_all(
		if
		:: owner_of(lcores[i]) && lcores[i] != LENT && live[owner_index(owner_of(lcores[i]))] ->
			assert(!locked[owner_index(owner_of(lcores[i]))]);
			lcores[i] = (owner_of(lcores[i]) == owner_make(STRANGER) -> 0 : LENT)
		:: else
		fi;
		lcores[i] = (segment_knows(owner_of(lcores[i])) -> lcores[i] : 0))
}

proctype root()
{
	byte me = ROOT, home, lease, whose, i;
	bool busy;

#ifdef STAYS
	gone == OTHERS;
	atomic {
		last_sweep();
		for_all(assert(lcores[i] == LENT || lost[i]))
	};
#endif
	step(forget(); whose = owner_make(me));
	lease_clear(0);
	step(live[ROOT] = false; locked[ROOT] = false; whose = 0);
	goto left;
died:
	atomic { die(); whose = 0; i = 0 };
left:
	gone++
}

proctype tenant(byte me; bool several)
{
	byte home = LENT, lease = LENT, held, whose, i, n, first, tries;
	bool ok, busy, swept;

	if
	:: several -> mtlshm_claim_many()
	:: else ->
		if
		:: mtlshm_claim(0)
		:: mtlshm_claim(1)
		fi
	fi;
	if
	:: atomic { ok && registered[me] -> ok = false };
		if
		:: true -> mtlshm_release(0); mtlshm_release(1)
		:: true
		fi
	:: else
	fi;
#ifdef THREADS
	if
	:: me == MANY -> goto left
	:: else
	fi;
#endif
	mtlshm_unregister();
	goto left;
died:
	atomic { die() };
left:
	atomic { ok = false; busy = false; swept = false; held = 0; whose = 0; i = 0; n = 0; first = 0; tries = 0; gone++ }
}

/* Another one of MANY's. */
proctype thread()
{
	byte me = MANY, home = LENT, lease = LENT, whose, i;
	bool busy;

	mtlshm_unregister();
	goto left;
died:
	atomic { die() };
left:
	atomic { busy = false; whose = 0; i = 0; gone++ }
}

proctype stranger()
{
	byte me = STRANGER, home, lease, held, whose, i;
	bool ok, busy;

	mtlshm_claim(0); /* which may stand for any, as the others claim them in any order */
	step(forget());
	step(locked[me] = false; whose = owner_make(me));
	collect();
	goto left;
died:
	skip;
left:
	atomic { ok = false; busy = false; gone++ }
}

proctype last()
{
	byte i;

	gone == OTHERS + 1;
	atomic {
		last_sweep();
		if
		:: live[ROOT] -> assert(!locked[ROOT]); live[ROOT] = false; for_all(lcores[i] = (lcores[i] == LENT -> 0 : lcores[i]))
		:: else
		fi;
		for_all(assert(lcores[i] == 0));
		assert(semaphore == 0 || !locked[owner_index(semaphore)]);
#ifdef POLICIES
		assert(!(refused[MANY] && refused[RIVAL]) || deaths < DEATHS)
#endif
	}
}

init
{
	atomic {
		run root();
		run tenant(MANY, true);
#ifdef ALONE
		live[RIVAL] = false; locked[RIVAL] = false;
#elif defined(POLICIES)
		run tenant(RIVAL, true);
#else
		run tenant(RIVAL, false);
#endif
#ifdef THREADS
		run thread();
#endif
		run stranger();
		run last()
	}
}
