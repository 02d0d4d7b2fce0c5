/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef MTLSHM_LEASE_H
#define MTLSHM_LEASE_H

#include <stdint.h>

struct mtlshm_host;

/* Free every lcore of `owner`, which is dead or is ourselves. Returns how many. */
uint32_t lease_clear(struct mtlshm_host *host, uint64_t owner);

/* Clear and free the record of an owner whose read lock the caller holds. Returns how many lcores. */
uint32_t lease_collect(struct mtlshm_host *host, uint64_t owner);

#endif
