/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Claims of several lcores, all or none, by a policy: place.c chooses, lease.h takes. Under the semaphore, so that two
 * such claims do not each take half; single claims go on meanwhile, and may spoil a choice.
 */
#include "claim_many.h"

#include <errno.h>

#include "assertion.h"
#include "cpuset.h"
#include "event.h"
#include "failure.h"
#include "handle.h"
#include "host.h"
#include "lease.h"
#include "place.h"
#include "semaphore.h"
#include "tenancy.h"
#include "topology_cache.h"

/* How many choices in a row may be spoilt by single claims before the host counts as busy. */
#define CHOICE_TRIES 100

/* Does the parent, of which `lease` is, hold the lcore for tenants, or has one of those it? *word: who has it. A word may
 * go back to the parent, and its owner's record with it, between the looks at word and record: so look again if
 * it has changed. One that changes all the time is somebody's of the family. */
static bool in_family(const struct mtlshm_host *host, uint32_t lcore, uint64_t lease, uint64_t *word)
{
	for (int i = 0; i < CHOICE_TRIES; i++) {
		uint64_t before = *word = __atomic_load_n(&slot(host, lcore)->owner, __ATOMIC_ACQUIRE);

		if (!lease || before == lease ||
		    tenancy_descends(host, tenancy_parent(host, owner_of(before)), owner_of(lease)))
			return true;
		if (__atomic_load_n(&slot(host, lcore)->owner, __ATOMIC_RELAXED) == before)
			return false;
	}
	return true;
}

/* What cannot be had now, what of it is not the owner's own, and which of the CPUs in `family` are the tenant's to have at
 * all. */
static void survey(const struct mtlshm_host *host, uint64_t owner, uint64_t lease, struct mtlshm_cpuset *busy,
		   struct mtlshm_cpuset *others, struct mtlshm_cpuset *family)
{
	*busy = *others = (struct mtlshm_cpuset){0};
	for (uint32_t i = 0; i < host->lcores; i++) {
		uint64_t word;

		if (!in_family(host, i, lease, &word))
			cpuset_remove(family, i);
		if (is_free(host, word, lease) || !segment_knows(host, owner_of(word)))
			continue;
		cpuset_add(busy, i);
		if (owner_of(word) != owner)
			cpuset_add(others, i);
	}
}

/* Take the lcores chosen, all or none. False: a single claim got one of them first. */
static bool take_all(struct mtlshm_host *host, const uint16_t *lcores, uint32_t count, uint64_t token, uint64_t lease)
{
	for (uint32_t i = 0; i < count; i++) {
		struct mtlshm_lcore *lcore = slot(host, lcores[i]);
		uint64_t held = __atomic_load_n(&lcore->owner, __ATOMIC_ACQUIRE);

		if (!is_free(host, held, lease) || !swap(lcore, &held, token)) {
			while (i--) {
				held = token;
				give_back(slot(host, lcores[i]), &held, lease);
			}
			return false;
		}
		stamp(lcore, now());
	}
	return true;
}

static int choose_and_take(struct mtlshm_host *host, const struct mtlshm_topology *topology,
			   const struct mtlshm_want *want, const struct mtlshm_cpuset *allowed, uint64_t token,
			   uint64_t lease, uint16_t *lcores)
{
	struct mtlshm_cpuset busy, others, family;
	bool swept = false;
	int rc;

	for (int i = 0; i < CHOICE_TRIES; i++) {
		family = *allowed;
		survey(host, owner_of(token), lease, &busy, &others, &family);
		rc = place(topology, want, &family, &busy, &others, lcores);
		if (!rc) {
			if (take_all(host, lcores, want->count, token, lease))
				return 0;
		} else if (rc == -EBUSY && !swept) {
			rc = mtlshm_sweep(host);
			if (rc < 0)
				return rc;
			swept = true;
		} else {
			return rc;
		}
	}
	return -EBUSY;
}

int claim_look(const struct mtlshm_instance *me, const struct mtlshm_topology **topology, struct mtlshm_cpuset *allowed)
{
	int rc = handle_cpus(me, allowed);

	if (!rc)
		rc = topology_cached(me->host, me->cpus_given ? NULL : allowed, topology);
	for (uint32_t i = me->host->lcores; !rc && i < (*topology)->cpus; i++)
		cpuset_remove(allowed, i);
	return rc;
}

int claim_choice(struct mtlshm_instance *me, const struct mtlshm_topology *topology,
		 const struct mtlshm_cpuset *allowed, const struct mtlshm_want *want, uint16_t *lcores)
{
	int rc = 0;
	uint64_t owner = handle_owner(me, &rc);

	assert(semaphore_inside());
	if (!owner)
		return rc;
	rc = choose_and_take(me->host, topology, want, allowed, owner | want->type, me->lease, lcores);
	for (uint32_t i = 0, n = rc ? 0 : want->count; i < n; i++)
		if (keep(me, lcores[i], owner | want->type))
			rc = -EBADF;
	if (!rc)
		handle_count(&me->record->claims, want->count);
	return segment_lost(me->host) ? -EBADMSG : rc;
}

int mtlshm_choose(struct mtlshm_host *host, const struct mtlshm_want *want, const struct mtlshm_cpuset *cpus,
		  uint64_t parent, uint16_t *lcores)
{
	struct mtlshm_instance nobody = {.host = host, .cpus_given = cpus};
	struct mtlshm_cpuset busy, others, family;
	const struct mtlshm_topology *topology;
	int rc;

	failure_forget();
	if (cpus)
		nobody.cpus = *cpus;
	rc = claim_look(&nobody, &topology, &family);
	if (rc)
		return rc;
	survey(host, 0, lease_of(owner_of(parent)), &busy, &others, &family);
	rc = place(topology, want, &family, &busy, &others, lcores);
	return segment_lost(host) ? -EBADMSG : rc;
}

/* After the semaphore: who waits for it shall not wait for this. */
static void tell(struct mtlshm_host *host, uint64_t owner, const uint16_t *lcores, uint32_t count)
{
	struct mtlshm_event event = event_about(host, MTLSHM_EVENT_CLAIMED, owner);

	for (uint32_t i = 0; i < count; i++)
		cpuset_add(&event.lcores, lcores[i]);
	event_write(host, &event);
}

int mtlshm_claim_many(struct mtlshm_instance *me, const struct mtlshm_want *want, uint16_t *lcores)
{
	const struct mtlshm_topology *topology;
	struct mtlshm_cpuset allowed;
	int rc = 0;
	uint64_t owner = handle_owner(me, &rc);

	failure_forget();
	if (!owner)
		return rc;
	if (want->type >= MTLSHM_LCORE_TYPES)
		return -EINVAL;
	rc = claim_look(me, &topology, &allowed);
	if (rc)
		return rc;
	rc = semaphore_enter(me, want->timeout_ms);
	if (rc < 0)
		return rc;
	/* A holder that died left at most lcores of its own, which are collected like any dead instance's. */
	rc = claim_choice(me, topology, &allowed, want, lcores);
	semaphore_leave(me);
	if (rc)
		return rc;
	tell(me->host, owner, lcores, want->count);
	return segment_lost(me->host) ? -EBADMSG : 0;
}
