/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Model of life.c, instance.c and lease.c: processes register, claim, collect the dead, release, unregister, and die at
 * any step. Steps have the names of the C functions; each is one access to what is shared: a load, a compare-and-
 * swap, a lock. Memory is sequentially consistent here, which the C code's is not: what its barriers are for is not shown.
 *
 * Shown for PROCESSES that live LIVES times each, with RECORDS records and LCORES lcores, DEATHS of them in between:
 *
 *   owned once   whoever is given an lcore is the only one alive who thinks he has it
 *   kept         nobody takes an lcore from who lives
 *   justified    -EBUSY is said only of an lcore whose owner lived at that moment
 *   no mistake   nobody ever holds a write lock on the record of a dead instance
 *   nothing left when all are gone, a sweep leaves every lcore and record free
 *
 * Left out: proxied records (transfer.pml), parents and tenants (tenancy.pml), the retired segment (segment.pml), claims of
 * several lcores and several threads (policy.pml).
 */
#define PROCESSES 3

#define FREE 0
#define LIVE 1

/* Tokens: 0, or the owner; no types. */
#define owner_make(index, generation) ((generation) * RECORDS + (index) + 1)
#define owner_index(owner) (((owner) - 1) % RECORDS)
#define owner_generation(owner) (((owner) - 1) / RECORDS)
#define control_make(generation, state) ((generation) * 2 + (state))
#define control_generation(control) ((control) / 2)
#define control_free(control) ((control) % 2 == FREE)
#define control_after(control) control_make(control_generation(control) + 1, FREE)
#define segment_knows(owner) (records[owner_index(owner)] == control_make(owner_generation(owner), LIVE))

byte records[RECORDS] = control_make(1, FREE); /* the control words */
byte lcores[LCORES];
byte writer[RECORDS];                          /* the life locks: process + 1, */
byte readers[RECORDS];                         /* and a bit for each process */

/* What is true, whatever the table says. */
byte lives_as[PROCESSES];                      /* owner, while its record says LIVE */
byte belongs[LCORES];                          /* process + 1 that was told it has the lcore, and lives */
byte deaths = DEATHS;
byte gone;

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
	:: ok -> readers[index] = 0; writer[index] = me + 1; assert(control_free(records[index]))
	:: else
	fi
}

inline life_drop(index)
{
	readers[index] = readers[index] & ~(1 << me)
}

inline swap(lcore, expected, desired)
{
	if
	:: lcores[lcore] == expected -> lcores[lcore] = desired; ok = true
	:: else -> expected = lcores[lcore]; ok = false
	fi
}

inline must_be_nobodys(lcore)
{
	assert(belongs[lcore] == 0)
}

#define lives(owner) (lives_as[0] == (owner) || lives_as[1] == (owner) || lives_as[2] == (owner))

/* Everything a process does is a step, before which it may die. */
#define step(what)                                                        \
	atomic {                                                          \
		if                                                        \
		:: deaths > 0 -> deaths--; goto died                      \
		:: true                                                   \
		fi;                                                       \
		what                                                      \
	}

inline lease_clear(whose)
{
	i = 0;
	do
	:: i < LCORES ->
		step(token = lcores[i]);
		if
		:: token == whose -> step(clear_one())
		:: else
		fi;
		i++
	:: else -> i = 0; break
	od;
	token = 0
}

inline clear_one()
{
	if
	:: lcores[i] == token -> assert(belongs[i] == 0); lcores[i] = 0
	:: else
	fi
}

inline lease_collect(whose)
{
	lease_clear(whose);
	step(control = records[owner_index(whose)]);
	if
	:: control == control_make(owner_generation(whose), LIVE) ->
		step(free_record(owner_index(whose)))
	:: else
	fi;
	control = 0
}

inline free_record(index)
{
	if
	:: records[index] == control -> records[index] = control_after(control)
	:: else
	fi
}

/* Sets ok if the owner lives (-EBUSY). */
inline collect(whose)
{
	step(life_share(owner_index(whose), ok); justified = ok || lives(whose));
	if
	:: !ok ->
		step(ok = segment_knows(whose))
	:: else ->
		step(ok = segment_knows(whose));
		if
		:: ok -> lease_collect(whose)
		:: else
		fi;
		step(life_drop(owner_index(whose)));
		ok = false
	fi
}

