/* SPDX-License-Identifier: BSD-3-Clause */
#include "unwelcome.h"

#include "cpuset.h"
#include "topology.h"

/* Those of `free` that share a core with one of `others`. */
static void find_siblings(const struct mtlshm_topology *topology, const struct mtlshm_cpuset *free,
			  const struct mtlshm_cpuset *others, struct mtlshm_cpuset *siblings)
{
	struct mtlshm_cpuset held, cores = {0};
	uint32_t cpu;

	*siblings = (struct mtlshm_cpuset){0};
	cpuset_and(&held, others, &topology->online);
	cpuset_for_each(cpu, &held)
		cpuset_add(&cores, topology->core[cpu]);
	cpuset_for_each(cpu, free)
		if (cpuset_has(&cores, topology->core[cpu]))
			cpuset_add(siblings, cpu);
}

void unwelcome_cpus(const struct mtlshm_topology *topology, const struct mtlshm_want *want,
		    const struct mtlshm_cpuset *free, const struct mtlshm_cpuset *others,
		    struct mtlshm_cpuset unwelcome[UNWELCOME])
{
	struct mtlshm_cpuset here = *free;

	find_siblings(topology, free, others, &unwelcome[SIBLINGS]);
	unwelcome[HOUSEKEEPING] = (struct mtlshm_cpuset){0};
	if (!cpuset_empty(&topology->isolated))
		cpuset_andnot(&unwelcome[HOUSEKEEPING], free, &topology->isolated);
	unwelcome[OTHER_NODES] = (struct mtlshm_cpuset){0};
	if (want->numa_node != MTLSHM_ANY_NODE) {
		topology_keep_node(topology, (uint32_t)want->numa_node, &here);
		cpuset_andnot(&unwelcome[OTHER_NODES], free, &here);
	}
	unwelcome[FIRST] = (struct mtlshm_cpuset){0};
	cpuset_add(&unwelcome[FIRST], 0);
}
