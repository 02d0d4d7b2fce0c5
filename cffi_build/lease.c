/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Leases: lcores taken, given back, and recovered from the dead.
 *
 * An lcore changes hands by one compare-and-swap of one word, so no claim is ever half done, and of two that
 * want the same lcore exactly one succeeds. The word names its owner with a generation, so a word that was
 * read a moment ago can be exchanged only if nothing has happened since: there is no A-B-A.
 *
 * Recovery is three steps: prove the owner dead (read lock on its life byte), clear its words, let its
 * record go FREE with the next generation. The order is the safety: as long as words may be left, the
 * record still says LIVE and the next collector finds them. Killed in between, it is done again; run by two
 * at once, each word is cleared by one of them. A word of the dead cannot appear behind a collector's back,
 * since only its owner writes it.
 *
 * Words can outlive their record all the same: what a tenant gives back to a parent that is gone, a thread that
 * claims while another of its process unregisters, or bytes written by accident. segment_knows() tells them, and
 * any claim of the lcore takes it.
 *
 * TENANTS claim and give back words of their parent instead of 0: one field of the instance, `lease`, is both what a claim
 * expects and what a release writes. Two rules keep an lcore in its family. What a dead tenant had goes to the
 * parent, never straight to the claimant: a sibling takes it from there. And a collector looks whether the dead one has
 * tenants before it clears words, not after: words that come back in between would be left in a record that is then
 * freed. If it has, the record stays LIVE, and the end of each tenant tries its parent again.
 */
#include "lease.h"

#include <errno.h>
#include <fcntl.h>

#include "assertion.h"
#include "cpuset.h"
#include "event.h"
#include "failure.h"
#include "handle.h"
#include "host.h"
#include "life.h"
#include "tenancy.h"
#include "topology.h"

/* How many dead or short-lived owners in a row one claim fights through before it says "busy". */
#define CLAIM_TRIES 64

#define unlikely(condition) __builtin_expect(!!(condition), 0)

uint32_t lease_clear(struct mtlshm_host *host, uint64_t owner, uint64_t lease, struct mtlshm_cpuset *cleared)
{
	*cleared = (struct mtlshm_cpuset){0};

	for (uint32_t i = 0; i < host->lcores; i++) {
		uint64_t token = __atomic_load_n(&slot(host, i)->owner, __ATOMIC_RELAXED);

		if (owner_of(token) == owner && give_back(slot(host, i), &token, lease))
			cpuset_add(cleared, i);
	}
	return cpuset_count(cleared);
}

void lease_account(struct mtlshm_host *host, uint64_t claims, uint64_t releases)
{
	if (claims)
		segment_count(&host->segment->header.claims, claims);
	if (releases)
		segment_count(&host->segment->header.releases, releases);
}

/* Of the record's owner LIVE and nothing else: a reservation that is just made goes from LIVE to PROXIED, and lets go of
 * its life lock after. Release: a process that sees FREE sees the words cleared. Only one of several collectors changes it,
 * and tells of it; lcores that another has cleared at that moment are not in its event. One that is kept is told of once, by
 * whoever clears its words. */
bool lease_collect(struct mtlshm_host *host, const struct life *life, uint64_t owner, enum mtlshm_event_kind kind,
		   uint32_t *cleared)
{
	struct mtlshm_record *record = segment_record(host, owner);
	uint64_t live = control_make(owner_generation(owner), MTLSHM_LIVE), parent, claims, releases;
	struct mtlshm_event event;
	bool kept, gone;

	assert(life_holds(life, life_byte(owner)));
	*cleared = 0;
	if (__atomic_load_n(&record->control, __ATOMIC_ACQUIRE) != live)
		return false;
	parent = tenancy_parent(host, owner);
	kept = parent && tenancy_has_tenants(host, owner);
	event = event_about(host, kept ? MTLSHM_EVENT_KEPT : kind, owner);
	claims = __atomic_load_n(&record->claims, __ATOMIC_RELAXED);
	releases = __atomic_load_n(&record->releases, __ATOMIC_RELAXED);
	*cleared = lease_clear(host, owner, lease_of(parent), &event.lcores);
	segment_count(&host->segment->header.recovered, *cleared);
	gone = !kept && __atomic_compare_exchange_n(&record->control, &live, control_after(live), false,
						    __ATOMIC_RELEASE, __ATOMIC_RELAXED);
	if (gone) {
		segment_count(&host->segment->header.collected, 1);
		lease_account(host, claims, releases);
	}
	if (gone || (kept && *cleared))
		event_write(host, &event);
	return gone;
}

