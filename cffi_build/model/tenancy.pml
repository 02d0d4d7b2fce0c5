/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Model of tenancy.c, lease.c, instance.c and reservation.c: one lcore in a family of three, and a stranger who wants it.
 * Steps have the names of the C functions. Memory is sequentially consistent here.
 *
 *   ROOT      has the lcore, for its tenants; with RESERVATION it is a reservation that is just being made
 *   MIDDLE    a tenant of root; claims the lcore for its own tenants
 *   LEAF      a tenant of middle; claims the lcore, and may give it back
 *   STRANGER  claims the lcore, which collects the dead. With RESERVATION it may end that first; with EVICT it is an
 *             operator who takes the lcore from the leaf first; with NEWCOMER it wants root's or middle's record instead
 *
 * Root, middle and leaf leave, or die at any step, DEATHS of them. With STAYS root lives until all others have gone.
 *
 *   owned once     whoever is given the lcore to use is the only one alive who thinks it has it
 *   kept           nobody takes the lcore from an owner that uses it and lives
 *   in the family  the stranger never gets what root or middle has for its tenants, while that one lives
 *   no mistake     nobody holds a write lock on the record of another that is known
 *   whole          a reservation that was not ended has its lcore
 *   comes home     when all others have gone, a sweep leaves the lcore with a root that lives
 *   nothing left   when all have gone, a sweep leaves the lcore free, and every record
 *
 * A STEP is what nobody can see in halves: one access to what is shared, or several where each order with others' steps has
 * the same outcome as if they were one. So it is with
 *   a word that is loaded, and exchanged if it is what was expected: the exchange fails if it has changed meanwhile;
 *   the questions before a life lock is asked for: a later one finds out whatever has changed since an earlier one;
 *   a life lock that is given back after the last look at its record: between the two newcomers are refused, and that is all;
 *   a control word and a parent that are read one after the other, since everybody lives once.
 * Everybody has a record of its own, so only the next record can be that of a tenant.
 *
 * Left out: claims by policy and threads of one instance (policy.pml), chains of more than three, damage, a daemon's take
 * (one exchange of a word, as a claim is).
 */
#define FAMILY 3
#define ROOT 0
#define MIDDLE 1
#define LEAF 2
#define STRANGER 3
#define RECORDS 4

#define FREE 0
#define LIVE 1
#define PROXIED 2

/* Everybody lives once. The owner of record n is n + 1, until it is FREE again, which is GONE here; a token is an owner
 * and one bit, that it is LEASE. */
#define GONE 3
#define owner_make(index) ((index) + 1)
#define owner_index(owner) ((owner) - 1)
#define owner_of(token) ((token) / 2)
#define token_of(owner, lease) ((owner) * 2 + (lease))
#define lease_of(parent) ((parent) * 2 + ((parent) != 0))
#define is_live(owner) ((owner) && records[owner_index(owner)] == LIVE)
#define is_proxied(owner) ((owner) && records[owner_index(owner)] == PROXIED)
#define segment_knows(owner) (is_live(owner) || is_proxied(owner))
#define control_free(index) (records[index] == FREE || records[index] == GONE)
#define tenancy_parent(owner) (segment_knows(owner) -> parents[owner_index(owner)] : 0)

byte records[RECORDS]; /* the control words */
byte parents[RECORDS]; /* owners */
byte lcore;            /* the word */
byte writer[RECORDS];  /* the life locks: process + 1, */
byte readers[RECORDS]; /* and a bit for each process */

/* What is true, whatever the table says. */
bool alive[FAMILY];    /* was told that it is registered, and has neither died nor begun to end */
bool lends[FAMILY];    /* was told that it has the lcore for its tenants, and is alive, or a reservation */
byte belongs;          /* process + 1 that was told that it has the lcore to use, and lives */
bool started[FAMILY];
byte deaths = DEATHS;
byte gone;

