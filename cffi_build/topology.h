/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What segment creation and single claims ask of sysfs: one file each. `sysfs` may be NULL for /sys.
 * Errors as for mtlshm_topology_read().
 */
#ifndef MTLSHM_TOPOLOGY_H
#define MTLSHM_TOPOLOGY_H

#include <stdint.h>

#include "mtlshm.h"

/* The highest possible CPU number + 1, at most MTLSHM_LCORES. */
int topology_possible(const char *sysfs, uint32_t *cpus);

/* The CPUs that are online. */
int topology_online(const char *sysfs, struct mtlshm_cpuset *online);

#endif
