/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Model of semaphore.c: three processes lock, unlock and die at any step. Steps have the names of the C functions; each
 * is one access to the word, a question to the life lock, or a system call. Of so many UNLOCKERS each is another
 * thread of one of them, which unlocks once in each life of its process, at any time: the semaphore is the instance's,
 * not the thread's.
 *
 * Shown:
 *
 *   one at a time   nobody has the semaphore together with somebody else who lives
 *   own             nobody gives back what another has
 *   told            mtlshm_lock() returns 1 if and only if the holder before died holding it
 *   no way stuck    whoever waits gets it: without DEATHS no sleep ever has to end by its limit, with DEATHS all get it, if
 *                   sleeps have one (LIMIT)
 *
 * Whether somebody lives is asked here in one step; that mtlshm_alive() is right is lease.pml's. A holder that is dead
 * is known as such by the life of its token: each life of a process is another owner.
 */
#define PROCESSES 3

#define WAITERS 128
#define owner_of(word) ((word) & 127)
#define owner_make(process, life) ((process) * LIVES + (life) + 1)
#define process_of(owner) (((owner) - 1) / LIVES)

byte semaphore;
bool asleep[PROCESSES];
byte alive_as[PROCESSES];  /* owner; 0: dead, or between two lives */
byte holder;               /* who has it, in truth: owner, also of one that has died since */
byte deaths = DEATHS;

#define mtlshm_alive(owner) (alive_as[process_of(owner)] == (owner))

#define step(what)                                                        \
	atomic {                                                          \
		if                                                        \
		:: deaths > 0 -> deaths--; goto died                      \
		:: true                                                   \
		fi;                                                       \
		what                                                      \
	}

inline swap(expected, desired)
{
	if
	:: semaphore == expected -> semaphore = desired; ok = true
	:: else -> expected = semaphore; ok = false
	fi
}

inline got(result)
{
	if
	:: ok ->
		assert(holder == 0 || !mtlshm_alive(holder)); /* one at a time */
		assert((result == 1) == (holder != 0));        /* told */
		holder = owner
	:: else
	fi
}

inline sleep_on(expected)
{
	if
	:: semaphore == (expected) -> asleep[me] = true
	:: else
	fi
}

inline lock_slowly()
{
	do
	:: step(held = semaphore);
		if
		:: owner_of(held) == 0 ->
			step(swap(held, owner | WAITERS); got(0))
		:: else ->
			step(alive = mtlshm_alive(owner_of(held)));
			if
			:: !alive ->
				step(swap(held, owner | WAITERS); got(1))
			:: else ->
				ok = true;
				if
				:: !(held & WAITERS) -> step(swap(held, held | WAITERS))
				:: else
				fi;
				if
				:: ok ->
					step(sleep_on(held | WAITERS));
					ok = false;
					do
					:: !asleep[me] -> break
					:: asleep[me] -> step(wake_up())
					od
				:: else
				fi
			fi
		fi;
		if
		:: ok -> break
		:: else
		fi
	od
}

inline wake_up()
{
#ifdef LIMIT
	asleep[me] = false /* woken, or the limit has come */
#else
	!asleep[me]
#endif
}

inline mtlshm_lock()
{
	held = 0;
	step(swap(held, owner); got(0));
	if
	:: !ok -> lock_slowly()
	:: else
	fi;
	ok = false; held = 0; alive = false
}

inline wake_one()
{
	if
	:: asleep[0] -> asleep[0] = false
	:: asleep[1] -> asleep[1] = false
	:: asleep[2] -> asleep[2] = false
	:: !asleep[0] && !asleep[1] && !asleep[2]
	fi
}

inline mtlshm_unlock()
{
	step(held = semaphore);
	do
	:: owner_of(held) == owner ->
		step(swap(held, 0); if :: ok -> assert(holder == owner); holder = 0 :: else fi); /* own */
		if
		:: ok ->
			if
			:: held & WAITERS -> step(wake_one())
			:: else
			fi;
			break
		:: else
		fi
	:: else -> break /* EPERM */
	od;
	ok = false; held = 0
}

proctype process(byte me)
{
	byte life, owner, held;
	bool ok, alive;

	do
	:: life < LIVES ->
		atomic { owner = owner_make(me, life); alive_as[me] = owner };
		mtlshm_lock();
		mtlshm_unlock();
		goto next;
	died:
		atomic { asleep[me] = false; held = 0; ok = false; alive = false };
	next:
		atomic { alive_as[me] = 0; owner = 0; life++ }
	:: else -> break
	od
}

#ifdef UNLOCKERS
/* It dies with its process. (One that outlives unregister() finds no word of that owner: each has unlocked before.) */
#undef step
#define step(what)                                                        \
	atomic {                                                          \
		if                                                        \
		:: alive_as[me] != owner -> goto died                     \
		:: else                                                   \
		fi;                                                       \
		what                                                      \
	}

proctype unlocker(byte me)
{
	byte life, owner, held;
	bool ok;

	do
	:: life < LIVES ->
	end: /* there may come no other life */
		atomic { alive_as[me] -> owner = alive_as[me]; life = owner - owner_make(me, 0) };
		mtlshm_unlock();
	died:
		atomic { held = 0; ok = false; owner = 0; life++ }
	:: else -> break
	od
}
#endif

init
{
	atomic {
		run process(0);
		run process(1);
		run process(2);
#ifdef UNLOCKERS
		byte i;
		for (i : 0 .. UNLOCKERS - 1) {
			run unlocker(i)
		}
#endif
	}
}
