/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The table as we ourselves read it, by the layout in mtlshm.h. The core, which is what is tried, has no part in it,
 * and nothing of its internal headers is used.
 */
#ifndef TABLE_H
#define TABLE_H

#include <stdbool.h>
#include <stdint.h>

#include "mtlshm.h"

/* Written only to put it back as it was. */
extern struct mtlshm_segment *segment;

/* Map what the path names now, in place of what was mapped before. */
void map_table(const char *path);

static inline uint64_t owner_in(uint64_t token)
{
	return token & ~UINT64_C(0xff);
}

static inline uint32_t index_in(uint64_t owner)
{
	return (uint32_t)(owner >> MTLSHM_TYPE_BITS & 0xfff);
}

static inline uint64_t generation_in(uint64_t owner)
{
	return owner >> (MTLSHM_TYPE_BITS + MTLSHM_INDEX_BITS);
}

static inline uint64_t control_of(uint32_t index)
{
	return segment->instances[index].control;
}

static inline uint64_t state_of(uint32_t index)
{
	return control_of(index) & 0xff;
}

/* Who is, or was last, in that record. */
uint64_t owner_of_record(uint32_t index);

/* Does the record of this owner say so? */
bool known(uint64_t owner);

/* Is it the ancestor's, or that of a tenant of its, or of that one's, and so on? */
bool descends(uint64_t owner, uint64_t ancestor);

/* Does a record that is known name it as parent? */
bool has_tenants(uint64_t owner);

/* How many lcores are this owner's. */
uint32_t lcores_of(uint64_t owner);

/* Is there a write lock on that life, or, with F_WRLCK for F_RDLCK, any? */
bool locked(uint32_t index, short against);

/* Is the header as it was then? State, semaphore and counters, which follow, may change. */
bool header_is_still(const struct mtlshm_header *then);

#endif
