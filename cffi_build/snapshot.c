/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Reading everything without stopping anyone.
 *
 * A record is constant while it is LIVE, and its control word changes with every change of hands; so a copy
 * is good if the control word said LIVE before it and the same after it. An lcore is shown as held if its
 * word was the same before and after its owner's record was seen LIVE. There is no moment at which all of
 * it was true together; a lock to have that would be one more thing to die with.
 *
 * Nothing read is trusted: indices come from token.h and are checked, strings end where their array ends.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <time.h>

#include "clock.h"
#include "failure.h"
#include "host.h"
#include "life.h"
#include "tenancy.h"

/* An instance or lcore that changes hands this often while we look is left out. */
#define TRIES 16

/* Positions in snapshot.instances[] by record index. */
struct positions {
	int16_t of[MTLSHM_INSTANCES];
};

/* 0, or -ESRCH if the record is not LIVE. */
static int read_record(const struct mtlshm_host *host, const struct life *life, uint32_t index,
		       struct mtlshm_instance_info *info)
{
	const struct mtlshm_record *record = &host->segment->instances[index];
	struct mtlshm_record copy;

	for (int i = 0; i < TRIES; i++) {
		uint64_t control = __atomic_load_n(&record->control, __ATOMIC_ACQUIRE);

		if (!control_of(control, owner_make(index, control_generation(control))))
			break;
		memcpy(&copy, record, sizeof(copy));
		/* Pairs with the release fence of a newcomer that fills the record. */
		__atomic_thread_fence(__ATOMIC_ACQUIRE);
		if (__atomic_load_n(&record->control, __ATOMIC_RELAXED) != control)
			continue;
		*info = (struct mtlshm_instance_info){
			.owner = owner_make(index, control_generation(control)),
			.registered_ns = copy.registered_ns,
			.kind = copy.kind,
			.parent = tenancy_parent(host, owner_make(index, control_generation(control))),
			.process = copy.process,
		};
		memcpy(info->key, copy.key, sizeof(info->key) - 1);
		info->process.comm[sizeof(info->process.comm) - 1] = '\0';
		info->process.hostname[sizeof(info->process.hostname) - 1] = '\0';
		info->process.label[sizeof(info->process.label) - 1] = '\0';
		info->alive = control_proxied(control) ? 1 : life_held(life, life_byte(info->owner), 1);
		/* The lock seen may be that of the record's next owner. */
		if (__atomic_load_n(&record->control, __ATOMIC_ACQUIRE) == control)
			return 0;
	}
	return -ESRCH;
}

/* Add the record, if it is LIVE, to the snapshot or to its old place there. */
static void copy_record(const struct mtlshm_host *host, const struct life *life, uint32_t index,
			struct mtlshm_snapshot *out, struct positions *positions)
{
	struct mtlshm_instance_info info;

	if (read_record(host, life, index, &info))
		return;
	if (positions->of[index] < 0)
		positions->of[index] = (int16_t)out->instance_count++;
	out->instances[positions->of[index]] = info;
}

static void copy_lcore(const struct mtlshm_host *host, const struct life *life, uint32_t lcore,
		       struct mtlshm_snapshot *out, struct positions *positions)
{
	const struct mtlshm_lcore *slot = &host->segment->lcores[lcore];
	struct mtlshm_lcore_info *info = &out->lcores[lcore];

