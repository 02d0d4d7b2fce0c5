/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What clients of all kinds are: somebody with a slot in the observer's record (witness.h), who throws dice and
 * remembers what it was given. Whoever is given an lcore says so with got() at once, and with gives() just before
 * giving it back.
 */
#ifndef CLIENT_H
#define CLIENT_H

#include <stdbool.h>
#include <stdint.h>

#include "../witness.h"

struct client {
	const char *segment, *sysfs;
	const char *socket;
	const char *key, *lock; /* of the legacy table */
	uint32_t lcores;        /* how many there are */
	const char *record;     /* the file of: */
	struct witness *witness;
	uint32_t kind, slot; /* in the record */
	uint32_t held[WITNESS_LCORES], held_count;
};

extern struct client self;

/* `arguments` are those of the program, which has another seed among them when it becomes another. */
void set_dice(char **arguments);
uint32_t throw_dice(uint32_t sides);

/* For less than so long. */
void doze(uint32_t most_us);

bool is_held(uint32_t lcore);
void got(uint32_t lcore);

/* Which is at that position of what it holds; returns the lcore. */
uint32_t gives(uint32_t position);
void give_all(void);

/* Begin to live in the slot, with nothing. */
void begin(uint32_t slot);

/* End, without giving anything back; exec the same program, which begins anew. */
_Noreturn void end(void);
_Noreturn void become_another(void);

/* Returns 0 in a child, which begins to live in the other slot. Once in a life, as it may still be there. Families have
 * more than two slots, and choose one. */
int fork_once(void);
void begin_as_child(void);
void begin_as_child_at(uint32_t slot);

#endif
