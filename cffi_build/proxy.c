/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Proxied instances: records of processes that do not map the table, which a daemon keeps for them.
 *
 * One is made like any other, but goes PROXIED and keeps no life lock: it does not die with the process that made it,
 * and stays until a daemon unregisters it.
 */
#include <errno.h>
#include <string.h>

#include "failure.h"
#include "handle.h"
#include "host.h"
#include "instance.h"
#include "life.h"
#include "tenancy.h"

static struct mtlshm_instance *new_proxy(struct mtlshm_host *host)
{
	struct mtlshm_cpuset all;
	struct mtlshm_instance *proxy;

	memset(&all, 0xff, sizeof(all));
	proxy = handle_new(host, &all);
	if (proxy)
		proxy->proxied = true;
	return proxy;
}

int mtlshm_register_proxy(struct mtlshm_instance **result, struct mtlshm_host *host, uint32_t kind,
			  const struct mtlshm_process *process, uint64_t parent)
{
	const struct entry entry = {.kind = kind, .parent = owner_of(parent), .process = process};
	struct mtlshm_instance *proxy;
	struct life life;
	int rc;

	failure_forget();
	if (kind <= MTLSHM_KIND_DAEMON || kind >= MTLSHM_KIND_RESERVATION)
		return -EINVAL;
	if (host->read_only)
		return -EROFS;
	proxy = new_proxy(host);
	if (!proxy)
		return -ENOMEM;
	rc = host_reenter(&life, host); /* a write lock, while the record changes hands */
	if (!rc) {
		rc = instance_become(proxy, &life, &entry);
		host_releave(&life);
	}
	return handle_finish(result, proxy, rc);
}

int mtlshm_adopt(struct mtlshm_instance **result, struct mtlshm_host *host, uint64_t owner)
{
	struct mtlshm_instance *proxy;

	failure_forget();
	if (host->read_only)
		return -EROFS;
	if (!segment_proxied(host, owner) ||
	    __atomic_load_n(&segment_record(host, owner)->kind, __ATOMIC_RELAXED) == MTLSHM_KIND_RESERVATION)
		return segment_lost(host) ? -EBADMSG : -ESRCH;
	proxy = new_proxy(host);
	if (!proxy)
		return -ENOMEM;
	proxy->lease = lease_of(tenancy_parent(host, owner_of(owner)));
	proxy->process = life_process();
	if (!proxy->process) {
		struct life guard;

		life_guard(&guard);
		proxy->process = life_adopt();
		life_leave(&guard);
	}
	proxy->owner = owner_of(owner);
	proxy->record = segment_record(host, owner);
	return handle_finish(result, proxy, segment_lost(host) ? -EBADMSG : 0);
}
