/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef MTLSHM_LEASE_H
#define MTLSHM_LEASE_H

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <time.h>

#include "handle.h"
#include "host.h"
#include "life.h"

/* The words of an lcore, and how they change. */
static inline struct mtlshm_lcore *slot(const struct mtlshm_host *host, uint32_t lcore)
{
	return &host->segment->lcores[lcore];
}

/* Acquire on taking, release on giving back: what one owner wrote before its release happens before what the
 * next does with the lcore. */
static inline bool swap(struct mtlshm_lcore *lcore, uint64_t *expected, uint64_t desired)
{
	return __atomic_compare_exchange_n(&lcore->owner, expected, desired, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
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

/* An lcore goes back where it came from: `lease` is 0, or that of a parent, which has it from now on. The time of that is
 * not noted, as to ask for it would cost a seventh of claim and release. */
static inline bool give_back(struct mtlshm_lcore *lcore, uint64_t *token, uint64_t lease)
{
	if (!swap(lcore, token, lease))
		return false;
	if (lease)
		stamp(lcore, 0);
	return true;
}

/* May a claim that expects `lease` take an lcore with this word? An owner that the table does not know stands for 0. */
static inline bool is_free(const struct mtlshm_host *host, uint64_t word, uint64_t lease)
{
	return word == lease || (!lease && !segment_knows(host, owner_of(word)));
}

/* After a claim. Another thread may have unregistered the instance meanwhile, and have looked at this lcore before we had
 * it. Our token would then be nobody's, and the parent, which may live, would lose the lcore to any stranger. So a tenant
 * looks again, and gives back: 0, or -EBADF. Sequentially consistent with the exchange of `owner` in mtlshm_unregister():
 * either it sees our token, or we see its zero. The swap before this is a full barrier on x86-64 and, as an
 * acquire-release instruction followed by an acquire load, on arm64. */
static inline int keep(struct mtlshm_instance *me, uint32_t lcore, uint64_t token)
{
	if (!me->lease || __atomic_load_n(&me->owner, __ATOMIC_SEQ_CST) == owner_of(token))
		return 0;
	give_back(slot(me->host, lcore), &token, me->lease);
	return -EBADF;
}

/* Give back every lcore of `owner`, which is dead or is ourselves: its words become `lease`. Returns how many; `cleared`:
 * which. */
uint32_t lease_clear(struct mtlshm_host *host, uint64_t owner, uint64_t lease, struct mtlshm_cpuset *cleared);

/* Clear the words of an owner whose life byte the visit holds, and free its record. False: that is not LIVE, or is kept for
 * its tenants. *cleared: how many lcores. `kind`: what the event that tells of it says, DIED or ENDED. */
bool lease_collect(struct mtlshm_host *host, const struct life *life, uint64_t owner, enum mtlshm_event_kind kind,
		   uint32_t *cleared);

/* mtlshm_collect() of an instance that may have ended in good order. */
int lease_collect_one(struct mtlshm_host *host, uint64_t owner, enum mtlshm_event_kind kind);

/* An instance that registered itself is no more: its counts go to those of all that have ended. Killed before: they are
 * missing there. */
void lease_account(struct mtlshm_host *host, uint64_t claims, uint64_t releases);

/* A tenant of `parent` (or 0) has ended: collect the parent if it was kept for it, then the one above. Returns how many. */
int lease_collect_up(struct mtlshm_host *host, struct life *life, uint64_t parent);

#endif
