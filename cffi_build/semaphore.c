/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The robust semaphore: one word, the owner of the instance that holds it, and a bit that says somebody
 * sleeps. Taking and giving back are one atomic operation each while nobody waits.
 *
 * The danger is a holder that dies. Robust mutexes of the C library know holders by thread id, and two PID
 * namespaces have the same ones; POSIX semaphores know none. Here a waiter asks the holder's life lock,
 * first when it finds the semaphore taken and again each time its sleep ends, and takes the word from a
 * dead holder by compare-and-swap: of several waiters one succeeds, and is told.
 *
 * Sleeps have a limit because the process that should wake us may be killed between giving back and waking. The
 * limit is what such a death can cost.
 *
 * The futex is the lower half of the word. It holds index, type bits and the lowest bits of the generation;
 * should a change of the upper half alone ever be missed, the limit catches that as well.
 *
 * IT PROTECTS, against other claims of the kind: the choice of several lcores, until they are taken (claim_many.c); and the
 * keys of reservations, from the look for one to its record (reservation.c). Both assert semaphore_inside(). Single claims
 * go on meanwhile. Whatever else a program protects with mtlshm_lock() is its own affair.
 */
#include "semaphore.h"

#include <errno.h>
#include <time.h>

#include "assertion.h"
#include "event.h"
#include "failure.h"
#include "handle.h"
#include "host.h"
#include "nap.h"

#define WAITERS UINT64_C(1) /* among the type bits, which an owner leaves 0 */
#define SPINS 200
#define FIRST_SLEEP_NS 1000000
#define LONGEST_SLEEP_NS 20000000
#define DEFAULT_TIMEOUT_MS 1000

static _Thread_local bool inside; /* between semaphore_enter() and semaphore_leave() */

static int64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

/* Acquire on taking, release on giving back: what one holder wrote is seen by the next. */
static bool swap(uint64_t *word, uint64_t *held, uint64_t desired)
{
	return __atomic_compare_exchange_n(word, held, desired, false, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED);
}

static void spin(const uint64_t *word, uint64_t held)
{
	for (int i = 0; i < SPINS && __atomic_load_n(word, __ATOMIC_RELAXED) == held; i++) {
#if defined(__x86_64__)
		__builtin_ia32_pause();
#elif defined(__aarch64__)
		__asm__ volatile("yield");
#endif
	}
}

/* An instance that a daemon keeps for another process never takes it, so a word that names one is damage. */
static int holder_alive(struct mtlshm_host *host, uint64_t owner)
{
	return segment_proxied(host, owner) ? 0 : mtlshm_alive(host, owner);
}

static int lock_slowly(struct mtlshm_host *host, uint64_t owner, int64_t deadline)
{
	uint64_t *word = &host->segment->header.semaphore;
	int64_t sleep_ns = FIRST_SLEEP_NS, left;
	uint64_t held = __atomic_load_n(word, __ATOMIC_RELAXED);
	struct mtlshm_event event;

	spin(word, held);
	for (;;) {
		int alive;

		held = __atomic_load_n(word, __ATOMIC_RELAXED);
		/* We may have slept, and others may still: the next to give back shall wake one. */
		if (segment_lost(host))
			return -EBADMSG;
		if (!owner_of(held)) {
			if (swap(word, &held, owner | WAITERS))
				return 0;
			continue;
		}
		alive = holder_alive(host, owner_of(held));
		if (alive == 0) {
			if (!swap(word, &held, owner | WAITERS))
				continue;
			segment_count(&host->segment->header.takeovers, 1);
			event = event_about(host, MTLSHM_EVENT_TAKEOVER, owner);
			event_write(host, &event);
			return 1;
		}
		left = deadline - now_ns();
		if (left <= 0)
			return alive < 0 ? alive : -ETIMEDOUT;
		if (!(held & WAITERS) && !swap(word, &held, held | WAITERS))
			continue;
		nap_on((uint32_t *)word, (uint32_t)(held | WAITERS), left < sleep_ns ? left : sleep_ns);
		sleep_ns = sleep_ns * 2 < LONGEST_SLEEP_NS ? sleep_ns * 2 : LONGEST_SLEEP_NS;
	}
}

int mtlshm_lock(struct mtlshm_instance *me, uint32_t timeout_ms)
{
	uint64_t nobody = 0;
	int rc = 0;
	uint64_t owner = handle_owner(me, &rc);

	failure_forget();
	if (!owner)
		return rc;
	if (me->proxied) /* nobody could tell that its daemon died in it */
		return -EINVAL;
	if (swap(&me->host->segment->header.semaphore, &nobody, owner))
		return segment_lost(me->host) ? -EBADMSG : 0;
	return lock_slowly(me->host, owner, now_ns() + timeout_ms * INT64_C(1000000));
}

int mtlshm_unlock(struct mtlshm_instance *me)
{
	uint64_t *word, held;
	int rc = 0;
	uint64_t owner = handle_owner(me, &rc);

	if (!owner)
		return rc;
	word = &me->host->segment->header.semaphore;
	held = __atomic_load_n(word, __ATOMIC_RELAXED);
	/* Compare-and-swap, as another thread of this instance may give it back after the load: then the word can
	 * name the next holder. While it names this instance, only the waiters' bit can change. */
	do {
		if (owner_of(held) != owner) {
			failure_forget();
			return segment_lost(me->host) ? -EBADMSG : -EPERM;
		}
	} while (!__atomic_compare_exchange_n(word, &held, 0, false, __ATOMIC_RELEASE, __ATOMIC_RELAXED));
	if (held & WAITERS)
		nap_end((uint32_t *)word);
	if (!segment_lost(me->host))
		return 0; /* and what failed between lock and unlock can still be told */
	failure_forget();
	return -EBADMSG;
}

int semaphore_enter(struct mtlshm_instance *me, uint32_t timeout_ms)
{
	int rc;

	assert(!inside);
	rc = mtlshm_lock(me, timeout_ms ? timeout_ms : DEFAULT_TIMEOUT_MS);
	inside = rc >= 0;
	return rc;
}

void semaphore_leave(struct mtlshm_instance *me)
{
	assert(inside);
	inside = false;
	mtlshm_unlock(me);
}

bool semaphore_inside(void)
{
	return inside;
}
