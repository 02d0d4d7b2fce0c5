/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The open segment: what a handle holds, how its table is read, and how its file is opened once more.
 *
 * Nothing in the table is trusted: an index is checked in segment_record(), an owner in segment_knows().
 */
#ifndef MTLSHM_HOST_H
#define MTLSHM_HOST_H

#include <stdbool.h>
#include <stddef.h>

#include "fault.h"
#include "life.h"
#include "mtlshm.h"
#include "token.h"

struct mtlshm_host {
	/* Constant while the handle is open: */
	struct mtlshm_segment *segment;
	struct watched *watched; /* see fault.c */
	uint32_t lcores;         /* header.lcores, checked */
	bool read_only;
	char *path;
	char *sysfs;             /* NULL: /sys */
	uint32_t replaced;       /* the version of the layout that was there before, or 0 */
	struct mtlshm_file file; /* what is mapped: any file opened at `path` later must be this one */

	unsigned int instances;            /* handles not yet freed; atomic */
	struct topology_cache *topologies; /* written under the guard of life.h, read atomically */

	/* Under the guard of life.h: */
	int entry;                  /* a description of the file that stays open, or -1: see host_reenter(), */
	uint64_t entry_process;     /* and life_process() of the process that opened it */
	void *burial;               /* pin of the burial lock, if this handle retired the segment, */
	uint64_t burial_process;    /* and life_process() of the process that did */
	struct mtlshm_process self; /* this process, read from /proc, */
	uint64_t self_process;      /* and its life_process() */
};

/* Enter the guard and open the segment's file once more; life_leave() undoes both. `mode` is O_RDONLY or O_RDWR; the close
 * of a writer wakes the daemon, that of a reader does not.
 *
 * Errors: -ESTALE the path is another file by now; -EBADMSG the file was cut short; those of open(2). Nothing is held then. */
int host_enter(struct life *life, const struct mtlshm_host *host, int mode);

/* The same as a writer, without its close: the description stays open for the next time, until host_forget(). It is for who
 * does so often and is the daemon itself. host_releave() undoes it. */
int host_reenter(struct life *life, struct mtlshm_host *host);
void host_releave(struct life *life);
void host_forget(struct mtlshm_host *host);

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
	(void)__atomic_load_n((const volatile uint64_t *)(host->segment + 1) - 1, __ATOMIC_RELAXED);
	return __builtin_expect(fault_seen(host->watched), 0);
}

static inline void segment_count(uint64_t *counter, uint64_t by)
{
	__atomic_fetch_add(counter, by, __ATOMIC_RELAXED);
}

#endif
