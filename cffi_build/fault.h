/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef MTLSHM_FAULT_H
#define MTLSHM_FAULT_H

#include <stdbool.h>

/* A mapping of the table, known to the handler. Never freed, since a handler may be looking at it. */
struct watched {
	char *memory; /* NULL: not in use, may be given to the next; atomic */
	int lost;     /* the file was cut short under it, and the memory is ours alone now; atomic */
	struct watched *next;
};

/* Under the guard of life.h. NULL: out of memory. */
struct watched *fault_watch(void *memory);
void fault_forget(struct watched *watched);

static inline bool fault_seen(const struct watched *watched)
{
	return __atomic_load_n(&watched->lost, __ATOMIC_RELAXED);
}

#endif