/* Collect one owner if it is dead. Returns how many lcores, -EBUSY or -ESRCH; *gone tells whether its record is free by
 * our doing. */
static int collect_one(struct mtlshm_host *host, struct life *life, uint64_t owner, enum mtlshm_event_kind kind,
		       bool *gone)
{
	off_t byte = life_byte(owner);
	uint32_t cleared;
	int rc;

	*gone = false;
	if (!segment_knows(host, owner))
		return -ESRCH;
	if (segment_proxied(host, owner))
		return -EBUSY;
	rc = life_share(life, byte);
	/* The lock in the way may be that of the record's next owner. */
	if (rc == LIFE_TAKEN)
		return segment_knows(host, owner) ? -EBUSY : -ESRCH;
	if (rc)
		return rc;
	if (segment_proxied(host, owner)) {
		rc = -EBUSY;
	} else if (segment_knows(host, owner)) {
		*gone = lease_collect(host, life, owner, kind, &cleared);
		rc = (int)cleared;
	} else {
		rc = -ESRCH;
	}
	life_drop(life, byte);
	return rc;
}

int lease_collect_up(struct mtlshm_host *host, struct life *life, uint64_t parent)
{
	bool gone = true;
	int collected = 0;

	for (int depth = 0; parent && gone && depth < MTLSHM_DEPTH; depth++) {
		uint64_t above = tenancy_parent(host, parent);

		collect_one(host, life, parent, MTLSHM_EVENT_DIED, &gone);
		collected += gone;
		parent = above;
	}
	return collected;
}

/* Collect `owner` if it is dead, and then those that were kept for it: *collected is how many instances. Returns how many
 * lcores it gave up, -EBUSY or -ESRCH. */
static int collect(struct mtlshm_host *host, struct life *life, uint64_t owner, enum mtlshm_event_kind kind,
		   int *collected)
{
	uint64_t parent = tenancy_parent(host, owner);
	bool gone;
	int rc = collect_one(host, life, owner, kind, &gone);

	*collected = gone ? 1 + lease_collect_up(host, life, parent) : 0;
	return rc;
}

int lease_collect_one(struct mtlshm_host *host, uint64_t owner, enum mtlshm_event_kind kind)
{
	struct life life;
	int collected, rc;

	failure_forget();
	if (host->read_only)
		return -EROFS;
	if (!segment_knows(host, owner))
		return segment_lost(host) ? -EBADMSG : -ESRCH;
	rc = host_enter(&life, host, O_RDONLY);
	if (rc)
		return rc;
	rc = collect(host, &life, owner, kind, &collected);
	life_leave(&life);
	return rc;
}

int mtlshm_collect(struct mtlshm_host *host, uint64_t owner)
{
	return lease_collect_one(host, owner, MTLSHM_EVENT_DIED);
}

int mtlshm_sweep(struct mtlshm_host *host)
{
	uint64_t owners[MTLSHM_INSTANCES];
	int count = mtlshm_owners(host, owners), collected = 0, more, rc;
	uint32_t cleared = 0;
	struct life life;

	if (host->read_only)
		return -EROFS;
	rc = host_enter(&life, host, O_RDONLY);
	if (rc)
		return rc;
	for (int i = 0; i < count && (rc >= 0 || rc == -EBUSY || rc == -ESRCH); i++) {
		rc = collect(host, &life, owners[i], MTLSHM_EVENT_DIED, &more);
		collected += more;
	}
	life_leave(&life);
	for (uint32_t i = 0; i < host->lcores; i++) {
		uint64_t token = __atomic_load_n(&slot(host, i)->owner, __ATOMIC_ACQUIRE);

		if (token && !segment_knows(host, owner_of(token)) && swap(slot(host, i), &token, 0))
			cleared++;
	}
	segment_count(&host->segment->header.recovered, cleared);
	if (segment_lost(host))
		return -EBADMSG;
	return rc < 0 && rc != -EBUSY && rc != -ESRCH ? rc : collected;
}

/* Take an lcore whose word said `held`, from a dead owner too: what the dead one had goes where it came from, and if that
 * is where we may take it from, we do. An owner that the table does not know stands for 0. */