inline occupy(index)
{
	step(life_share(index, ok));
	if
	:: ok ->
		step(control = records[index]);
		if
		:: !control_free(control) ->
			owner = owner_make(index, control_generation(control));
			lease_collect(owner);
			owner = 0
		:: else -> control = 0
		fi;
		step(life_take(index, ok));
		if
		:: !ok -> step(life_drop(index))
		:: else
		fi
	:: else
	fi
}

inline mtlshm_register()
{
	do
	:: index = 0; occupy(0); if :: ok -> break :: else fi
#if RECORDS == 2
	:: index = 1; occupy(1); if :: ok -> break :: else fi
#endif
	:: goto left /* -EUSERS */
	od;
	step(owner = owner_make(index, control_generation(records[index])));
	step(records[index] = control_make(owner_generation(owner), LIVE); lives_as[me] = owner)
}

inline got()
{
	must_be_nobodys(lcore);
	belongs[lcore] = me + 1
}

inline mtlshm_claim()
{
	held = 0;
	step(swap(lcore, held, owner); if :: ok -> got() :: else fi);
	do
	:: ok -> break
	:: !ok && held == owner -> break /* -EALREADY */
	:: !ok && held != owner ->
		if
		:: held -> step(ok = segment_knows(held))
		:: else
		fi;
		if
		:: ok ->
			collect(held);
			if
			:: ok -> assert(justified); ok = false; break /* -EBUSY */
			:: else
			fi;
			step(held = lcores[lcore])
		:: else ->
			step(swap(lcore, held, owner); if :: ok -> got() :: else fi)
		fi
	od;
	held = 0; ok = false; justified = false
}

inline mtlshm_release()
{
	step(if :: belongs[lcore] == me + 1 -> belongs[lcore] = 0; held = 1 :: else fi);
	if
	:: held -> held = owner; step(swap(lcore, held, 0); assert(ok)) 
	:: else
	fi;
	held = 0; ok = false
}

inline forget_lcores()
{
	i = 0;
	do
	:: i < LCORES -> if :: belongs[i] == me + 1 -> belongs[i] = 0 :: else fi; i++
	:: else -> i = 0; break
	od
}

inline mtlshm_unregister()
{
	step(forget_lcores());
	lease_clear(owner);
	step(control = records[index]);
	step(free_record(index); lives_as[me] = 0);
	control = 0;
	step(writer[index] = 0) /* life_unpin */
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

proctype process(byte me)
{
	byte remaining = LIVES, calls, index, owner, control, token, held, lcore, i;
	bool ok, justified;

	do
	:: remaining > 0 ->
		remaining--;
		mtlshm_register();
		calls = CALLS;
		do
		:: calls > 0 ->
			calls--;
			if
			:: lcore = 0
			:: lcore = LCORES - 1
			fi;
			if
			:: mtlshm_claim()
			:: mtlshm_release()
			fi;
			lcore = 0
		:: calls == 0 -> break
		od;
		mtlshm_unregister();
	left:
		atomic { index = 0; owner = 0; ok = false; lcore = 0; calls = 0 };
		goto next;
	died:
		atomic {
			forget_lcores(); lives_as[me] = 0; kernel_drops_locks();
			calls = 0; index = 0; owner = 0; control = 0; token = 0; held = 0; lcore = 0; i = 0;
			ok = false; justified = false
		};
	next:
		skip
	:: remaining == 0 -> break
	od;
	gone++
}

/* mtlshm_sweep(), when all are gone. */
proctype last()
{
	byte i, j;

	gone == PROCESSES;
	atomic {
		for (i : 0 .. RECORDS - 1) {
			assert(writer[i] == 0 && readers[i] == 0);
			if
			:: !control_free(records[i]) ->
				for (j : 0 .. LCORES - 1) {
					if
					:: lcores[j] == owner_make(i, control_generation(records[i])) -> lcores[j] = 0
					:: else
					fi
				};
				records[i] = control_after(records[i])
			:: else
			fi
		};
		for (j : 0 .. LCORES - 1) {
			assert(lcores[j] == 0)
		}
	}
}

init
{
	atomic {
		run process(0);
		run process(1);
		run process(2);
		run last()
	}
}
