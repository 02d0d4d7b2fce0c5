/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The CPUs that a claim by policy takes only if it cannot do without them.
 *
 *   siblings       the SMT sibling is in use by another instance, which would lose half of a core
 *   housekeeping   not isolated, on a host that isolates some
 *   other nodes    than the one that was wished for
 *   CPU 0          where the kernel does what it can do nowhere else, and which libmtl, whose main lcore has id 0, gives to
 *                  nobody
 */
#ifndef MTLSHM_UNWELCOME_H
#define MTLSHM_UNWELCOME_H

#include "mtlshm.h"

/* From the least to the most unwelcome. */
enum { SIBLINGS, HOUSEKEEPING, OTHER_NODES, FIRST, UNWELCOME };

/* Which of the `free` CPUs are unwelcome, kind by kind. `others`: those that other instances hold. */
void unwelcome_cpus(const struct mtlshm_topology *topology, const struct mtlshm_want *want,
		    const struct mtlshm_cpuset *free, const struct mtlshm_cpuset *others,
		    struct mtlshm_cpuset unwelcome[UNWELCOME]);

#endif
