/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Reading all of sysfs takes a thousand times as long as a claim, and looking which CPUs are online takes
 * ten times as long. So the former is done once, and again only when the latter shows a change; and the
 * latter once a second at most. A thread may still be using what was read before, so it is kept until the
 * handle is closed; CPUs do not come and go often.
 *
 * A thread may see CPUs in its affinity mask that sysfs does not show (see topology.c), and another thread others. What one
 * brought along is kept for all, until sysfs shows a change; so threads that take turns do not make us read each time.
 */
#include "machine.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cpuset.h"
#include "life.h"
#include "segment.h"
#include "topology.h"

struct machine {
	struct mtlshm_topology topology;
	struct mtlshm_cpuset shown; /* as online, by sysfs */
	time_t looked;              /* when that was last confirmed; atomic */
	struct machine *older;
};

/* Of a machine that a directory describes, the mask says nothing. */
static bool has(const struct mtlshm_host *host, const struct machine *machine, const struct mtlshm_cpuset *mask)
{
	struct mtlshm_cpuset missing;

	if (host->sysfs || !mask)
		return true;
	cpuset_andnot(&missing, mask, &machine->topology.online);
	return cpuset_empty(&missing);
}

/* Under the guard, so that one thread does it. */
static int look(struct mtlshm_host *host, struct machine *known, time_t now)
{
	struct mtlshm_cpuset shown, mine;
	struct machine *machine;
	int rc = topology_online(host->sysfs, &shown);

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
	machine = malloc(sizeof(*machine));
	if (!machine)
		return -ENOMEM;
	rc = topology_read(&machine->topology, host->sysfs, &mine);
	if (rc) {
		free(machine);
		return rc;
	}
	machine->shown = shown;
	machine->looked = now;
	machine->older = known;
	__atomic_store_n(&host->machine, machine, __ATOMIC_RELEASE);
	return 0;
}

int machine_topology(struct mtlshm_host *host, const struct mtlshm_cpuset *mask,
		     const struct mtlshm_topology **topology)
{
	struct machine *known = __atomic_load_n(&host->machine, __ATOMIC_ACQUIRE);
	time_t now = time(NULL);
	struct life guard;
	int rc = 0;

	if (!known || __atomic_load_n(&known->looked, __ATOMIC_RELAXED) != now || !has(host, known, mask)) {
		life_guard(&guard);
		rc = look(host, host->machine, now);
		known = host->machine;
		life_leave(&guard);
	}
	if (!rc)
		*topology = &known->topology;
	return rc;
}

void machine_forget(struct mtlshm_host *host)
{
	for (struct machine *machine = host->machine, *older; machine; machine = older) {
		older = machine->older;
		free(machine);
	}
}
