/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef MTLSHM_SEGMENT_H
#define MTLSHM_SEGMENT_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "fault.h"
#include "life.h"
#include "mtlshm.h"
#include "token.h"

struct mtlshm_host {
	struct mtlshm_segment *segment;
	struct watched *watched; /* see fault.c */
	uint32_t lcores;  /* header.lcores, checked */
	uint32_t replaced; /* the version of the layout that was there before, or 0 */
	bool read_only;
	char *path;
	char *sysfs;      /* NULL: /sys */
	struct mtlshm_file file; /* what is mapped: whatever is opened at `path` later must be this */
	unsigned int instances;           /* handles not yet freed; atomic */
	void *burial;                     /* pin of the burial lock, if this handle retired the segment, */
	uint64_t burial_process;          /* and life_process() of who did */
	struct machine *machine;          /* see machine.h; atomic */
	struct mtlshm_process self;       /* who we are, read from /proc; under the guard of life.h, */
	uint64_t self_process;            /* and of which life_process() */
};

/* What every header of this layout says. */
extern const char segment_magic[8];
uint64_t segment_fingerprint(void);

/* Is the open file, which has this header, left over from another boot or host? 1, 0 or a negative errno. */
int segment_stale(const struct life *life, const struct mtlshm_header *header);

int segment_lcores(const char *sysfs, uint32_t *lcores);

/* The segment's file cannot be opened in this mode, or is no file: note why, see failure.h. Returns -EBADMSG for what is
 * no file, else -errno. */
int segment_no_file(const char *path, int mode);

/* Of retire.c. Does the path lead to what is mapped? Is that marked as retired? */
bool segment_named(const struct mtlshm_host *host);
bool segment_retired(const struct mtlshm_host *host);

/* Remove a retired segment whose remover died, or take its mark off. 0 (look anew) or a negative errno. */
int segment_bury(struct mtlshm_host *host);

/* This handle closes: if it retired the segment and that still has its name, it is in use again. */
void segment_unretire(struct mtlshm_host *host);

/* The record of an owner found in the segment, or NULL if no record can have that index. */
static inline struct mtlshm_record *segment_record(const struct mtlshm_host *host, uint64_t owner)
{
	uint32_t index = owner_index(owner);

	return index < MTLSHM_INSTANCES ? &host->segment->instances[index] : NULL;
}

/* Does the table still know this owner? If not, it never will again: generations only rise, and an lcore is
 * given only to an owner whose record has gone LIVE or PROXIED, so the token is a leftover and the lcore is free.
 * Call it after reading the token: acquire pairs with the release of the change to FREE. */
static inline bool segment_knows(const struct mtlshm_host *host, uint64_t owner)
{
	const struct mtlshm_record *record = segment_record(host, owner);

	return record && control_of(__atomic_load_n(&record->control, __ATOMIC_ACQUIRE), owner);
}

/* Is it a proxied one, of which only a daemon knows whether it lives? */
static inline bool segment_proxied(const struct mtlshm_host *host, uint64_t owner)
{
	return segment_knows(host, owner) &&
	       control_proxied(__atomic_load_n(&segment_record(host, owner)->control, __ATOMIC_RELAXED));
}

/* Was the file cut short, and is the table we see no longer anybody else's? Asked after each refusal, and after
 * each look at the table whose answer somebody believes; see fault.c. The last word is read because a file cut
 * elsewhere raises no signal where it still has a page. */
static inline bool segment_lost(const struct mtlshm_host *host)
{
	(void)*(volatile const uint64_t *)&host->segment->lcores[MTLSHM_LCORES - 1].note;
	return __builtin_expect(fault_seen(host->watched), 0);
}

static inline void segment_count(uint64_t *counter, uint64_t by)
{
	__atomic_fetch_add(counter, by, __ATOMIC_RELAXED);
}

#endif
