/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A segment's file that may be damaged: opened, copied and examined. In all of this `table` is the copy.
 */
#ifndef MTLSHM_EXAMINE_H
#define MTLSHM_EXAMINE_H

#include <stdbool.h>
#include <stdint.h>

#include "life.h"
#include "mtlshm.h"

struct report {
	struct mtlshm_damage *damages; /* room for MTLSHM_DAMAGES */
	int count;
};

/* Enter the guard and open the file, in whatever state it is; life_leave() undoes both. Errors as mtlshm_examine(), and then
 * nothing is held. */
int examine_enter(struct life *life, const char *path, int mode);

/* Copy the open file into `table` and add to the report what is wrong with it. Returns 0 or a negative errno. */
int examine_file(const struct life *life, struct mtlshm_segment *table, struct report *report);

/* Does the copy know the owner, as segment_knows() asks of the table itself? */
bool examine_knows(const struct mtlshm_segment *table, uint64_t owner);

/* The generation that a record which names no owner should have, by the tokens that name it; 0: they do not say, or
 * there is no sign that its owner lives. `locked`: its life lock is held. */
uint64_t examine_generation(const struct mtlshm_segment *table, uint32_t index, bool locked);

#endif
