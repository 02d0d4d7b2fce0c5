/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The two halves of a claim by policy: the slow one, and the one that needs the semaphore.
 */
#ifndef MTLSHM_CLAIM_MANY_H
#define MTLSHM_CLAIM_MANY_H

#include "mtlshm.h"

/* What the host looks like, and which CPUs the instance may claim. */
int claim_look(const struct mtlshm_instance *instance, const struct mtlshm_topology **topology,
	       struct mtlshm_cpuset *allowed);

/* Between semaphore_enter() and semaphore_leave(), of whichever instance. Errors: as mtlshm_claim_many(). */
int claim_choice(struct mtlshm_instance *instance, const struct mtlshm_topology *topology,
		 const struct mtlshm_cpuset *allowed, const struct mtlshm_want *want, uint16_t *lcores);

#endif