static int take_from(struct mtlshm_host *host, struct mtlshm_lcore *lcore, uint64_t held, uint64_t token,
		     uint64_t lease)
{
	for (int i = 0; i < CLAIM_TRIES; i++) {
		if (owner_of(held) == owner_of(token))
			return -EALREADY;
		if (held == lease) {
			if (swap(lcore, &held, token))
				return 0;
		} else if (held && segment_knows(host, owner_of(held))) {
			int rc = mtlshm_collect(host, owner_of(held));

			if (rc < 0 && rc != -ESRCH)
				return rc;
			held = __atomic_load_n(&lcore->owner, __ATOMIC_ACQUIRE);
		} else if (lease) {
			return -EDOM; /* it is not the parent's */
		} else if (swap(lcore, &held, token)) {
			return 0;
		}
	}
	return -EBUSY;
}

/* The instance may not claim this lcore, by what it knows: look again before saying so. */
static int look_again(struct mtlshm_instance *me, uint32_t lcore)
{
	struct mtlshm_cpuset online;
	int rc = handle_refresh(me);

	if (rc || handle_may(me, lcore))
		return rc;
	rc = topology_online(me->host->sysfs, &online);
	if (rc)
		return rc;
	return cpuset_empty(&online) || cpuset_has(&online, lcore) ? -EDOM : -ENODEV; /* empty: nobody can tell */
}

/* Refused without a system call: what an earlier call met is not the reason. */
static __attribute__((noinline, cold)) int refuse(int error)
{
	failure_forget();
	return error;
}

/* Everything but the claim that just succeeds; apart from it, so that it costs that no stack frame. */
static __attribute__((noinline, cold)) int claim_slowly(struct mtlshm_instance *me, uint32_t lcore, uint32_t type)
{
	int rc = 0;
	uint64_t owner = handle_owner(me, &rc);

	failure_forget();
	if (!owner)
		return rc;
	if (lcore >= me->host->lcores)
		return -ERANGE;
	if (type >= MTLSHM_LCORE_TYPES)
		return -EINVAL;
	if (!handle_may(me, lcore))
		rc = look_again(me, lcore);
	if (!rc)
		rc = take_from(me->host, slot(me->host, lcore),
			       __atomic_load_n(&slot(me->host, lcore)->owner, __ATOMIC_ACQUIRE), owner | type,
			       me->lease);
	if (!rc) {
		stamp(slot(me->host, lcore), now());
		handle_count(&me->record->claims, 1);
		rc = keep(me, lcore, owner | type);
	}
	return segment_lost(me->host) ? -EBADMSG : rc;
}

/* A thread that unregisters the instance meanwhile may have swept this lcore already. The claim is then
 * void, as if it had come first; the word left behind names an owner the table no longer knows. */
int mtlshm_claim(struct mtlshm_instance *me, uint32_t lcore, uint32_t type)
{
	struct mtlshm_lcore *wanted;
	uint64_t expected;
	uint32_t when;
	int ignored;
	uint64_t owner = handle_owner(me, &ignored);

	if (unlikely(!owner || lcore >= me->host->lcores || type >= MTLSHM_LCORE_TYPES || !handle_may(me, lcore)))
		return claim_slowly(me, lcore, type);
	wanted = slot(me->host, lcore);
	expected = me->lease;
	when = now(); /* its loads would wait for the locked instruction, if they came after it */
	if (unlikely(!swap(wanted, &expected, owner | type)))
		return claim_slowly(me, lcore, type);
	stamp(wanted, when);
	handle_count(&me->record->claims, 1);
	return keep(me, lcore, owner | type);
}

int mtlshm_release(struct mtlshm_instance *me, uint32_t lcore)
{
	int rc = 0;
	uint64_t owner = handle_owner(me, &rc), token;

	if (unlikely(!owner))
		return refuse(rc);
	if (unlikely(lcore >= me->host->lcores))
		return refuse(-ERANGE);
	/* Guess the token instead of loading it: right after a locked instruction on its line a load is
	 * slow, and most instances have one type of lcore. A wrong guess returns the word that is there. */
	token = owner | __atomic_load_n(&me->usual_type, __ATOMIC_RELAXED);
	if (unlikely(!give_back(slot(me->host, lcore), &token, me->lease))) {
		if (owner_of(token) != owner || !give_back(slot(me->host, lcore), &token, me->lease))
			return refuse(segment_lost(me->host) ? -EBADMSG : -EPERM); /* an operator took it this moment */
		__atomic_store_n(&me->usual_type, token & TOKEN_TYPE_MASK, __ATOMIC_RELAXED);
	}
	handle_count(&me->record->releases, 1);
	return 0;
}

