/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Taking a record: the part of registering that is the same for every kind of instance.
 */
#ifndef MTLSHM_INSTANCE_H
#define MTLSHM_INSTANCE_H

#include <stdbool.h>
#include <stdint.h>

#include "life.h"
#include "mtlshm.h"

/* What a new record says. */
struct entry {
	uint32_t kind;
	uint64_t parent;
	const struct mtlshm_process *process;
	const char *key; /* at most 63 bytes; NULL: none */
	bool quiet;      /* its coming and going is no event: it is there for the length of one call */
};

/* Take a record and make `me` the instance that it says: LIVE under a life lock that is pinned in me->pin, or PROXIED if
 * me->proxied. The visit is open for writing; of a daemon, it holds the daemon byte. Returns 0, or an error of
 * mtlshm_register(), and then nothing is left. Killed inside: the record is FREE, or that of a dead instance. */
int instance_become(struct mtlshm_instance *me, struct life *life, const struct entry *entry);

/* mtlshm_register(), quietly or not. */
int instance_register(struct mtlshm_instance **result, struct mtlshm_host *host, const struct mtlshm_identity *identity,
		      bool quiet);

#endif
