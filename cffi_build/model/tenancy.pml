/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Model of tenancy.c, lease.c and reservation.c: one lcore in a family of three, and a stranger who wants it. Steps have the names
 * of the C functions; each is one access to what is shared: a load, a compare-and-swap, a lock. Memory is sequentially
 * consistent here.
 *
 *   ROOT      claims the lcore for its tenants; with RESERVATION it is a reservation, which the stranger ends
 *   MIDDLE    a tenant of root, claims the lcore for its own tenants
 *   LEAF      a tenant of middle; uses the lcore and gives it back
 *   STRANGER  is registered from the start; claims the lcore, which collects the dead; with NEWCOMER it registers instead
 *
 * Root, middle and leaf live LIVES times each in RECORDS records, and die DEATHS times in between, at any step. With STAYS
 * root never dies, and waits for all others.
 *
 *   owned once   whoever is given the lcore is the only one alive who thinks it has it
 *   kept         nobody takes the lcore from an owner that lives
 *   in the family   the stranger never gets what root or middle has and lends, while that one lives
 *   no mistake   nobody ever holds a write lock on a record that is not FREE before it fills it
 *   comes home   when middle and leaf are gone, a sweep leaves the lcore with a root that lives (STAYS)
 *   nothing left when all are gone, a sweep leaves the lcore free, and every record
 *
 * Left out: claims by policy (they are claims of several words under the semaphore), threads of one instance, depth beyond three,
 * damage, evict and take (each one compare-and-swap to parent|LEASE or from it, as release and claim are).
 */
#define FAMILY 3
#define ROOT 0
#define MIDDLE 1
#define LEAF 2
#define STRANGER 3

#define FREE 0
#define LIVE 1
#define PROXIED 2

/* Owners are numbers from 1; a token is an owner and one bit, that it is LEASE. */
#define owner_make(index, generation) ((generation) * RECORDS + (index) + 1)
#define owner_index(owner) (((owner) - 1) % RECORDS)
#define owner_generation(owner) (((owner) - 1) / RECORDS)
#define owner_of(token) ((token) / 2)
#define token_of(owner, lease) ((owner) * 2 + (lease))
#define lease_of(parent) ((parent) * 2 + ((parent) != 0))
#define control_make(generation, state) ((generation) * 3 + (state))
#define control_generation(control) ((control) / 3)
#define control_state(control) ((control) % 3)
#define control_after(control) control_make(control_generation(control) + 1, FREE)
#define is_live(owner) (records[owner_index(owner)] == control_make(owner_generation(owner), LIVE))
#define is_proxied(owner) (records[owner_index(owner)] == control_make(owner_generation(owner), PROXIED))
#define segment_knows(owner) ((owner) && (is_live(owner) || is_proxied(owner)))

byte records[RECORDS] = control_make(1, FREE); /* the control words */
byte parents[RECORDS];                         /* owners */
byte lcore;                                    /* the word */
byte writer[RECORDS];                          /* the life locks: process + 1, */
byte readers[RECORDS];                         /* and a bit for each process */

/* What is true, whatever the table says. */
byte known_as[FAMILY];                         /* the owner of whoever comes next in the chain: it may have died */
bool alive[FAMILY];                            /* has been told that it is registered, and has neither died nor begun to end */
bool lends[FAMILY];                            /* has the lcore for its tenants, and lives */
byte belongs;                                  /* process + 1 that was told it has the lcore to use, and lives */
byte deaths = DEATHS;
byte gone;
bool ended;                                    /* the reservation */

#ifdef RESERVATION
#define RESERVED lends[ROOT]
#else
#define RESERVED false
#endif
#ifdef RESERVATION
#define RESERVED_NOW (me == ROOT && control_state(records[owner_index(known_as[ROOT])]) == PROXIED && known_as[ROOT])
#else
#define RESERVED_NOW false
#endif
#ifdef STAYS
#define IMMORTAL (me == ROOT)
#else
#define IMMORTAL false
#endif

inline life_share(index, ok)
{
	ok = writer[index] == 0;
	if
	:: ok -> readers[index] = readers[index] | (1 << me)
	:: else
	fi
}

