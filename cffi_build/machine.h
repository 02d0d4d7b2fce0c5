/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The topology of the machine a host handle is about, as claims by policy need it: at hand.
 */
#ifndef MTLSHM_MACHINE_H
#define MTLSHM_MACHINE_H

#include "mtlshm.h"

/* Not older than a second, as far as CPUs coming and going are concerned. `mask` is the calling thread's affinity mask, whose
 * CPUs are online then; NULL: ask for it if need be. Stays valid as long as the handle.
 * Returns 0, -ENOMEM or what mtlshm_topology_read() does. */
int machine_topology(struct mtlshm_host *host, const struct mtlshm_cpuset *mask,
		     const struct mtlshm_topology **topology);

/* Free what was read, with the handle. */
void machine_forget(struct mtlshm_host *host);

#endif
