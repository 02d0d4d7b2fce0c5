/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The placement policy: which lcores a claim of several shall have.
 */
#ifndef MTLSHM_PLACE_H
#define MTLSHM_PLACE_H

#include <stdint.h>

#include "mtlshm.h"

/* Choose want->count CPUs, all or none, and write them ascending. Pure: no system call, no allocation,
 * less than 20 KiB of stack.
 *
 * allowed  the CPUs the caller may take
 * busy     the CPUs that cannot be had; those outside `allowed` matter too, as siblings
 * others   of those, the ones that are not the caller's own
 *
 * Errors: -EBUSY not enough now; -ERANGE not enough even if nothing were busy; -ENXIO no such NUMA node, or
 * none of its CPUs is online; -EINVAL count 0, or smt. */
int place(const struct mtlshm_topology *topology, const struct mtlshm_want *want, const struct mtlshm_cpuset *allowed,
	  const struct mtlshm_cpuset *busy, const struct mtlshm_cpuset *others, uint16_t *lcores);

#endif