/* From the read lock that one has. */
inline life_take(index, ok)
{
	ok = writer[index] == 0 && readers[index] == (1 << me);
	if
	:: ok -> readers[index] = 0; writer[index] = me + 1; assert(control_state(records[index]) == FREE)
	:: else
	fi
}

inline life_drop(index)
{
	readers[index] = readers[index] & ~(1 << me)
}

/* Everything a process does is a step, before which it may die. */
#define step(what)                                                               \
	atomic {                                                                 \
		if                                                               \
		:: deaths > 0 && me != STRANGER && !IMMORTAL -> deaths--; goto died \
		:: true                                                          \
		fi;                                                              \
		what                                                             \
	}

/* token becomes what is there if it is not what was expected */
inline swap(expected, desired)
{
	if
	:: lcore == expected -> lcore = desired; ok = true
	:: else -> expected = lcore; ok = false
	fi
}

inline free_record(index)
{
	if
	:: records[index] == control -> records[index] = control_after(control); ok = true
	:: else -> ok = false
	fi
}

/* Words of whose, which is dead or is ourselves, go to `above`. */
inline lease_clear(whose, above)
{
	step(token = lcore);
	if
	:: token && owner_of(token) == whose -> step(assert(lcore != token || belongs == 0); swap(token, lease_of(above)))
	:: else
	fi;
	token = 0
}

/* Of one whose read lock we have. Sets ok if its record is free by our doing. */
inline lease_collect(whose)
{
	ok = false;
	step(control = records[owner_index(whose)]);
	if
	:: control == control_make(owner_generation(whose), LIVE) ->
		step(above = (segment_knows(whose) -> parents[owner_index(whose)] : 0));
		kept = false;
		if
		:: above ->
			i = 0;
			do
			:: i < RECORDS && !kept ->
				step(kept = control_state(records[i]) != FREE && parents[i] == whose);
				i++
			:: else -> i = 0; break
			od
		:: else
		fi;
		lease_clear(whose, above);
		ok = false;
		if
		:: !kept -> step(free_record(owner_index(whose)))
		:: else
		fi;
		above = 0; kept = false
	:: else
	fi;
	control = 0
}

/* One that may be dead, and then those above it that were kept for it. Sets busy if the first lives. */
inline collect(first)
{
	whose = first;
	busy = false;
	do
	:: whose == 0 -> break
	:: else ->
		step(next = (segment_knows(whose) -> parents[owner_index(whose)] : 0));
		step(ok = segment_knows(whose); busy = whose == first && is_proxied(whose));
		if
		:: !ok || busy -> break
		:: else
		fi;
		step(if :: is_proxied(whose) -> ok = false :: else -> life_share(owner_index(whose), ok) fi);
		if
		:: !ok -> step(busy = whose == first && segment_knows(whose)); break
		:: else
		fi;
		lease_collect(whose);
		gone_by_us = ok;
		step(life_drop(owner_index(whose)));
		if
		:: gone_by_us -> whose = next
		:: else -> break
		fi
	od;
	whose = 0; next = 0; ok = false; gone_by_us = false
}

inline occupy(n)
{
	step(life_share(n, ok));
	if
	:: ok ->
		step(owner = owner_make(n, control_generation(records[n])); next = (is_live(owner) -> parents[n] : 0));
		lease_collect(owner);
		if
		:: ok -> parent = next; owner = 0; collect(parent); parent = 0
		:: else -> owner = 0; next = 0
		fi;
		step(ok = control_state(records[n]) == FREE);
		if
		:: ok -> step(life_take(n, ok))
		:: else
		fi;
		if
		:: !ok -> step(life_drop(n))
		:: else
		fi
	:: else
	fi
}

