/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Becoming an instance and ceasing to be one. The order of steps is what makes death at any line harmless:
 *
 *   register    read lock; collect what lies there; write lock; pin; fill the record, which nobody reads
 *               while it is FREE; LIVE; doorbell.
 *               Died before LIVE: the record is FREE and the lock is gone. After: a dead instance like any.
 *               A tenant looks at its parent before LIVE and again after; if that is dead, it goes FREE again.
 *   unregister  owner 0 in our memory, so that our own threads stop; lcores; FREE; unpin.
 *               Died before FREE: a dead instance. After: nothing to collect.
 *               A tenant may be a parent itself, and then its record must be kept: only a collector, which holds the
 *               read lock, can tell. So a tenant lets go of its life lock first, and is collected like the dead.
 *
 * Instances without a life lock are made by the same steps: see proxy.c and reservation.c. What each lock protects is said in
 * life.c.
 */
#include "instance.h"

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "assertion.h"
#include "clock.h"
#include "event.h"
#include "failure.h"
#include "handle.h"
#include "host.h"
#include "lease.h"
#include "life.h"
#include "self.h"
#include "tenancy.h"

/* Rounds over all records before giving up on a place that others always get first. */
#define REGISTER_TRIES 100

static void fill_record(struct mtlshm_record *record, const struct entry *entry)
{
	record->registered_ns = clock_own() - clock_shift();
	__atomic_store_n(&record->kind, entry->kind, __ATOMIC_RELAXED);
	__atomic_store_n(&record->parent, entry->parent, __ATOMIC_RELAXED);
	record->process = *entry->process;
	memset(record->key, 0, sizeof(record->key));
	if (entry->key)
		strncpy(record->key, entry->key, sizeof(record->key) - 1);
	__atomic_store_n(&record->claims, 0, __ATOMIC_RELAXED);
	__atomic_store_n(&record->releases, 0, __ATOMIC_RELAXED);
}

/* What occupy() says of a record that cannot be had; no errno, so that no system call's failure looks like it. */
enum {
	LIVES = LIFE_TAKEN, /* its owner lives */
	CONTENDED,          /* somebody is just looking at it, and it may be had later */
};

/* Try to make record `index` ours. 0: its write lock is held and it is FREE; LIVES, CONTENDED, or a negative errno. */
static int occupy(struct mtlshm_host *host, struct life *life, uint32_t index)
{
	struct mtlshm_record *record = &host->segment->instances[index];
	off_t byte = life_byte(owner_make(index, 0));
	int rc = life_share(life, byte);
	uint64_t owner, parent;
	uint32_t cleared;

	if (rc)
		return rc;
	owner = owner_make(index, control_generation(__atomic_load_n(&record->control, __ATOMIC_ACQUIRE)));
	parent = tenancy_parent(host, owner);
	if (lease_collect(host, life, owner, MTLSHM_EVENT_DIED,
			  &cleared)) /* LIVE, and nobody holds the write lock: dead */
		lease_collect_up(host, life, parent);
	if (!control_free(__atomic_load_n(&record->control, __ATOMIC_ACQUIRE))) { /* proxied, or kept */
		life_drop(life, byte);
		return LIVES;
	}
	rc = life_take(life, byte);
	if (!rc)
		return 0;
	life_drop(life, byte);
	return rc == LIFE_TAKEN ? CONTENDED : rc;
}

