/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef MTLSHM_LIFE_H
#define MTLSHM_LIFE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

/* A visit holds at most this many bytes at once: the daemon's, its own record's, that of a parent it collects. */
enum { LIFE_LOCKS = 4 };

/* A visit to the segment's locks: an open file description of our own, for the length of one call. While
 * it lasts no other thread of the process can fork. */
struct life {
	int fd;
	int cancel_state;
	int locks; /* how many bytes this visit holds, */
	off_t locked[LIFE_LOCKS];
};

/* Prepare the process; idempotent, called before anything else here. */
int life_init(void);

/* Take the guard, without a file, and give it back, closing the file if there is one. Not recursive. host_enter() opens
 * the segment's file as well. */
void life_guard(struct life *life);
void life_leave(struct life *life);

/* Does the calling thread hold the guard? For assertions; what the guard protects is said in life.c. */
bool life_guarded(void);

/* Byte locks: 0, LIFE_TAKEN if somebody else's is in the way, or a negative errno. LIFE_TAKEN is no errno: what fails for
 * another reason must never look like a living owner. */
enum { LIFE_TAKEN = 1 };
int life_share(struct life *life, off_t byte);
int life_take(struct life *life, off_t byte);
void life_drop(struct life *life, off_t byte);

/* Does this visit hold a lock, of either kind, on the byte? For assertions: no system call. */
bool life_holds(const struct life *life, off_t byte);

/* Does anyone else hold a write lock on any of `count` bytes (0: all from `byte` on)? 1, 0 or a negative errno. */
int life_held(const struct life *life, off_t byte, off_t count);

/* Does anyone else hold a lock of any kind on any byte of the file? For a file whose layout may not be ours. */
int life_locked(const struct life *life);

/* Tie the locks of this visit to the address space: they end when *pin is unmapped, or the process. */
int life_pin(const struct life *life, void **pin);
void life_unpin(void *pin);

off_t life_byte(uint64_t owner);

/* A number for this process, different in every forked child. life_process is a hot-path load; in a new child
 * it reads 0 until life_adopt() gives it one of its own, under the guard. */
extern const uint64_t *life_epoch;
uint64_t life_adopt(void);

static inline uint64_t life_process(void)
{
	return __atomic_load_n(life_epoch, __ATOMIC_RELAXED);
}

#endif