inline mtlshm_register(from)
{
	index = me;
	step(ok = writer[me] == 0 && readers[me] == 0);
	if
	:: !ok -> goto left /* a newcomer looks at it: -EUSERS */
	:: else -> step(writer[me] = me + 1; assert(control_state(records[me]) == FREE))
	fi;
	step(ok = from == 0 || segment_knows(from));
	if
	:: !ok -> step(writer[index] = 0); goto left /* -ESRCH */
	:: else
	fi;
	parent = from;
	step(owner = owner_make(index, control_generation(records[index])));
	step(parents[index] = parent);
	step(records[index] = control_make(owner_generation(owner), LIVE));
	if
	:: parent ->
		step(ok = is_proxied(parent) || writer[owner_index(parent)] != 0); /* life_held() */
		if
		:: ok -> step(ok = segment_knows(parent))
		:: else
		fi;
		if
		:: !ok -> /* undo */
			step(records[index] = control_after(records[index]));
			collect(parent);
			step(writer[index] = 0);
			goto left
		:: else
		fi
	:: else
	fi;
	step(alive[me] = true; known_as[me] = owner; ok = false)
}

inline got(lease)
{
	assert(belongs == 0);
	if
	:: me == STRANGER -> assert(!(alive[ROOT] && lends[ROOT]) && !(alive[MIDDLE] && lends[MIDDLE]) && (!RESERVED || ended))
	:: else
	fi;
	if
	:: lease -> lends[me] = true
	:: else -> belongs = me + 1
	fi
}

/* Claim what is parent|LEASE, or free. */
inline mtlshm_claim(lease)
{
	held = lease_of(parent);
	step(swap(held, token_of(owner, lease)); if :: ok -> got(lease) :: else fi);
	do
	:: ok -> break
	:: !ok && owner_of(held) == owner -> break /* -EALREADY */
	:: !ok && owner_of(held) != owner && held == lease_of(parent) ->
		step(swap(held, token_of(owner, lease)); if :: ok -> got(lease) :: else fi)
	:: !ok && owner_of(held) != owner && held != lease_of(parent) ->
		if
		:: held -> step(ok = segment_knows(owner_of(held)))
		:: else
		fi;
		if
		:: ok ->
			collect(owner_of(held));
			if
			:: busy -> busy = false; ok = false; break /* -EBUSY */
			:: else
			fi;
			step(held = lcore)
		:: !ok && parent -> break /* -EDOM */
		:: !ok && !parent -> step(swap(held, token_of(owner, lease)); if :: ok -> got(lease) :: else fi)
		fi
	od;
	held = 0; ok = false
}

inline mtlshm_release()
{
	step(
		if
		:: belongs == me + 1 -> belongs = 0; held = token_of(owner, 0)
		:: else
		fi);
	if
	:: held -> step(swap(held, lease_of(parent)); assert(ok))
	:: else
	fi;
	held = 0; ok = false
}

inline forget()
{
	if
	:: belongs == me + 1 -> belongs = 0
	:: else
	fi;
	if
	:: me != STRANGER -> alive[me] = false; lends[me] = RESERVED_NOW && lends[me]
	:: else
	fi
}
inline mtlshm_unregister()
{
	step(forget());
	if
	:: parent -> step(writer[index] = 0); collect(owner)
	:: else ->
		lease_clear(owner, 0);
		step(control = records[index]);
		step(free_record(index));
		control = 0;
		step(writer[index] = 0)
	fi
}

inline kernel_drops_locks()
{
	i = 0;
	do
	:: i < RECORDS ->
		if
		:: writer[i] == me + 1 -> writer[i] = 0
		:: else
		fi;
		life_drop(i);
		i++
	:: else -> i = 0; break
	od
}

/* mtlshm_sweep() with nobody else about; twice, since what goes up may free what is above. */
inline sweep()
{
	atomic {
		i = 0;
		do
		:: i < 2 * RECORDS ->
			index = i % RECORDS;
			if
			:: control_state(records[index]) == LIVE && writer[index] == 0 ->
				whose = owner_make(index, control_generation(records[index]));
				above = parents[index];
				if
				:: lcore && owner_of(lcore) == whose -> lcore = lease_of(above)
				:: else
				fi;
				kept = above && (parents[0] == whose && control_state(records[0]) != FREE ||
						 parents[1] == whose && control_state(records[1]) != FREE ||
						 parents[2] == whose && control_state(records[2]) != FREE);
				if
				:: !kept -> records[index] = control_after(records[index])
				:: else
				fi
			:: else
			fi;
			i++
		:: else -> break
		od;
		if
		:: lcore && !segment_knows(owner_of(lcore)) -> lcore = 0
		:: else
		fi;
		i = 0; index = 0; whose = 0; above = 0; kept = false
	}
}