int mtlshm_release_all(struct mtlshm_instance *me)
{
	int rc = 0;
	uint64_t owner = handle_owner(me, &rc);
	struct mtlshm_cpuset cleared;

	failure_forget();
	if (!owner)
		return rc;
	rc = (int)lease_clear(me->host, owner, me->lease, &cleared);
	handle_count(&me->record->releases, (uint64_t)rc);
	return segment_lost(me->host) ? -EBADMSG : rc;
}

int mtlshm_evict(struct mtlshm_host *host, uint32_t lcore, uint64_t owner)
{
	struct mtlshm_event event;
	uint64_t token;

	failure_forget();
	if (host->read_only)
		return -EROFS;
	if (lcore >= host->lcores)
		return -ERANGE;
	event = event_about(host, MTLSHM_EVENT_EVICTED, owner);
	token = __atomic_load_n(&slot(host, lcore)->owner, __ATOMIC_RELAXED);
	if (!owner || owner_of(token) != owner ||
	    !give_back(slot(host, lcore), &token, lease_of(tenancy_parent(host, owner))))
		return segment_lost(host) ? -EBADMSG : -ESRCH;
	cpuset_add(&event.lcores, lcore);
	event_write(host, &event);
	return segment_lost(host) ? -EBADMSG : 0;
}

/* A process that the daemon keeps draws from its parent, and the daemon may hand it what the parent uses itself. Of other
 * owners only the pool and legacy processes give up lcores in this way. */
static bool may_take_from(const struct mtlshm_instance *me, uint64_t from)
{
	uint32_t kind;

	if (!segment_knows(me->host, from))
		return false;
	if (me->proxied && lease_of(owner_of(from)) == me->lease)
		return true;
	kind = __atomic_load_n(&segment_record(me->host, from)->kind, __ATOMIC_RELAXED);
	return segment_proxied(me->host, from) && (kind == MTLSHM_KIND_POOL || kind == MTLSHM_KIND_LEGACY);
}

int mtlshm_take(struct mtlshm_instance *me, uint32_t lcore, uint64_t from, uint32_t type)
{
	int rc = 0;
	uint64_t owner = handle_owner(me, &rc), token;

	failure_forget();
	if (!owner)
		return rc;
	if (lcore >= me->host->lcores)
		return -ERANGE;
	if (type >= MTLSHM_LCORE_TYPES)
		return -EINVAL;
	token = __atomic_load_n(&slot(me->host, lcore)->owner, __ATOMIC_RELAXED);
	if (!may_take_from(me, from) || owner_of(token) != owner_of(from) ||
	    !swap(slot(me->host, lcore), &token, owner | type))
		return segment_lost(me->host) ? -EBADMSG : -ESRCH;
	stamp(slot(me->host, lcore), now());
	return segment_lost(me->host) ? -EBADMSG : 0;
}

int mtlshm_tag(struct mtlshm_host *host, uint32_t lcore, uint64_t owner, uint32_t tag)
{
	uint64_t note;

	failure_forget();
	if (host->read_only)
		return -EROFS;
	if (lcore >= host->lcores)
		return -ERANGE;
	if (!owner || owner_of(__atomic_load_n(&slot(host, lcore)->owner, __ATOMIC_ACQUIRE)) != owner)
		return segment_lost(host) ? -EBADMSG : -ESRCH;
	note = __atomic_load_n(&slot(host, lcore)->note, __ATOMIC_RELAXED);
	__atomic_store_n(&slot(host, lcore)->note, (uint64_t)tag << 32 | (uint32_t)note, __ATOMIC_RELAXED);
	return segment_lost(host) ? -EBADMSG : 0;
}

int mtlshm_holder(struct mtlshm_host *host, uint32_t lcore, uint64_t *owner, uint32_t *tag)
{
	failure_forget();
	if (lcore >= host->lcores)
		return -ERANGE;
	*owner = owner_of(__atomic_load_n(&slot(host, lcore)->owner, __ATOMIC_ACQUIRE));
	*tag = (uint32_t)(__atomic_load_n(&slot(host, lcore)->note, __ATOMIC_RELAXED) >> 32);
	if (!segment_knows(host, *owner))
		*owner = 0;
	return segment_lost(host) ? -EBADMSG : 0;
}
