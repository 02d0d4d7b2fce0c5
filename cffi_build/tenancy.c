/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Parents and tenants.
 *
 * THE DANGER is a word that loses its way home. A tenant gives back by writing parent|LEASE without a look. If the
 * parent's record were freed at that moment, the word would name an owner that nobody knows, which means free;
 * and a grandparent that lives would have lost an lcore to the first stranger. So the record of a dead parent that
 * has a parent itself is kept as long as it has tenants, and nobody becomes the tenant of one that is dead.
 *
 * BECOMING A TENANT races with the collector of a parent that has just died. The collector asks for tenants before
 * it clears words and frees the record; the tenant goes LIVE first and asks about its parent then. If the parent's
 * life lock is held after we are LIVE, then every collector of it comes later, and sees us. If it is not held, we
 * may or may not have been seen; so we go back, and try to collect the parent in case it was kept for our sake. The look
 * before LIVE is not enough for that: an early version had only that one, and lost lcores to such a collector.
 *
 * A parent's field is read from the segment, and may be anything: it is checked in one place, parent_of(). A chain that
 * leads in a circle can only be damage; each walk up counts its steps.
 */
#include "tenancy.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "failure.h"
#include "host.h"

/* Read once, checked: an owner other than this one, or 0. */
static uint64_t parent_of(const struct mtlshm_host *host, uint32_t index)
{
	uint64_t parent = __atomic_load_n(&host->segment->instances[index].parent, __ATOMIC_RELAXED);

	if (owner_of(parent) != parent || !owner_generation(parent) || owner_index(parent) >= MTLSHM_INSTANCES ||
	    owner_index(parent) == index)
		return 0;
	return parent;
}

/* The field is constant while the record is LIVE or PROXIED: what was read counts if the owner is known after it. */
uint64_t tenancy_parent(const struct mtlshm_host *host, uint64_t owner)
{
	uint64_t parent;

	if (!segment_knows(host, owner))
		return 0;
	parent = parent_of(host, owner_index(owner));
	__atomic_thread_fence(__ATOMIC_ACQUIRE);
	return segment_knows(host, owner) ? parent : 0;
}

bool tenancy_has_tenants(const struct mtlshm_host *host, uint64_t owner)
{
	for (uint32_t i = 0; i < MTLSHM_INSTANCES; i++) {
		uint64_t control = __atomic_load_n(&host->segment->instances[i].control, __ATOMIC_SEQ_CST);

		if (control_of(control, owner_make(i, control_generation(control))) && parent_of(host, i) == owner)
			return true;
	}
	return false;
}

bool tenancy_descends(const struct mtlshm_host *host, uint64_t owner, uint64_t forebear)
{
	for (int depth = 0; owner && owner != forebear && depth < MTLSHM_DEPTH; depth++)
		owner = tenancy_parent(host, owner);
	return owner && owner == forebear;
}

/* Reservations are the only proxied records that can be parents. */
static bool is_reservation(const struct mtlshm_host *host, uint64_t owner)
{
	const struct mtlshm_record *record = segment_record(host, owner);
	uint32_t kind = __atomic_load_n(&record->kind, __ATOMIC_RELAXED);

	__atomic_thread_fence(__ATOMIC_ACQUIRE);
	return segment_knows(host, owner) && kind == MTLSHM_KIND_RESERVATION;
}

int tenancy_admits(const struct mtlshm_host *host, const struct life *life, uint64_t parent)
{
	int depth = 2, held; /* the tenant and its parent */

	if (!segment_knows(host, parent))
		return -ESRCH;
	for (uint64_t above = tenancy_parent(host, parent); above; above = tenancy_parent(host, above))
		if (++depth > MTLSHM_DEPTH)
			return -ELOOP;
	if (segment_proxied(host, parent))
		return is_reservation(host, parent) ? 0 : -ESRCH;
	if (!life)
		return 0;
	held = life_held(life, life_byte(parent), 1);
	if (held < 0)
		return held;
	/* The lock seen may be that of the record's next owner. */
	return held && segment_knows(host, parent) ? 0 : -ESRCH;
}

int mtlshm_lease_format(struct mtlshm_host *host, uint64_t owner, char *text)
{
	failure_forget();
	snprintf(text, MTLSHM_LEASE_SIZE, "%llx@%llx", (unsigned long long)owner,
		 (unsigned long long)host->segment->header.created_ns);
	return segment_lost(host) ? -EBADMSG : 0;
}

/* One hexadecimal number of at most 16 digits; strtoull(3) would also take signs, spaces and 0x. */
static bool read_number(const char **text, uint64_t *number)
{
	static const char digits[] = "0123456789abcdef";
	const char *digit;
	int count = 0;

	for (*number = 0; **text && (digit = strchr(digits, **text)); (*text)++, count++)
		*number = *number << 4 | (uint64_t)(digit - digits);
	return count && count <= 16;
}

int mtlshm_lease_parse(struct mtlshm_host *host, const char *text, uint64_t *owner)
{
	uint64_t named, created;

	failure_forget();
	if (!read_number(&text, &named) || *text++ != '@' || !read_number(&text, &created) || *text ||
	    owner_of(named) != named || !owner_generation(named))
		return -EINVAL;
	if (created != host->segment->header.created_ns)
		return segment_lost(host) ? -EBADMSG : -ESRCH;
	*owner = named;
	return 0;
}

int tenancy_inherit(struct mtlshm_host *host, uint64_t *parent)
{
	const char *text = secure_getenv("MTLSHM_LEASE");

	*parent = 0;
	return text && *text ? mtlshm_lease_parse(host, text, parent) : 0;
}

int mtlshm_parent(struct mtlshm_host *host, uint64_t owner, uint64_t *parent)
{
	bool known;

	failure_forget();
	*parent = tenancy_parent(host, owner);
	known = *parent || segment_knows(host, owner);
	return segment_lost(host) ? -EBADMSG : known ? 0 : -ESRCH;
}

static bool is_leased(const struct mtlshm_host *host)
{
	for (uint32_t i = 0; i < host->lcores; i++)
		if ((__atomic_load_n(&host->segment->lcores[i].owner, __ATOMIC_RELAXED) & TOKEN_TYPE_MASK) ==
		    MTLSHM_LCORE_LEASE)
			return true;
	for (uint32_t i = 0; i < MTLSHM_INSTANCES; i++) {
		const struct mtlshm_record *record = &host->segment->instances[i];

		if (!control_free(__atomic_load_n(&record->control, __ATOMIC_ACQUIRE)) &&
		    __atomic_load_n(&record->parent, __ATOMIC_RELAXED))
			return true;
	}
	return false;
}

int mtlshm_leased(struct mtlshm_host *host)
{
	bool leased;

	failure_forget();
	leased = is_leased(host);
	return segment_lost(host) ? -EBADMSG : leased;
}