	*info = (struct mtlshm_lcore_info){.instance = -1};
	for (int i = 0; i < TRIES; i++) {
		uint64_t token = __atomic_load_n(&slot->owner, __ATOMIC_ACQUIRE), owner = owner_of(token);
		uint64_t note = __atomic_load_n(&slot->note, __ATOMIC_RELAXED);
		int16_t position;

		if (!token)
			return;
		if (segment_knows(host, owner)) {
			position = positions->of[owner_index(owner)];
			/* Registered since we copied the records; or the record is the next one's by now, and
			 * lcores shown as the last one's would be nobody's: leave those. */
			if (position < 0 ||
			    (out->instances[position].owner != owner && !out->instances[position].lcores)) {
				copy_record(host, life, owner_index(owner), out, positions);
				position = positions->of[owner_index(owner)];
			}
			if (__atomic_load_n(&slot->owner, __ATOMIC_ACQUIRE) != token)
				continue;
			if (position < 0 || out->instances[position].owner != owner)
				return;
			out->instances[position].lcores++;
			*info = (struct mtlshm_lcore_info){
				.owner = owner,
				.since = (uint32_t)note,
				.tag = (uint32_t)(note >> 32),
				.type = (uint32_t)(token & TOKEN_TYPE_MASK),
				.instance = position,
			};
			return;
		}
		/* A leftover is as good as free, if it is still there. */
		if (__atomic_load_n(&slot->owner, __ATOMIC_ACQUIRE) == token)
			return;
	}
}

int mtlshm_snapshot(struct mtlshm_host *host, struct mtlshm_snapshot *out)
{
	const struct mtlshm_header *header = &host->segment->header;
	struct positions positions;
	const uint64_t shift = clock_shift();
	struct life life;
	int rc;

	failure_forget();
	rc = host_enter(&life, host, O_RDONLY);
	if (rc)
		return rc;
	memset(positions.of, 0xff, sizeof(positions.of));
	out->taken = (uint64_t)time(NULL);
	out->taken_ns = clock_own();
	out->created_ns = header->created_ns;
	out->semaphore = owner_of(__atomic_load_n(&header->semaphore, __ATOMIC_RELAXED));
	out->registered = __atomic_load_n(&header->registered, __ATOMIC_RELAXED);
	out->collected = __atomic_load_n(&header->collected, __ATOMIC_RELAXED);
	out->recovered = __atomic_load_n(&header->recovered, __ATOMIC_RELAXED);
	out->takeovers = __atomic_load_n(&header->takeovers, __ATOMIC_RELAXED);
	out->claims = __atomic_load_n(&header->claims, __ATOMIC_RELAXED);
	out->releases = __atomic_load_n(&header->releases, __ATOMIC_RELAXED);
	out->instance_count = 0;
	out->lcore_count = host->lcores;
	for (uint32_t i = 0; i < MTLSHM_INSTANCES; i++) {
		const struct mtlshm_record *record = &host->segment->instances[i];
		uint64_t control = __atomic_load_n(&record->control, __ATOMIC_RELAXED);

		copy_record(host, &life, i, out, &positions);
		if ((control & CONTROL_STATE_MASK) == MTLSHM_LIVE) {
			out->claims += __atomic_load_n(&record->claims, __ATOMIC_RELAXED);
			out->releases += __atomic_load_n(&record->releases, __ATOMIC_RELAXED);
		}
	}
	for (uint32_t i = 0; i < host->lcores; i++)
		copy_lcore(host, &life, i, out, &positions);
	for (uint32_t i = 0; i < out->instance_count; i++)
		out->instances[i].registered_ns += shift;
	life_leave(&life);
	return segment_lost(host) ? -EBADMSG : 0;
}

int mtlshm_inspect(struct mtlshm_host *host, uint64_t owner, struct mtlshm_instance_info *info)
{
	struct life life;
	int rc;

	failure_forget();
	if (!segment_knows(host, owner))
		return segment_lost(host) ? -EBADMSG : -ESRCH;
	rc = host_enter(&life, host, O_RDONLY);
	if (rc)
		return rc;
	rc = read_record(host, &life, owner_index(owner), info);
	life_leave(&life);
	if (segment_lost(host))
		return -EBADMSG;
	if (rc || info->owner != owner)
		return rc ? rc : -ESRCH;
	info->registered_ns += clock_shift();
	for (uint32_t i = 0; i < host->lcores; i++)
		info->lcores += owner_of(__atomic_load_n(&host->segment->lcores[i].owner, __ATOMIC_RELAXED)) == owner;
	return 0;
}