#ifdef STAYS
#define mortal (me == MIDDLE || me == LEAF)
#else
#define mortal (me != STRANGER)
#endif

/* Before each step one may die. */
#define step_of(some, what)                                   \
	atomic {                                              \
		if                                            \
		:: deaths > 0 && (some) -> deaths--; goto died \
		:: true                                       \
		fi;                                           \
		what                                          \
	}
#define step(what) step_of(mortal, what)

inline life_drop(index)
{
	readers[index] = readers[index] & ~(1 << me)
}

/* From the read lock that one has. */
inline life_take(index)
{
	ok = writer[index] == 0 && readers[index] == (1 << me);
	if
	:: ok -> writer[index] = me + 1; assert(control_free(index))
	:: else
	fi;
	life_drop(index)
}

/* Is there anybody to collect? Sets busy if not, since it cannot be dead. */
inline collect_ask(owner)
{
	busy = is_proxied(owner);
	whose = (is_live(owner) -> owner : 0);
	next = tenancy_parent(whose)
}

/* Whoever has the lock may be the record's next owner, so busy says whether the record is still whose's. */
inline life_share()
{
	if
	:: writer[owner_index(whose)] == 0 -> readers[owner_index(whose)] = readers[owner_index(whose)] | (1 << me)
	:: else -> busy = segment_knows(whose); whose = 0; next = 0
	fi
}

/* Only of one that has a parent itself. */
inline tenancy_has_tenants()
{
	kept = above && whose != owner_make(LEAF) && records[whose] != FREE && records[whose] != GONE && parents[whose] == whose
}

/* Of whose, who is dead or ourselves. */
inline lease_clear(lease)
{
	if
	:: lcore && owner_of(lcore) == whose ->
		assert(belongs == 0 || lcore == token_of(whose, 1));
		lcore = lease
	:: else
	fi
}

/* Of whose, whose read lock we have. Sets ok if its record is free by our doing. */
inline lease_free()
{
	ok = !kept && is_live(whose);
	if
	:: ok -> records[owner_index(whose)] = GONE
	:: else
	fi;
	above = 0; kept = false
}

inline drop_if(drop)
{
	if
	:: drop -> life_drop(owner_index(whose))
	:: else
	fi
}

/* Of whose, whose read lock we have, and give back if `drop` says so. Then the one above may have been kept for it. */
inline lease_collect(drop)
{
	step(
		ok = is_live(whose);
		if
		:: !ok -> drop_if(drop); whose = 0; next = 0
		:: else
		fi);
	if
	:: ok ->
		step(ok = false; above = tenancy_parent(whose));
		step(tenancy_has_tenants());
		step(lease_clear(lease_of(above)));
		step(lease_free());
		step(
			drop_if(drop);
			if
			:: ok -> ok = false; collect_ask(next); busy = false
			:: else -> whose = 0; next = 0
			fi)
	:: else
	fi
}

/* The rest of collect(), and lease_collect_up(). */
inline collect_up()
{
	do
	:: whose ->
		step(life_share());
		if
		:: whose -> lease_collect(true)
		:: else
		fi
	:: !whose -> break
	od
}

inline occupy(index)
{
	step(
		ok = writer[index] == 0;
		if
		:: ok ->
			readers[index] = readers[index] | (1 << me);
			whose = (records[index] == LIVE -> owner_make(index) : 0);
			next = tenancy_parent(whose)
		:: else
		fi);
	if
	:: ok ->
		if
		:: whose -> lease_collect(false); collect_up()
		:: else
		fi;
		step(
			ok = control_free(index);
			if
			:: ok -> life_take(index)
			:: else -> life_drop(index)
			fi);
		if
		:: ok -> step(ok = false; writer[index] = 0)
		:: else
		fi
	:: else
	fi
}

