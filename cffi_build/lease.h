/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef MTLSHM_LEASE_H
#define MTLSHM_LEASE_H

#include <stdbool.h>
#include <stdint.h>
#include <time.h>

#include "segment.h"

/* The words of an lcore, and how they change. */
static inline struct mtlshm_lcore *slot(const struct mtlshm_host *host, uint32_t lcore)
{
	return &host->segment->lcores[lcore];
}

/* Acquire on taking, release on giving back: what one owner wrote before its release happens before what the
 * next does with the lcore. */
static inline bool swap(struct mtlshm_lcore *lcore, uint64_t *expected, uint64_t desired)
{
	return __atomic_compare_exchange_n(&lcore->owner, expected, desired, false, __ATOMIC_ACQ_REL,
					   __ATOMIC_ACQUIRE);
}

/* time(2) is a few loads in the vDSO; every clock with more digits costs a third of a claim. */
static inline uint32_t now(void)
{
	return (uint32_t)time(NULL);
}

static inline void stamp(struct mtlshm_lcore *lcore, uint32_t when)
{
	__atomic_store_n(&lcore->note, when, __ATOMIC_RELAXED);
}

/* Free every lcore of `owner`, which is dead or is ourselves. Returns how many. */
uint32_t lease_clear(struct mtlshm_host *host, uint64_t owner);

/* Clear and free the record of an owner whose read lock the caller holds. Returns how many lcores. */
uint32_t lease_collect(struct mtlshm_host *host, uint64_t owner);

#endif
