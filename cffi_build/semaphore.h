/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The robust semaphore as the core itself takes it: for one stretch of one thread. mtlshm_lock() is for all others.
 */
#ifndef MTLSHM_SEMAPHORE_H
#define MTLSHM_SEMAPHORE_H

#include <stdbool.h>
#include <stdint.h>

#include "mtlshm.h"

/* mtlshm_lock(), with 1,000 ms for a timeout of 0. Not recursive. The same thread gives it back. */
int semaphore_enter(struct mtlshm_instance *instance, uint32_t timeout_ms);
void semaphore_leave(struct mtlshm_instance *instance);

/* Is the calling thread between the two? For assertions. It asks this process's memory, not the table. */
bool semaphore_inside(void);

#endif