/* As a tenant of whoever has the record before ours. */
inline mtlshm_register()
{
	step(
		ok = writer[me] == 0 && readers[me] == 0 && segment_knows(owner_make(me - 1)); /* tenancy_admits() */
		if
		:: ok -> writer[me] = me + 1; assert(records[me] == FREE)
		:: else
		fi);
	if
	:: !ok -> goto left /* -ESRCH */
	:: else
	fi;
	step(parents[me] = owner_make(me - 1); records[me] = LIVE);
	step(ok = is_proxied(owner_make(me - 1)) || writer[me - 1] != 0); /* tenancy_admits(): life_held() */
	step(
		ok = ok && segment_knows(owner_make(me - 1));
		if
		:: ok -> alive[me] = true; started[me] = true
		:: else
		fi);
	if
	:: !ok ->
		step(records[me] = GONE; collect_ask(owner_make(me - 1)));
		collect_up();
		step(writer[me] = 0; busy = false);
		goto left
	:: else -> ok = false
	fi
}

/* A claim expects parent|LEASE or, without a parent, 0, for which an owner that the table does not know stands. */
#define may_be_had(word) ((word) == lease_of(parent) || (!parent && !segment_knows(owner_of(word))))

inline got(lease)
{
	assert(belongs == 0);
	if
	:: me == STRANGER -> assert(!lends[ROOT] && !lends[MIDDLE])
	:: else
	fi;
	if
	:: lease -> lends[me] = true
	:: else -> belongs = me + 1; had = true
	fi
}

/* Sets held if somebody may have to be collected. */
inline swap(lease)
{
	if
	:: may_be_had(lcore) -> lcore = token_of(owner_make(me), lease); held = 0; got(lease)
	:: else -> held = owner_of(lcore) /* or -EDOM */
	fi
}

inline mtlshm_claim(lease)
{
	step(swap(lease));
	do
	:: held ->
		step(
			if
			:: !segment_knows(held) && parent -> held = 0 /* -EDOM */
			:: else -> collect_ask(held)
			fi);
		collect_up();
		if
		:: held && !busy -> step(swap(lease))
		:: else -> atomic { held = 0; busy = false } /* -EBUSY */
		fi
	:: !held -> break
	od
}

inline mtlshm_release()
{
	step(
		if
		:: had -> /* and an operator may have taken it since */
			assert(belongs != me + 1 || lcore == token_of(owner_make(me), 0));
			had = false;
			belongs = (belongs == me + 1 -> 0 : belongs);
			if
			:: lcore == token_of(owner_make(me), 0) -> lcore = lease_of(parent)
			:: else
			fi
		:: else
		fi)
}

inline mtlshm_evict()
{
	step(held = lcore; above = tenancy_parent(owner_of(lcore)));
	if
	:: held == token_of(owner_make(LEAF), 0) ->
		step(
			if
			:: lcore == held -> lcore = lease_of(above); belongs = (belongs == LEAF + 1 -> 0 : belongs)
			:: else
			fi;
			held = 0; above = 0)
	:: else -> atomic { held = 0; above = 0 }
	fi
}

inline mtlshm_end()
{
	step_of(true, ok = is_proxied(owner_make(ROOT)); if :: ok -> end_free() :: else fi);
	if
	:: ok -> step_of(true, ok = false; end_clear())
	:: else
	fi
}

inline end_free()
{
	records[ROOT] = GONE; lends[ROOT] = false
}

inline end_clear()
{
	whose = owner_make(ROOT); lease_clear(0); whose = 0
}

inline forget()
{
	alive[me] = false;
	belongs = (belongs == me + 1 -> 0 : belongs);
	lends[me] = lends[me] && records[me] == PROXIED
}

inline mtlshm_unregister()
{
	if
	:: parent ->
		step(forget(); writer[me] = 0; collect_ask(owner_make(me)));
		collect_up()
	:: else ->
		step(forget(); whose = owner_make(me); lease_clear(0); whose = 0);
		step(records[me] = GONE; writer[me] = 0)
	fi
}

