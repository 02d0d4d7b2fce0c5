/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef MTLSHM_FAULT_H
#define MTLSHM_FAULT_H

#include <stdbool.h>

#include "mtlshm.h"

/* A mapping of the table, known to the handler. Never freed, since a handler may be looking at it. */
struct watched {
	char *memory; /* NULL: not in use, may be given to the next; atomic */
	int lost;     /* the file was cut short under it, and the memory is ours alone now; atomic */
	struct watched *next;
};

/* Map the table of an open file, watched from then on, and take both back. Under the guard of life.h. `protection` as for
 * mmap(2), `path` is for people. Returns 0, -ENOMEM, or what mmap(2) gave. */
int fault_map(struct watched **watched, int fd, int protection, const char *path);
void fault_unmap(struct watched *watched);

/* Where it is mapped: the same address until fault_unmap(). */
static inline struct mtlshm_segment *fault_table(const struct watched *watched)
{
	return (struct mtlshm_segment *)watched->memory;
}

static inline bool fault_seen(const struct watched *watched)
{
	return __atomic_load_n(&watched->lost, __ATOMIC_RELAXED);
}

#endif
