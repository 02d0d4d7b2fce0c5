/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Taking tokens and control words apart; what they mean is said in mtlshm.h. Whatever comes out of a word
 * read from the segment may be anything: segment_record() is where an index is checked.
 */
#ifndef MTLSHM_TOKEN_H
#define MTLSHM_TOKEN_H

#include <stdbool.h>

#include "mtlshm.h"

#define TOKEN_TYPE_MASK ((UINT64_C(1) << MTLSHM_TYPE_BITS) - 1)
#define TOKEN_INDEX_MASK ((UINT64_C(1) << MTLSHM_INDEX_BITS) - 1)
#define GENERATION_MASK (UINT64_MAX >> (MTLSHM_TYPE_BITS + MTLSHM_INDEX_BITS))
#define CONTROL_STATE_MASK UINT64_C(0xff)

static inline uint64_t owner_make(uint32_t index, uint64_t generation)
{
	return generation << (MTLSHM_TYPE_BITS + MTLSHM_INDEX_BITS) | (uint64_t)index << MTLSHM_TYPE_BITS;
}

static inline uint64_t owner_of(uint64_t token)
{
	return token & ~TOKEN_TYPE_MASK;
}

static inline uint32_t owner_index(uint64_t owner)
{
	return (uint32_t)(owner >> MTLSHM_TYPE_BITS & TOKEN_INDEX_MASK);
}

static inline uint64_t owner_generation(uint64_t owner)
{
	return owner >> (MTLSHM_TYPE_BITS + MTLSHM_INDEX_BITS);
}

static inline uint64_t control_make(uint64_t generation, enum mtlshm_record_state state)
{
	return generation << 8 | state;
}

static inline uint64_t control_generation(uint64_t control)
{
	return control >> 8 & GENERATION_MASK;
}

static inline bool control_free(uint64_t control)
{
	return (control & CONTROL_STATE_MASK) == MTLSHM_FREE;
}

static inline bool control_proxied(uint64_t control)
{
	return (control & CONTROL_STATE_MASK) == MTLSHM_PROXIED;
}

/* What a tenant of `parent` expects in a word it claims, and leaves in one it gives back; 0 without a parent. */
static inline uint64_t lease_of(uint64_t parent)
{
	return parent ? parent | MTLSHM_LCORE_LEASE : 0;
}

/* Is this what the record of a valid owner says? */
static inline bool control_of(uint64_t control, uint64_t owner)
{
	return control == control_make(owner_generation(owner), MTLSHM_LIVE) ||
	       control == control_make(owner_generation(owner), MTLSHM_PROXIED);
}

/* What it says next. The generation after the last is 1 again: 0 would make the owner of record 0 "free". */
static inline uint64_t control_after(uint64_t control)
{
	uint64_t next = (control_generation(control) + 1) & GENERATION_MASK;

	return control_make(next ? next : 1, MTLSHM_FREE);
}

#endif
