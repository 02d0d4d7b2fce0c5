/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Sets of CPUs. A CPU number beyond the set is in no set, and adding it does nothing.
 */
#ifndef MTLSHM_CPUSET_H
#define MTLSHM_CPUSET_H

#include <stdbool.h>
#include <stdint.h>

#include "mtlshm.h"

enum { CPUSET_WORDS = MTLSHM_LCORES / 64 };

static inline bool cpuset_has(const struct mtlshm_cpuset *set, uint32_t cpu)
{
	return cpu < MTLSHM_LCORES && (set->bits[cpu / 64] >> (cpu % 64) & 1);
}

static inline void cpuset_add(struct mtlshm_cpuset *set, uint32_t cpu)
{
	if (cpu < MTLSHM_LCORES)
		set->bits[cpu / 64] |= UINT64_C(1) << (cpu % 64);
}

static inline void cpuset_remove(struct mtlshm_cpuset *set, uint32_t cpu)
{
	if (cpu < MTLSHM_LCORES)
		set->bits[cpu / 64] &= ~(UINT64_C(1) << (cpu % 64));
}

static inline bool cpuset_empty(const struct mtlshm_cpuset *set)
{
	for (int i = 0; i < CPUSET_WORDS; i++)
		if (set->bits[i])
			return false;
	return true;
}

static inline uint32_t cpuset_count(const struct mtlshm_cpuset *set)
{
	uint32_t count = 0;

	for (int i = 0; i < CPUSET_WORDS; i++)
		count += (uint32_t)__builtin_popcountll(set->bits[i]);
	return count;
}

/* The sets may be one and the same. */
static inline void cpuset_and(struct mtlshm_cpuset *result, const struct mtlshm_cpuset *a,
			      const struct mtlshm_cpuset *b)
{
	for (int i = 0; i < CPUSET_WORDS; i++)
		result->bits[i] = a->bits[i] & b->bits[i];
}

static inline void cpuset_or(struct mtlshm_cpuset *result, const struct mtlshm_cpuset *a, const struct mtlshm_cpuset *b)
{
	for (int i = 0; i < CPUSET_WORDS; i++)
		result->bits[i] = a->bits[i] | b->bits[i];
}

static inline void cpuset_andnot(struct mtlshm_cpuset *result, const struct mtlshm_cpuset *a,
				 const struct mtlshm_cpuset *b)
{
	for (int i = 0; i < CPUSET_WORDS; i++)
		result->bits[i] = a->bits[i] & ~b->bits[i];
}

/* The lowest CPU of the set from `cpu` on, or MTLSHM_LCORES. */
static inline uint32_t cpuset_next(const struct mtlshm_cpuset *set, uint32_t cpu)
{
	uint64_t bits;
	uint32_t i = cpu / 64;

	if (cpu >= MTLSHM_LCORES)
		return MTLSHM_LCORES;
	bits = set->bits[i] & (~UINT64_C(0) << (cpu % 64));
	while (!bits) {
		if (++i == CPUSET_WORDS)
			return MTLSHM_LCORES;
		bits = set->bits[i];
	}
	return i * 64 + (uint32_t)__builtin_ctzll(bits);
}

/* for every CPU of the set, ascending; removing the CPU in hand is allowed */
#define cpuset_for_each(cpu, set) \
	for ((cpu) = cpuset_next((set), 0); (cpu) < MTLSHM_LCORES; (cpu) = cpuset_next((set), (cpu) + 1))

#endif
