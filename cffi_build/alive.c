/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Who is in the table, and who of them lives; what that means is said in life.c and mtlshm.h.
 */
#include <errno.h>
#include <fcntl.h>

#include "failure.h"
#include "host.h"
#include "life.h"

static int list_owners(const struct mtlshm_host *host, enum mtlshm_record_state state, uint64_t *owners)
{
	int count = 0;

	failure_forget();
	for (uint32_t i = 0; i < MTLSHM_INSTANCES; i++) {
		uint64_t control = __atomic_load_n(&host->segment->instances[i].control, __ATOMIC_ACQUIRE);

		if ((control & CONTROL_STATE_MASK) == state)
			owners[count++] = owner_make(i, control_generation(control));
	}
	return segment_lost(host) ? -EBADMSG : count;
}

int mtlshm_owners(struct mtlshm_host *host, uint64_t *owners)
{
	return list_owners(host, MTLSHM_LIVE, owners);
}

int mtlshm_proxies(struct mtlshm_host *host, uint64_t *owners)
{
	return list_owners(host, MTLSHM_PROXIED, owners);
}

int mtlshm_alive(struct mtlshm_host *host, uint64_t owner)
{
	struct life life;
	int rc;

	failure_forget();
	if (!segment_knows(host, owner))
		return segment_lost(host) ? -EBADMSG : 0;
	if (segment_proxied(host, owner))
		return segment_lost(host) ? -EBADMSG : 1;
	rc = host_enter(&life, host, O_RDONLY);
	if (rc)
		return rc;
	rc = life_held(&life, life_byte(owner), 1);
	life_leave(&life);
	/* The lock seen may be that of the record's next owner. */
	if (rc == 1)
		rc = segment_knows(host, owner);
	return segment_lost(host) ? -EBADMSG : rc;
}