inline kernel_drops_locks()
{
	i = 0;
	do
	:: i < RECORDS ->
		writer[i] = (writer[i] == me + 1 -> 0 : writer[i]);
		life_drop(i);
		i++
	:: else -> i = 0; break
	od
}

/* mtlshm_sweep() with nobody else about. */
inline sweep()
{
	/* Whoever is collected is followed by those above. */
	i = RECORDS;
	do
	:: i > 0 ->
		i--;
		whose = owner_make(i);
		if
		:: is_live(whose) && writer[i] == 0 ->
			above = tenancy_parent(whose);
			tenancy_has_tenants();
			lease_clear(lease_of(above));
			lease_free()
		:: else
		fi
	:: else -> break
	od;
	lcore = (segment_knows(owner_of(lcore)) -> lcore : 0);
	ok = false; whose = 0
}

proctype root()
{
	byte me = ROOT, whose, above, i;
	bool ok, kept, parent;

#ifdef RESERVATION
	step(records[ROOT] = PROXIED); /* instance_settle() */
	step(writer[ROOT] = 0; alive[ROOT] = false);
	goto left;
#endif
#ifdef STAYS
	gone == FAMILY;
	atomic { sweep(); assert(lcore == token_of(owner_make(ROOT), 1)) };
#endif
	step(forget(); whose = owner_make(me); lease_clear(0); whose = 0);
	step(records[me] = GONE; writer[me] = 0);
	goto left;
died:
	atomic { forget(); kernel_drops_locks() };
left:
	gone++
}

proctype tenant(byte me)
{
	byte parent, held, whose, next, above, i;
	bool ok, busy, kept, had;

	atomic { started[me - 1] || gone > 0; parent = owner_make(me - 1) };
	mtlshm_register();
	if
	:: me == MIDDLE -> mtlshm_claim(1)
	:: else ->
		mtlshm_claim(0);
		if
		:: mtlshm_release()
		:: true
		fi
	fi;
	mtlshm_unregister();
	goto left;
died:
	atomic {
		forget(); kernel_drops_locks();
		held = 0; whose = 0; next = 0; above = 0; ok = false; busy = false; kept = false; had = false
	};
left:
	atomic { parent = 0; ok = false; busy = false; had = false; gone++ }
}

proctype stranger()
{
	byte me = STRANGER, parent, held, whose, next, above, i;
	bool ok, busy, kept, had;

#ifdef NEWCOMER
	if
	:: occupy(ROOT)
	:: occupy(MIDDLE)
	fi;
	goto left;
#endif
#ifdef RESERVATION
	if
	:: mtlshm_end()
	:: true
	fi;
#endif
#ifdef EVICT
	mtlshm_evict();
#endif
	mtlshm_claim(0);
	mtlshm_release();
	goto left;
died:
	kernel_drops_locks();
left:
	atomic { ok = false; busy = false; gone++ }
}

proctype last()
{
	byte i, whose, above;
	bool ok, kept;

	gone == FAMILY + 1;
	atomic {
		writer[STRANGER] = 0;
		for (i : 0 .. RECORDS - 1) {
			assert(writer[i] == 0 && readers[i] == 0)
		}
		sweep();
		if
		:: is_proxied(owner_make(ROOT)) -> assert(lcore == token_of(owner_make(ROOT), 1)); end_free(); end_clear()
		:: else
		fi;
		assert(lcore == 0);
		for (i : 0 .. RECORDS - 1) {
			assert(control_free(i))
		}
	}
}

init
{
	atomic {
		records[STRANGER] = LIVE; writer[STRANGER] = STRANGER + 1;
		records[ROOT] = LIVE; writer[ROOT] = ROOT + 1;
		lcore = token_of(owner_make(ROOT), 1);
		alive[ROOT] = true; started[ROOT] = true; lends[ROOT] = true;
		run root();
		run tenant(MIDDLE);
		run tenant(LEAF);
		run stranger();
		run last()
	}
}
