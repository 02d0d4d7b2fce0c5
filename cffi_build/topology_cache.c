/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The topology, cached for claims by policy.
 *
 * Reading all of sysfs takes a thousand times as long as a claim, and looking which CPUs are online takes
 * ten times as long. So the former is done once, and again only when the latter shows a change; and the
 * latter once a second at most. A thread may still be using what was read before, so it is kept until the
 * handle is closed; CPUs do not come and go often.
 *
 * A thread may see CPUs in its affinity mask that sysfs does not show (see topology.c), and another thread others. What one
 * brought along is kept for all, until sysfs shows a change; so threads that take turns do not make us read each time.
 */
#include "topology_cache.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "assertion.h"
#include "cpuset.h"
#include "host.h"
#include "life.h"
#include "topology.h"

struct topology_cache {
	struct mtlshm_topology topology;
	struct mtlshm_cpuset shown; /* as online, by sysfs */
	time_t looked;              /* when that was last confirmed; atomic */
	struct topology_cache *older;
};

/* Of a machine that a directory describes, the mask says nothing. */
static bool has(const struct mtlshm_host *host, const struct topology_cache *cache, const struct mtlshm_cpuset *mask)
{
	struct mtlshm_cpuset missing;

	if (host->sysfs || !mask)
		return true;
	cpuset_andnot(&missing, mask, &cache->topology.online);
	return cpuset_empty(&missing);
}

/* Under the guard, so that one thread does it. Read what has changed since `known`. */
static int refresh(struct mtlshm_host *host, struct topology_cache *known, time_t now)
{
	struct mtlshm_cpuset shown, mine;
	struct topology_cache *cache;
	int rc;

	assert(life_guarded());
	rc = topology_online(host->sysfs, &shown);
	if (!rc)
		rc = mtlshm_affinity(&mine);
	if (rc)
		return rc;
	if (known && !memcmp(&shown, &known->shown, sizeof(shown))) {
		if (has(host, known, &mine)) {
			__atomic_store_n(&known->looked, now, __ATOMIC_RELAXED);
			return 0;
		}
		cpuset_or(&mine, &mine, &known->topology.online);
	}
	cache = malloc(sizeof(*cache));
	if (!cache)
		return -ENOMEM;
	rc = topology_read(&cache->topology, host->sysfs, &mine);
	if (rc) {
		free(cache);
		return rc;
	}
	cache->shown = shown;
	cache->looked = now;
	cache->older = known;
	__atomic_store_n(&host->topologies, cache, __ATOMIC_RELEASE);
	return 0;
}

int topology_cached(struct mtlshm_host *host, const struct mtlshm_cpuset *mask, const struct mtlshm_topology **topology)
{
	struct topology_cache *known = __atomic_load_n(&host->topologies, __ATOMIC_ACQUIRE);
	time_t now = time(NULL);
	struct life guard;
	int rc = 0;

	if (!known || __atomic_load_n(&known->looked, __ATOMIC_RELAXED) != now || !has(host, known, mask)) {
		life_guard(&guard);
		rc = refresh(host, host->topologies, now);
		known = host->topologies;
		life_leave(&guard);
	}
	if (!rc)
		*topology = &known->topology;
	return rc;
}

void topology_forget(struct mtlshm_host *host)
{
	assert(life_guarded());
	for (struct topology_cache *cache = host->topologies, *older; cache; cache = older) {
		older = cache->older;
		free(cache);
	}
}
