/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Claims of several lcores, all or none, by a policy: place.c chooses, lease.h takes. Under the semaphore, so that two
 * such claims do not each take half; single claims go on meanwhile, and may spoil a choice.
 */
#include <errno.h>

#include "cpuset.h"
#include "failure.h"
#include "instance.h"
#include "lease.h"
#include "machine.h"
#include "place.h"
#include "segment.h"

/* How many choices in a row may be spoilt by single claims before the host counts as busy. */
#define CHOICE_TRIES 100

#define DEFAULT_TIMEOUT_MS 1000

static void find_busy(const struct mtlshm_host *host, struct mtlshm_cpuset *busy)
{
	*busy = (struct mtlshm_cpuset){0};
	for (uint32_t i = 0; i < host->lcores; i++) {
		uint64_t token = __atomic_load_n(&slot(host, i)->owner, __ATOMIC_ACQUIRE);

		if (token && segment_knows(host, owner_of(token)))
			cpuset_add(busy, i);
	}
}

/* Take the lcores chosen, all or none. -EAGAIN: a single claim got one of them first. */
static int take_all(struct mtlshm_host *host, const uint16_t *lcores, uint32_t count, uint64_t token)
{
	for (uint32_t i = 0; i < count; i++) {
		struct mtlshm_lcore *lcore = slot(host, lcores[i]);
		uint64_t held = __atomic_load_n(&lcore->owner, __ATOMIC_ACQUIRE);

		if ((held && segment_knows(host, owner_of(held))) || !swap(lcore, &held, token)) {
			while (i--) {
				held = token;
				swap(slot(host, lcores[i]), &held, 0);
			}
			return -EAGAIN;
		}
		stamp(lcore, now());
	}
	return 0;
}

static int choose_and_take(struct mtlshm_host *host, const struct mtlshm_topology *topology,
			   const struct mtlshm_want *want, const struct mtlshm_cpuset *allowed, uint64_t token,
			   uint16_t *lcores)
{
	struct mtlshm_cpuset busy;
	bool swept = false;
	int rc = -EBUSY;

	for (int i = 0; i < CHOICE_TRIES; i++) {
		find_busy(host, &busy);
		rc = place(topology, want, allowed, &busy, lcores);
		if (!rc) {
			rc = take_all(host, lcores, want->count, token);
			if (rc != -EAGAIN)
				return rc;
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

int mtlshm_claim_many(struct mtlshm_instance *me, const struct mtlshm_want *want, uint16_t *lcores)
{
	struct mtlshm_host *host;
	const struct mtlshm_topology *topology;
	struct mtlshm_cpuset allowed;
	int rc = 0;
	uint64_t owner = instance_owner(me, &rc);

	failure_forget();
	if (!owner)
		return rc;
	host = me->host;
	if (want->type >= MTLSHM_LCORE_TYPES)
		return -EINVAL;
	rc = instance_cpus(me, &allowed);
	if (!rc)
		rc = machine_topology(host, me->cpus_given ? NULL : &allowed, &topology);
	if (rc)
		return rc;
	for (uint32_t i = host->lcores; i < topology->cpus; i++)
		cpuset_remove(&allowed, i);
	rc = mtlshm_lock(me, want->timeout_ms ? want->timeout_ms : DEFAULT_TIMEOUT_MS);
	if (rc < 0)
		return rc;
	/* A holder that died left at most lcores of its own, which are collected like any dead instance's. */
	rc = choose_and_take(host, topology, want, &allowed, owner | want->type, lcores);
	mtlshm_unlock(me);
	return segment_lost(host) ? -EBADMSG : rc;
}