/* Find a record and its write lock: first among those that look free, which costs one try, then among all. */
static int find_record(struct mtlshm_host *host, struct life *life, uint32_t *result)
{
	struct timespec now;
	uint32_t start = 0;

	for (int round = 0; round < REGISTER_TRIES; round++) {
		bool contended = false;

		for (uint32_t i = 0; i < 2 * MTLSHM_INSTANCES; i++) {
			uint32_t index = (start + i) % MTLSHM_INSTANCES;
			uint64_t control = __atomic_load_n(&host->segment->instances[index].control, __ATOMIC_RELAXED);
			int rc;

			if (i < MTLSHM_INSTANCES && !control_free(control))
				continue;
			rc = occupy(host, life, index);
			if (!rc) {
				*result = index;
				return 0;
			}
			if (rc < 0)
				return rc;
			contended |= rc == CONTENDED;
		}
		if (!contended)
			return -EUSERS;
		/* Two newcomers that met once would meet at every record if both went on in step. The pid is
		 * no help: both may be PID 1. */
		clock_gettime(CLOCK_MONOTONIC, &now);
		start = (uint32_t)now.tv_nsec % MTLSHM_INSTANCES;
	}
	return -EUSERS;
}

int instance_become(struct mtlshm_instance *me, struct life *life, const struct entry *entry)
{
	struct mtlshm_header *header = &me->host->segment->header;
	struct mtlshm_record *record;
	struct mtlshm_event event;
	uint64_t generation, control;
	uint32_t index;
	int rc = find_record(me->host, life, &index);

	assert(entry->kind != MTLSHM_KIND_DAEMON || life_holds(life, MTLSHM_DAEMON_BYTE));
	/* Not before we have our record, which might have been the parent's. */
	if (!rc && entry->parent)
		rc = tenancy_admits(me->host, NULL, entry->parent);
	if (!rc && !me->proxied)
		rc = life_pin(life, &me->pin);
	if (rc)
		return rc;

	assert(life_holds(life, life_byte(owner_make(index, 0))));
	record = &me->host->segment->instances[index];
	generation = control_generation(record->control);
	if (!generation)
		generation = 1;
	/* A snapshot that still reads the record of the last owner must see that its control word has changed
	 * when it sees a byte of ours: release here, acquire between its copy and its second look. */
	__atomic_thread_fence(__ATOMIC_RELEASE);
	fill_record(record, entry);
	control = control_make(generation, me->proxied ? MTLSHM_PROXIED : MTLSHM_LIVE);
	__atomic_store_n(&record->control, control, __ATOMIC_SEQ_CST);
	if (__atomic_load_n(&header->state, __ATOMIC_SEQ_CST) != MTLSHM_IN_USE) {
		__atomic_store_n(&record->control, control_after(control), __ATOMIC_RELEASE);
		life_unpin(me->pin);
		return segment_lost(me->host) ? -EBADMSG : -ESTALE;
	}
	if (entry->parent)
		rc = tenancy_admits(me->host, life, entry->parent);
	if (rc) { /* the parent has died, and may have been kept for us */
		__atomic_store_n(&record->control, control_after(control), __ATOMIC_RELEASE);
		lease_collect_up(me->host, life, entry->parent);
		life_unpin(me->pin);
		return rc;
	}
	me->lease = lease_of(entry->parent);
	me->process = life_adopt();
	me->owner = owner_make(index, generation);
	me->record = record;
	segment_count(&header->registered, 1);
	if (!entry->quiet) {
		event = event_about(me->host, MTLSHM_EVENT_REGISTERED, me->owner);
		event_write(me->host, &event);
	}
	me->quiet = entry->quiet;
	return 0;
}

/* IN_MODIFY for the daemon; a write through the mapping would make no event. The byte's value means nothing,
 * and if it cannot be written the daemon finds us at its next look. */
static void ring(const struct life *life)
{
	if (pwrite(life->fd, "", 1, offsetof(struct mtlshm_segment, header.doorbell)) < 0)
		return;
}