proctype member(byte me)
{
	byte remaining = LIVES, index, owner, parent, control, token, held, i, whose, next, above;
	bool ok, busy, kept, gone_by_us;

	do
	:: remaining > 0 ->
		remaining--;
		if
		:: me != ROOT -> known_as[me - 1] != 0 || gone > 0 /* the one above has started, or is gone without */
		:: else
		fi;
		if
		:: me == ROOT -> mtlshm_register(0)
		:: me != ROOT && known_as[me - 1] -> mtlshm_register(known_as[me - 1])
		:: me != ROOT && !known_as[me - 1] -> goto left
		fi;
		if
		:: me == LEAF -> mtlshm_claim(0); mtlshm_release()
		:: else -> mtlshm_claim(1)
		fi;
#ifdef RESERVATION
		if
		:: me == ROOT ->
			step(records[index] = control_make(owner_generation(owner), PROXIED));
			step(writer[index] = 0);
			goto left
		:: else
		fi;
#endif
#ifdef STAYS
		if
		:: me == ROOT ->
			gone == FAMILY; /* middle, leaf, stranger */
			sweep();
			assert(!lends[ROOT] || lcore == token_of(owner, 1))
		:: else
		fi;
#endif
		mtlshm_unregister();
	left:
		atomic { index = 0; owner = 0; parent = 0; ok = false; busy = false };
		goto next_life;
	died:
		atomic {
			forget(); kernel_drops_locks();
			index = 0; owner = 0; parent = 0; control = 0; token = 0; held = 0; i = 0; whose = 0; next = 0; above = 0;
			ok = false; busy = false; kept = false; gone_by_us = false
		};
	next_life:
		skip
	:: remaining == 0 -> break
	od;
	gone++
}

/* In its own record, the last one. */
proctype stranger()
{
	byte me = STRANGER, calls = CALLS, index, owner, parent, control, token, held, i, whose, next, above;
	bool ok, busy, kept, gone_by_us;

	owner = owner_make(RECORDS - 1, 1);
	do
	:: calls > 0 ->
		calls--;
#ifdef NEWCOMER
		index = owner; /* kept aside: a newcomer has no owner */
		if
		:: occupy(0); if :: ok -> step(writer[0] = 0) :: else fi
		:: occupy(1); if :: ok -> step(writer[1] = 0) :: else fi
		fi;
		owner = index; index = 0; ok = false;
#endif
#ifdef RESERVATION
		if
		:: known_as[ROOT] && !ended && control_state(records[owner_index(known_as[ROOT])]) == PROXIED -> /* mtlshm_end() */
			step(
				ended = true;
				records[owner_index(known_as[ROOT])] = control_after(records[owner_index(known_as[ROOT])]));
			lease_clear(known_as[ROOT], 0)
		:: true
		fi;
#endif
		mtlshm_claim(0);
		mtlshm_release()
	:: calls == 0 -> break
	od;
died:
	skip;
left:
	gone++
}

proctype last()
{
	byte i, index, whose, above;
	bool kept;

	gone == FAMILY + 1;
	atomic {
		i = 0;
		do
		:: i < RECORDS - 1 -> assert(writer[i] == 0 && readers[i] == 0); i++
		:: else -> break
		od;
#ifdef RESERVATION
		if
		:: known_as[ROOT] && control_state(records[owner_index(known_as[ROOT])]) == PROXIED ->
			records[owner_index(known_as[ROOT])] = control_after(records[owner_index(known_as[ROOT])])
		:: else
		fi;
#endif
	}
	sweep();
	atomic {
		assert(lcore == 0);
		i = 0;
		do
		:: i < RECORDS - 1 -> assert(control_state(records[i]) == FREE); i++
		:: else -> break
		od
	}
}

init
{
	atomic {
		records[RECORDS - 1] = control_make(1, LIVE);
		writer[RECORDS - 1] = STRANGER + 1;
		run member(ROOT);
		run member(MIDDLE);
		run member(LEAF);
		run stranger();
		run last()
	}
}
