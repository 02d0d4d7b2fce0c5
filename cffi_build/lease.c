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
 * Words can outlive their record all the same: a thread that claims while another of its process
 * unregisters, or bytes written by accident. segment_knows() tells them, and whoever wants the lcore takes
 * it.
 */
#include "lease.h"

#include <errno.h>
#include <fcntl.h>

#include "cpuset.h"
#include "failure.h"
#include "instance.h"
#include "life.h"
#include "segment.h"
#include "topology.h"

/* How many dead or short-lived owners in a row one claim fights through before it says "busy". */
#define CLAIM_TRIES 64

#define unlikely(condition) __builtin_expect(!!(condition), 0)

uint32_t lease_clear(struct mtlshm_host *host, uint64_t owner)
{
	uint32_t cleared = 0;

	for (uint32_t i = 0; i < host->lcores; i++) {
		uint64_t token = __atomic_load_n(&slot(host, i)->owner, __ATOMIC_RELAXED);

		if (owner_of(token) == owner && swap(slot(host, i), &token, 0))
			cleared++;
	}
	return cleared;
}

uint32_t lease_collect(struct mtlshm_host *host, uint64_t owner)
{
	struct mtlshm_record *record = segment_record(host, owner);
	uint32_t cleared = lease_clear(host, owner);
	uint64_t control = __atomic_load_n(&record->control, __ATOMIC_RELAXED);

	/* Release: whoever sees FREE sees the words cleared. Only one of several collectors changes it. */
	if (control_generation(control) == owner_generation(owner) && !control_free(control) &&
	    __atomic_compare_exchange_n(&record->control, &control, control_after(control), false,
					__ATOMIC_RELEASE, __ATOMIC_RELAXED))
		segment_count(&host->segment->header.collected, 1);
	segment_count(&host->segment->header.recovered, cleared);
	return cleared;
}

/* Collect `owner` if it is dead. Returns how many lcores, -EBUSY or -ESRCH. */
static int collect(struct mtlshm_host *host, const struct life *life, uint64_t owner)
{
	off_t byte = life_byte(owner);
	int rc;

	if (segment_proxied(host, owner))
		return -EBUSY;
	rc = life_share(life, byte);
	/* The lock in the way may be that of the record's next owner. */
	if (rc == LIFE_TAKEN)
		return segment_knows(host, owner) ? -EBUSY : -ESRCH;
	if (rc)
		return rc;
	rc = segment_knows(host, owner) ? (int)lease_collect(host, owner) : -ESRCH;
	life_drop(life, byte);
	return rc;
}

int mtlshm_collect(struct mtlshm_host *host, uint64_t owner)
{
	struct life life;
	int rc;

	failure_forget();
	if (host->read_only)
		return -EROFS;
	if (!segment_knows(host, owner))
		return segment_lost(host) ? -EBADMSG : -ESRCH;
	rc = life_enter(&life, host, O_RDONLY);
	if (rc)
		return rc;
	rc = collect(host, &life, owner);
	life_leave(&life);
	return rc;
}

static int list_owners(const struct mtlshm_host *host, enum mtlshm_record_state state, uint64_t *owners)
{
	int count = 0;

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
	rc = life_enter(&life, host, O_RDONLY);
	if (rc)
		return rc;
	rc = life_held(&life, life_byte(owner), 1);
	life_leave(&life);
	/* The lock seen may be that of the record's next owner. */
	if (rc == 1)
		rc = segment_knows(host, owner);
	return segment_lost(host) ? -EBADMSG : rc;
}