int instance_register(struct mtlshm_instance **result, struct mtlshm_host *host, const struct mtlshm_identity *identity,
		      bool quiet)
{
	static const struct mtlshm_identity nobody;
	struct mtlshm_instance *me;
	struct entry entry;
	struct life life;
	int rc;

	failure_forget();
	if (!identity)
		identity = &nobody;
	if (identity->kind != MTLSHM_KIND_SHM && identity->kind != MTLSHM_KIND_DAEMON)
		return -EINVAL;
	if (host->read_only)
		return -EROFS;
	entry = (struct entry){.kind = identity->kind, .quiet = quiet};
	if (identity->kind == MTLSHM_KIND_SHM && identity->parent != MTLSHM_NO_PARENT) {
		entry.parent = owner_of(identity->parent);
		rc = entry.parent ? 0 : tenancy_inherit(host, &entry.parent);
		if (rc)
			return rc;
	}
	me = handle_new(host, identity->cpus);
	if (!me)
		return -ENOMEM;
	rc = handle_refresh(me);
	if (!rc)
		rc = host_enter(&life, host, O_RDWR);
	if (!rc) {
		if (identity->kind == MTLSHM_KIND_DAEMON)
			rc = life_take(&life, MTLSHM_DAEMON_BYTE);
		if (rc == LIFE_TAKEN)
			rc = -EEXIST;
		if (!rc) {
			entry.process = self_describe(host, identity->label);
			rc = instance_become(me, &life, &entry);
		}
		if (!rc)
			ring(&life);
		life_leave(&life);
	}
	return handle_finish(result, me, rc);
}

int mtlshm_register(struct mtlshm_instance **result, struct mtlshm_host *host, const struct mtlshm_identity *identity)
{
	return instance_register(result, host, identity, false);
}

/* The instance gives back what it has, and nobody can be its tenant: the record is free. */
static void leave(struct mtlshm_instance *me, uint64_t owner)
{
	struct mtlshm_event event = event_about(me->host, MTLSHM_EVENT_ENDED, owner);
	uint64_t claims = __atomic_load_n(&me->record->claims, __ATOMIC_RELAXED);
	uint64_t releases = __atomic_load_n(&me->record->releases, __ATOMIC_RELAXED);
	uint64_t control;
	bool gone;

	releases += lease_clear(me->host, owner, me->lease, &event.lcores);
	control = __atomic_load_n(&me->record->control, __ATOMIC_RELAXED);
	gone = control_of(control, owner) && /* else somebody has taken it for dead */
	       __atomic_compare_exchange_n(&me->record->control, &control, control_after(control), false,
					   __ATOMIC_RELEASE, __ATOMIC_RELAXED);
	life_unpin(me->pin);
	if (gone && !me->proxied)
		lease_account(me->host, claims, releases);
	if (gone && !me->quiet)
		event_write(me->host, &event);
}

/* If the life lock cannot be queried for lack of descriptors, a dead instance like any is left. */
static void leave_lease(struct mtlshm_instance *me, uint64_t owner)
{
	uint64_t parent = tenancy_parent(me->host, owner);
	struct life life;

	if (!me->proxied) {
		life_unpin(me->pin);
		lease_collect_one(me->host, owner, MTLSHM_EVENT_ENDED);
		return;
	}
	leave(me, owner);
	if (!host_enter(&life, me->host, O_RDONLY)) {
		lease_collect_up(me->host, &life, parent);
		life_leave(&life);
	}
}

int mtlshm_unregister(struct mtlshm_instance *me)
{
	uint64_t owner;
	int rc = 0;

	failure_forget();
	if (!handle_owner(me, &rc))
		return rc;
	owner = __atomic_exchange_n(&me->owner, 0, __ATOMIC_SEQ_CST); /* of two threads, one goes on */
	if (!owner)
		return -EBADF;
	__atomic_thread_fence(__ATOMIC_SEQ_CST); /* before our words are looked for; see keep() in lease.h */
	if (me->lease)
		leave_lease(me, owner);
	else
		leave(me, owner);
	return 0;
}

void mtlshm_instance_free(struct mtlshm_instance *me)
{
	if (!me)
		return;
	if (!me->proxied)
		mtlshm_unregister(me);
	__atomic_sub_fetch(&me->host->instances, 1, __ATOMIC_RELEASE);
	free(me);
}
