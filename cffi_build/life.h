/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef MTLSHM_LIFE_H
#define MTLSHM_LIFE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

struct mtlshm_host;

/* A visit to the segment's locks: an open file description of our own, for the length of one call. While
 * it lasts no other thread of the process can fork. */
struct life {
	int fd;
	int cancel_state;
};

/* Prepare the process; idempotent, called before anything else here. */
int life_init(void);

/* Enter without, and with, opening the segment again. `mode` is O_RDONLY or O_RDWR; the close of a writer
 * wakes the daemon, that of a reader does not. life_enter() fails with -ESTALE if the path is another file
 * by now, with -EBADMSG if the file was cut short; on failure nothing is held. */
void life_guard(struct life *life);
int life_enter(struct life *life, const struct mtlshm_host *host, int mode);
void life_leave(struct life *life);

/* Byte locks: 0, LIFE_TAKEN if somebody else's is in the way, or a negative errno. LIFE_TAKEN is no errno: what fails for
 * another reason must never look like a living owner. */
enum { LIFE_TAKEN = 1 };
int life_share(const struct life *life, off_t byte);
int life_take(const struct life *life, off_t byte);
void life_drop(const struct life *life, off_t byte);

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
