/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What clients in shared memory share: the segment, the instance that one is, and calls that must not fail.
 */
#ifndef INSTANCE_H
#define INSTANCE_H

#include <stdint.h>

#include "mtlshm.h"

enum { SOME = 6 }; /* lcores that are claimed at once, at most */

extern struct mtlshm_host *host;
extern struct mtlshm_instance *me;

void open_segment(void);

/* Register, as a tenant of `parent`: an owner, MTLSHM_NO_PARENT, or 0 for the one in the environment. Returns 0, or -ESRCH
 * if there is a parent and it is gone. */
int become_tenant(uint64_t parent);
void become_instance(void);

/* Give back everything and unregister. What it lends must have been noted off. */
void leave(void);

/* By policy, into given[SOME]. Returns 0, -EBUSY, -ETIMEDOUT (others had the semaphore meanwhile) or, for tenants,
 * -ERANGE. */
int claim_several(uint32_t count, uint32_t type, uint16_t *given);

/* Others must have had the semaphore since there had been so many, or it is not to be had at all. */
void not_had_since(uint64_t before);

void sweep(void);

#endif
