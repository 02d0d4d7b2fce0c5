/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Model of segment.c and retire.c: processes find no segment and make one, register in it, retire and remove it, bury one whose remover
 * died, and die at any step. Steps have the names of the C functions; each is one system call or one access to the state.
 *
 * Shown, for three processes that each go through LIVES lives:
 *
 *   whole       nobody ever attaches to a segment that is not complete
 *   one truth   all who are registered and live are in one and the same segment, and it has the name
 *   not stuck   nobody waits for ever: from each state all can come to an end
 *
 * Files are numbered in the order in which they get the name; 0 is no file. A life lock is a bit here, which of the records it is
 * about does not matter. The file's name goes only by unlink() of those who follow the protocol: rm(1) is not in it.
 */
#define PROCESSES 3
#define FILES (PROCESSES * LIVES + 2) /* each is removed at most once by somebody's remove(), or by whoever buries it */

#define IN_USE 1
#define RETIRED 2

byte name;                /* what the path leads to */
byte last_file;
byte state[FILES];        /* 0: not filled */
byte life_locks[FILES];   /* a bit for each process that holds one */
byte burial[FILES];       /* who holds the lock: process + 1 */
byte registered[PROCESSES]; /* in truth: the file it is registered in, and lives */
byte deaths = DEATHS;

#define anyone_alive(file) (life_locks[file] != 0)
#define still_named(file) (name == (file))

#define step(what)                                                        \
	atomic {                                                          \
		if                                                        \
		:: deaths > 0 -> deaths--; goto died                      \
		:: true                                                   \
		fi;                                                       \
		what                                                      \
	}

inline take_burial(file)
{
	ok = burial[file] == 0;
	if
	:: ok -> burial[file] = me + 1
	:: else
	fi
}

inline life_leave(file)
{
	if
	:: burial[file] == me + 1 -> burial[file] = 0
	:: else
	fi
}

inline link()
{
	if
	:: name == 0 -> last_file++; name = last_file; state[name] = filled
	:: else
	fi
}

/* O_TMPFILE, filled, then linked. */
inline create()
{
	step(filled = IN_USE);
	step(link()); /* EEXIST: somebody was faster */
	filled = 0
}

inline bury()
{
	step(ok = still_named(file)); /* host_enter */
	if
	:: ok ->
		step(take_burial(file));
		if
		:: ok ->
			step(ok = still_named(file));
			if
			:: ok -> step(ok = state[file] == RETIRED)
			:: else
			fi;
			if
			:: ok ->
				step(ok = anyone_alive(file));
				if
				:: ok -> step(state[file] = IN_USE)
				:: else -> step(name = 0) /* unlink: whatever has the name by now */
				fi
			:: else
			fi;
			step(life_leave(file))
		:: else -> step(burial[file] == 0 || !still_named(file)) /* nap */
		fi
	:: else
	fi;
	ok = false
}

inline attach_or_create()
{
	do
	:: step(file = name);
		if
		:: file == 0 -> create()
		:: else ->
			step(assert(state[file] != 0); ok = state[file] != RETIRED);
			if
			:: ok -> step(ok = still_named(file))
			:: else -> bury()
			fi;
			if
			:: ok -> ok = false; break
			:: else
			fi
		fi
	od
}

inline must_be_the_only_segment()
{
	assert(name == file);
	assert(registered[0] == 0 || registered[0] == file);
	assert(registered[1] == 0 || registered[1] == file);
	assert(registered[2] == 0 || registered[2] == file)
}

/* Sets ok if it worked; else -ESTALE. */
inline mtlshm_register()
{
	step(ok = still_named(file)); /* host_enter */
	if
	:: ok ->
		step(life_locks[file] = life_locks[file] | (1 << me)); /* and LIVE, before the next */
		step(ok = state[file] == IN_USE; if :: ok -> registered[me] = file; must_be_the_only_segment() :: else fi);
		if
		:: !ok -> step(life_locks[file] = life_locks[file] & ~(1 << me))
		:: else
		fi
	:: else
	fi
}

inline mtlshm_unregister()
{
	step(registered[me] = 0; life_locks[file] = life_locks[file] & ~(1 << me))
}

/* mtlshm_retire(), unlink() by the caller, mtlshm_close(). */
inline remove()
{
	step(ok = still_named(file)); /* host_enter */
	if
	:: ok ->
		step(take_burial(file));
		if
		:: ok ->
			step(ok = still_named(file));
			if
			:: ok -> step(ok = !anyone_alive(file))
			:: else
			fi;
			if
			:: ok ->
				step(state[file] = RETIRED);
				step(ok = !anyone_alive(file));
				if
				:: !ok -> step(state[file] = IN_USE)
				:: else ->
					if
					:: step(name = 0)  /* the caller removes it, */
					:: true            /* or does not */
					fi;
					step(ok = still_named(file)); /* host_free */
					if
					:: ok -> step(state[file] = IN_USE)
					:: else
					fi
				fi
			:: else
			fi;
			step(life_leave(file))
		:: else
		fi
	:: else
	fi;
	ok = false
}

inline kernel_drops_locks()
{
	i = 1;
	do
	:: i < FILES ->
		life_leave(i);
		life_locks[i] = life_locks[i] & ~(1 << me);
		i++
	:: else -> i = 0; break
	od
}

proctype process(byte me)
{
	byte life, file, filled, i;
	bool ok;

	do
	:: life < LIVES ->
		attach_or_create();
		if
		:: mtlshm_register();
			if
			:: ok -> mtlshm_unregister(); ok = false
			:: else
			fi
		:: remove()
		fi;
		goto next;
	died:
		atomic { registered[me] = 0; kernel_drops_locks(); ok = false; filled = 0 };
	next:
		atomic { file = 0; life++ }
	:: else -> break
	od
}

init
{
	atomic {
		run process(0);
		run process(1);
		run process(2)
	}
}
