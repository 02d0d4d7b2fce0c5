/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What the rest of the core asks about the host's CPUs. `sysfs` may be NULL: this host, of which sysfs may be missing or
 * wrong. Errors as for mtlshm_topology_read().
 */
#ifndef MTLSHM_TOPOLOGY_H
#define MTLSHM_TOPOLOGY_H

#include <stdint.h>

#include "mtlshm.h"

/* The highest possible CPU number + 1, at most MTLSHM_LCORES, which is also what it is if nobody can tell. */
int topology_possible(const char *sysfs, uint32_t *cpus);

/* The CPUs that sysfs shows as online; none if it shows nothing. */
int topology_online(const char *sysfs, struct mtlshm_cpuset *online);

/* mtlshm_topology_read(), but for this host the CPUs in `mine` are online, whatever sysfs shows. */
int topology_read(struct mtlshm_topology *topology, const char *sysfs, const struct mtlshm_cpuset *mine);

/* Leave in the set only the CPUs of this node. */
void topology_keep_node(const struct mtlshm_topology *topology, uint32_t node, struct mtlshm_cpuset *set);

#endif