int mtlshm_sweep(struct mtlshm_host *host)
{
	uint64_t owners[MTLSHM_INSTANCES];
	int count = mtlshm_owners(host, owners), collected = 0, rc;
	uint32_t cleared = 0;
	struct life life;

	failure_forget();
	if (host->read_only)
		return -EROFS;
	rc = life_enter(&life, host, O_RDONLY);
	if (rc)
		return rc;
	for (int i = 0; i < count && (rc >= 0 || rc == -EBUSY || rc == -ESRCH); i++) {
		rc = collect(host, &life, owners[i]);
		collected += rc >= 0;
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

/* Somebody holds the lcore: take it all the same if he is dead or unknown. `held` is what the word said. */
static int take_from(struct mtlshm_host *host, struct mtlshm_lcore *lcore, uint64_t held, uint64_t token)
{
	for (int i = 0; i < CLAIM_TRIES; i++) {
		if (owner_of(held) == owner_of(token))
			return -EALREADY;
		if (held && segment_knows(host, owner_of(held))) {
			int rc = mtlshm_collect(host, owner_of(held));

			if (rc < 0 && rc != -ESRCH)
				return rc;
			held = __atomic_load_n(&lcore->owner, __ATOMIC_ACQUIRE);
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
	int rc = instance_refresh(me);

	if (rc || instance_may(me, lcore))
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
	uint64_t owner = instance_owner(me, &rc);

	failure_forget();
	if (!owner)
		return rc;
	if (lcore >= me->host->lcores)
		return -ERANGE;
	if (type >= MTLSHM_LCORE_TYPES)
		return -EINVAL;
	if (!instance_may(me, lcore))
		rc = look_again(me, lcore);
	if (!rc)
		rc = take_from(me->host, slot(me->host, lcore), 0, owner | type);
	if (!rc)
		stamp(slot(me->host, lcore), now());
	return segment_lost(me->host) ? -EBADMSG : rc;
}

/* A thread that unregisters the instance meanwhile may have swept this lcore already. The claim is then
 * void, as if it had come first; the word left behind names an owner the table no longer knows. */
int mtlshm_claim(struct mtlshm_instance *me, uint32_t lcore, uint32_t type)
{
	struct mtlshm_lcore *wanted;
	uint64_t free_word = 0;
	uint32_t when;
	int ignored;
	uint64_t owner = instance_owner(me, &ignored);

	if (unlikely(!owner || lcore >= me->host->lcores || type >= MTLSHM_LCORE_TYPES ||
		     !instance_may(me, lcore)))
		return claim_slowly(me, lcore, type);
	wanted = slot(me->host, lcore);
	when = now(); /* its loads would wait for the locked instruction, if they came after it */
	if (unlikely(!swap(wanted, &free_word, owner | type)))
		return claim_slowly(me, lcore, type);
	stamp(wanted, when);
	return 0;
}

int mtlshm_release(struct mtlshm_instance *me, uint32_t lcore)
{
	int rc = 0;
	uint64_t owner = instance_owner(me, &rc), token;

	if (unlikely(!owner))
		return refuse(rc);
	if (unlikely(lcore >= me->host->lcores))
		return refuse(-ERANGE);
	/* Guess the token instead of loading it: right after a locked instruction on its line a load is
	 * slow, and most instances have one type of lcore. A wrong guess tells what is there. */
	token = owner | __atomic_load_n(&me->usual_type, __ATOMIC_RELAXED);
	if (unlikely(!swap(slot(me->host, lcore), &token, 0))) {
		if (owner_of(token) != owner || !swap(slot(me->host, lcore), &token, 0))
			return refuse(segment_lost(me->host) ? -EBADMSG : -EPERM); /* an operator took it this moment */
		__atomic_store_n(&me->usual_type, token & TOKEN_TYPE_MASK, __ATOMIC_RELAXED);
	}
	return 0;
}

int mtlshm_release_all(struct mtlshm_instance *me)
{
	int rc = 0;
	uint64_t owner = instance_owner(me, &rc);

	failure_forget();
	if (!owner)
		return rc;
	rc = (int)lease_clear(me->host, owner);
	return segment_lost(me->host) ? -EBADMSG : rc;
}

int mtlshm_evict(struct mtlshm_host *host, uint32_t lcore, uint64_t owner)
{
	uint64_t token;

	failure_forget();
	if (host->read_only)
		return -EROFS;
	if (lcore >= host->lcores)
		return -ERANGE;
	token = __atomic_load_n(&slot(host, lcore)->owner, __ATOMIC_RELAXED);
	if (!owner || owner_of(token) != owner || !swap(slot(host, lcore), &token, 0))
		return segment_lost(host) ? -EBADMSG : -ESRCH;
	return segment_lost(host) ? -EBADMSG : 0;
}

int mtlshm_take(struct mtlshm_instance *me, uint32_t lcore, uint64_t from, uint32_t type)
{
	int rc = 0;
	uint64_t owner = instance_owner(me, &rc), token;

	failure_forget();
	if (!owner)
		return rc;
	if (lcore >= me->host->lcores)
		return -ERANGE;
	if (type >= MTLSHM_LCORE_TYPES)
		return -EINVAL;
	token = __atomic_load_n(&slot(me->host, lcore)->owner, __ATOMIC_RELAXED);
	if (!segment_proxied(me->host, from) || owner_of(token) != owner_of(from) ||
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
