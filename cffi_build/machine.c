/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Reading all of sysfs takes a thousand times as long as a claim, and looking which CPUs are online takes
 * ten times as long. So the former is done once, and again only when the latter shows a change; and the
 * latter once a second at most. A thread may still be using what was read before, so it is kept until the
 * handle is closed; CPUs do not come and go often.
 */
#include "machine.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "life.h"
#include "segment.h"
#include "topology.h"

struct machine {
	struct mtlshm_topology topology;
	time_t looked;         /* when its online CPUs were last confirmed; atomic */
	struct machine *older;
};

/* Under the guard, so that one thread does it. */
static int look(struct mtlshm_host *host, struct machine *known, time_t now)
{
	struct mtlshm_cpuset online;
	struct machine *machine;
	int rc = topology_online(host->sysfs, &online);

	if (rc)
		return rc;
	if (known && !memcmp(&online, &known->topology.online, sizeof(online))) {
		__atomic_store_n(&known->looked, now, __ATOMIC_RELAXED);
		return 0;
	}
	machine = malloc(sizeof(*machine));
	if (!machine)
		return -ENOMEM;
	rc = mtlshm_topology_read(&machine->topology, host->sysfs);
	if (rc) {
		free(machine);
		return rc;
	}
	machine->looked = now;
	machine->older = known;
	__atomic_store_n(&host->machine, machine, __ATOMIC_RELEASE);
	return 0;
}

int machine_topology(struct mtlshm_host *host, const struct mtlshm_topology **topology)
{
	struct machine *known = __atomic_load_n(&host->machine, __ATOMIC_ACQUIRE);
	time_t now = time(NULL);
	struct life guard;
	int rc = 0;

	if (!known || __atomic_load_n(&known->looked, __ATOMIC_RELAXED) != now) {
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
