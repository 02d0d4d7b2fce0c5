/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Who draws lcores from whom: parents and their tenants. What a lease is, mtlshm.h says.
 */
#ifndef MTLSHM_TENANCY_H
#define MTLSHM_TENANCY_H

#include <stdbool.h>
#include <stdint.h>

#include "life.h"
#include "mtlshm.h"

/* The parent of an owner, or 0: none, or the table does not know the owner, or its record was damaged. */
uint64_t tenancy_parent(const struct mtlshm_host *host, uint64_t owner);

/* Is the one a tenant of the other, at any distance, or the same? */
bool tenancy_descends(const struct mtlshm_host *host, uint64_t owner, uint64_t forebear);

/* Does any record that the table knows name `owner` as its parent? */
bool tenancy_has_tenants(const struct mtlshm_host *host, uint64_t owner);

/* May an instance become a tenant of `parent`? Asked twice: before its record is LIVE, with life NULL, and after, when
 * it answers for good. Returns 0, -ESRCH, -ELOOP, or what asking the life lock gave. */
int tenancy_admits(const struct mtlshm_host *host, const struct life *life, uint64_t parent);

/* The parent that the environment names; 0 if it names none. Returns 0, -EINVAL or -ESRCH. */
int tenancy_inherit(struct mtlshm_host *host, uint64_t *parent);

#endif
