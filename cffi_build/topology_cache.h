/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The topology of the machine that a host handle is about, kept at hand for claims by policy.
 */
#ifndef MTLSHM_TOPOLOGY_CACHE_H
#define MTLSHM_TOPOLOGY_CACHE_H

#include "mtlshm.h"

/* Not older than a second, as far as CPUs coming and going are concerned. `mask` is the calling thread's affinity mask, whose
 * CPUs are online then; NULL: ask for it if need be. Stays valid as long as the handle.
 * Returns 0, -ENOMEM or what mtlshm_topology_read() does. Takes the guard of life.h now and then. */
int topology_cached(struct mtlshm_host *host, const struct mtlshm_cpuset *mask,
		    const struct mtlshm_topology **topology);

/* Free what was read, with the handle. Under the guard. */
void topology_forget(struct mtlshm_host *host);

#endif
