/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Reservations: lcores held for tenants, by a record with no process that could die.
 *
 * MAKING ONE takes two records for a moment. One is the maker's, which holds the semaphore; so two makers cannot both
 * find that there is no such key. The other is the reservation. It is LIVE under a life lock of the maker's until it has
 * all its lcores, and becomes PROXIED by one compare-and-swap; a maker that is killed before that leaves a dead
 * instance, and one that is killed after it leaves a whole reservation. The reservation never holds the semaphore itself: a
 * proxied holder counts as dead, and what it gives back could be the next holder's.
 *
 * ENDING ONE is one compare-and-swap of its record to FREE. Its words then name an owner that the table does not know, so
 * they are free already; clearing them is tidying up. The other order would leave half a reservation under its key.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "assertion.h"
#include "claim_many.h"
#include "cpuset.h"
#include "event.h"
#include "failure.h"
#include "handle.h"
#include "host.h"
#include "instance.h"
#include "lease.h"
#include "life.h"
#include "self.h"
#include "semaphore.h"
#include "tenancy.h"

static bool is_key(const char *key)
{
	size_t length = key ? strnlen(key, sizeof(((struct mtlshm_record *)0)->key)) : 0;

	return length && length < sizeof(((struct mtlshm_record *)0)->key);
}

/* Is the record that of a reservation with this key? Constant while it is PROXIED, as it must be before and after. */
static bool has_key(const struct mtlshm_record *record, const char *key)
{
	uint64_t control = __atomic_load_n(&record->control, __ATOMIC_ACQUIRE);
	bool same = control_proxied(control) && record->kind == MTLSHM_KIND_RESERVATION &&
		    !strncmp(record->key, key, sizeof(record->key));

	__atomic_thread_fence(__ATOMIC_ACQUIRE);
	return same && __atomic_load_n(&record->control, __ATOMIC_RELAXED) == control;
}

static uint64_t find(const struct mtlshm_host *host, const char *key)
{
	for (uint32_t i = 0; i < MTLSHM_INSTANCES; i++) {
		const struct mtlshm_record *record = &host->segment->instances[i];
		uint64_t control = __atomic_load_n(&record->control, __ATOMIC_ACQUIRE);

		if (has_key(record, key))
			return owner_make(i, control_generation(control));
	}
	return 0;
}

/* What it has and what its tenants have. */
static void list(const struct mtlshm_host *host, uint64_t owner, struct mtlshm_reserved *reserved)
{
	reserved->owner = owner;
	reserved->count = 0;
	for (uint32_t i = 0; i < host->lcores; i++) {
		uint64_t holder = owner_of(__atomic_load_n(&host->segment->lcores[i].owner, __ATOMIC_ACQUIRE));

		if (tenancy_descends(host, holder, owner))
			reserved->lcores[reserved->count++] = (uint16_t)i;
	}
}

/* The reservation begins as an instance of this process. */
static int begin(struct mtlshm_instance **result, struct mtlshm_host *host, const char *key, const char *label,
		 const struct mtlshm_cpuset *cpus)
{
	struct mtlshm_instance *me = handle_new(host, cpus);
	struct entry entry = {.kind = MTLSHM_KIND_RESERVATION, .key = key, .quiet = true};
	struct life life;
	int rc;

	if (!me)
		return -ENOMEM;
	rc = host_enter(&life, host, O_RDWR);
	if (!rc) {
		entry.process = self_describe(host, label);
		rc = instance_become(me, &life, &entry);
		life_leave(&life);
	}
	return handle_finish(result, me, rc);
}

/* It is a reservation from here on, whatever becomes of the process; its handle can only be freed. */
static void settle(struct mtlshm_instance *me, const struct mtlshm_reserved *reserved)
{
	struct mtlshm_event event = event_about(me->host, MTLSHM_EVENT_RESERVED, me->owner);
	uint64_t live = control_make(owner_generation(me->owner), MTLSHM_LIVE);

	__atomic_compare_exchange_n(&segment_record(me->host, me->owner)->control, &live,
				    control_make(owner_generation(me->owner), MTLSHM_PROXIED), false, __ATOMIC_SEQ_CST,
				    __ATOMIC_RELAXED);
	for (uint32_t i = 0; i < reserved->count; i++)
		cpuset_add(&event.lcores, reserved->lcores[i]);
	event_write(me->host, &event);
	life_unpin(me->pin);
	me->pin = NULL;
	me->proxied = true;
}

/* Under the semaphore. */
static int reserve(struct mtlshm_host *host, const char *key, const char *label, const struct mtlshm_want *want,
		   const struct mtlshm_cpuset *cpus, struct mtlshm_reserved *reserved)
{
	struct mtlshm_want lease = *want;
	const struct mtlshm_topology *topology;
	struct mtlshm_cpuset allowed;
	struct mtlshm_instance *made;
	int rc;

	assert(semaphore_inside());
	rc = begin(&made, host, key, label ? label : key, cpus);
	if (rc)
		return rc;
	lease.type = MTLSHM_LCORE_LEASE;
	rc = claim_look(made, &topology, &allowed);
	if (!rc)
		rc = claim_choice(made, topology, &allowed, &lease, reserved->lcores);
	if (!rc) {
		reserved->owner = mtlshm_owner(made);
		reserved->count = want->count;
		settle(made, reserved);
	}
	mtlshm_instance_free(made); /* unregisters what is not settled */
	return rc;
}

int mtlshm_reserve(struct mtlshm_host *host, const char *key, const char *label, const struct mtlshm_want *want,
		   const struct mtlshm_cpuset *cpus, struct mtlshm_reserved *reserved)
{
	const struct mtlshm_identity identity = {.label = label ? label : key, .parent = MTLSHM_NO_PARENT};
	struct mtlshm_instance *maker;
	uint64_t owner;
	int rc;

	failure_forget();
	if (!is_key(key))
		return -EINVAL;
	rc = instance_register(&maker, host, &identity, true);
	if (rc)
		return rc;
	rc = semaphore_enter(maker, want->timeout_ms);
	if (rc >= 0) {
		owner = find(host, key);
		if (owner)
			list(host, owner, reserved);
		rc = owner ? 1 : reserve(host, key, label, want, cpus, reserved);
		semaphore_leave(maker);
	}
	mtlshm_instance_free(maker);
	return segment_lost(host) ? -EBADMSG : rc;
}

int mtlshm_reservation(struct mtlshm_host *host, const char *key, struct mtlshm_reserved *reserved)
{
	uint64_t owner;

	failure_forget();
	if (!is_key(key))
		return -EINVAL;
	owner = find(host, key);
	if (owner)
		list(host, owner, reserved);
	return segment_lost(host) ? -EBADMSG : owner ? 0 : -ESRCH;
}

int mtlshm_end(struct mtlshm_host *host, uint64_t owner)
{
	uint64_t control = control_make(owner_generation(owner), MTLSHM_PROXIED);
	struct mtlshm_event event;

	failure_forget();
	if (host->read_only)
		return -EROFS;
	event = event_about(host, MTLSHM_EVENT_ENDED, owner);
	if (!segment_proxied(host, owner) ||
	    __atomic_load_n(&segment_record(host, owner)->kind, __ATOMIC_RELAXED) != MTLSHM_KIND_RESERVATION ||
	    !__atomic_compare_exchange_n(&segment_record(host, owner)->control, &control, control_after(control), false,
					 __ATOMIC_SEQ_CST, __ATOMIC_RELAXED))
		return segment_lost(host) ? -EBADMSG : -ESRCH;
	lease_clear(host, owner_of(owner), 0, &event.lcores);
	event_write(host, &event);
	return 0;
}
