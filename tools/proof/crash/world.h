/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The world around the victim, made by real processes, and what each of them was told:
 *
 *   bystander  record 0, ourselves: has lcores 0 and 1, and lives
 *   dead       record 1: had lcores 2 and 3, was killed; nobody has collected it
 *   proxied    record 2: has lcore 4
 *   dead, too  record 3: had lcores 6 and 7
 *
 * And in a FAMILY, where the bystander lends lcores 11 to 13 to its tenants:
 *
 *   middle     record 4: a tenant of the bystander, had 12 and 13 for tenants of its own
 *   leaf       record 5: a tenant of middle, had 13; the two were killed together
 *
 * It is restored from a copy before each victim. Of the dead and the proxied nothing is left but what they wrote, so
 * that copy is all there is to restore; what the bystander and a rival have besides, their life locks, outlasts it or
 * is given back.
 */
#ifndef WORLD_H
#define WORLD_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "mtlshm.h"

enum {
	LCORES = 16, /* the machine's; the table has 128 */
	TARGET = 8,  /* what the victim deals in: 8, 9, 10 */
	LENT = 11,   /* what the bystander lends: 11, 12, 13 */
	LENT_COUNT = 3,
	RESERVED_COUNT = 2,
};

#define RESERVED_KEY "crash"

enum world_kind {
	USUAL = 0,
	DEAD_HAS_SEMAPHORE = 1,
	BYSTANDER_HAS_SEMAPHORE = 2,
	ALMOST_FULL = 4, /* all records proxied but those of the dead */
	NOBODY = 8,      /* an empty segment */
	NO_SEGMENT = 16,
	RETIRED = 32, /* an empty segment, which somebody is about to remove */
	FAMILY = 64,
};

/* What a process has been told is its own. It stops believing so before it gives back. */
struct mind {
	struct mtlshm_instance *instance; /* good in that process only */
	int rc;
	uint64_t owner;  /* 0: not registered */
	uint64_t parent; /* to be, when it registers; 0: none */
	uint64_t proxy;
	uint64_t reservation;  /* made, or about to be ended, */
	bool reserved[LCORES]; /* and what it was told is in it */
	bool semaphore;
	bool has[LCORES];
	bool had[LCORES];
	uint32_t refused; /* an lcore, the last that it was not given */
	ino_t inode;      /* of the segment it has seen, where that matters */
};

struct world {
	enum world_kind kind;
	const char *path, *sysfs;
	struct mtlshm_cpuset all;
	struct mtlshm_host *host;
	struct mind bystander, rival, *victim; /* the victim's is shared with it */
	uint64_t dead, proxied, middle, leaf;  /* owners */
	struct mtlshm_segment before;          /* the table as a victim finds it */
};

extern struct world world;

void make_world(enum world_kind kind, const char *path, const char *sysfs);

/* As a victim finds it. */
void restore_world(void);

/* Is it about the segment's file, and is nobody there? */
bool about_the_file(void);

/* Is that lcore one that the bystander lends? */
bool lent(uint32_t lcore);

/* Have the segment that the path names now, or make it; lets go of one that we retired. */
void reopen(void);

/* Become an instance, which may claim any lcore; claim that one. */
void enter(struct mind *who);
void take(struct mind *who, uint32_t lcore);

/* A proxied instance, of a kind that gives up lcores to others; returns its owner. */
uint64_t add_proxy(struct mtlshm_instance **result);

/* Somebody comes, has the two lcores and, if so, the semaphore, and is killed. */
void die_holding(uint32_t first, uint32_t second, bool semaphore);

/* Of a child that was killed. */
void await_death(pid_t pid);

#endif
