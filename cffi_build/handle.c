/* SPDX-License-Identifier: BSD-3-Clause */
#include "handle.h"

#include <stdlib.h>

#include "cpuset.h"
#include "host.h"

struct mtlshm_instance *handle_new(struct mtlshm_host *host, const struct mtlshm_cpuset *cpus)
{
	struct mtlshm_instance *instance = calloc(1, sizeof(*instance));

	if (!instance)
		return NULL;
	instance->host = host;
	instance->usual_type = MTLSHM_LCORE_APP;
	instance->cpus_given = cpus;
	if (cpus)
		instance->cpus = *cpus;
	return instance;
}

int handle_finish(struct mtlshm_instance **result, struct mtlshm_instance *instance, int rc)
{
	if (rc) {
		free(instance);
		return rc;
	}
	__atomic_add_fetch(&instance->host->instances, 1, __ATOMIC_RELEASE);
	*result = instance;
	return 0;
}

int handle_cpus(const struct mtlshm_instance *instance, struct mtlshm_cpuset *cpus)
{
	if (!instance->cpus_given)
		return mtlshm_affinity(cpus);
	*cpus = instance->cpus;
	return 0;
}

int handle_refresh(struct mtlshm_instance *instance)
{
	struct mtlshm_cpuset now;
	int rc;

	if (instance->cpus_given)
		return 0;
	rc = mtlshm_affinity(&now);
	for (int i = 0; !rc && i < CPUSET_WORDS; i++)
		__atomic_store_n(&instance->cpus.bits[i], now.bits[i], __ATOMIC_RELAXED);
	return rc;
}

uint64_t mtlshm_owner(const struct mtlshm_instance *me)
{
	int ignored;

	return handle_owner(me, &ignored);
}
