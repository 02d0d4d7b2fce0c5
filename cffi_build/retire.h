/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A segment that is marked as retired, or is being removed.
 */
#ifndef MTLSHM_RETIRE_H
#define MTLSHM_RETIRE_H

#include <stdbool.h>

#include "mtlshm.h"

/* Does the path lead to what is mapped? Is that marked as retired? */
bool retire_named(const struct mtlshm_host *host);
bool retire_marked(const struct mtlshm_host *host);

/* Remove a retired segment if the process that retired it died, or take its mark off. 0 (look anew) or a negative errno. */
int retire_bury(struct mtlshm_host *host);

/* This handle closes: if it retired the segment and that still has its name, it is in use again. Under the guard. */
void retire_undo(struct mtlshm_host *host);

#endif
