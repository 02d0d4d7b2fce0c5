/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Threads: every function may be called from any of them at any time. Passes by exiting 0.
 */
#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "mtlshm.h"

#define THREADS 8
#define LCORES 64
#define ROUNDS 200
/* Seconds, so that a failing test ends. */
#define LIFETIME 36000

#define CHECK(what)                                                                        \
	do {                                                                               \
		if (!(what)) {                                                             \
			fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #what); \
			exit(1);                                                           \
		}                                                                          \
	} while (0)

static char path[64];
static struct mtlshm_host *host;
static struct mtlshm_instance *instances[THREADS]; /* each thread's; may be one and the same */
static pthread_barrier_t barrier;
static int owners[LCORES]; /* how many threads think that this lcore is theirs */
static int wins;

static void clean_up(void)
{
	unlink(path);
}

static struct mtlshm_instance *new_instance(void)
{
	struct mtlshm_instance *instance;
	struct mtlshm_cpuset all;
	const struct mtlshm_identity identity = {.cpus = &all};

	memset(&all, 0xff, sizeof(all));
	CHECK(!mtlshm_register(&instance, host, &identity));
	return instance;
}

static uint32_t count_held(void)
{
	static struct mtlshm_snapshot snapshot;
	uint32_t held = 0;

	CHECK(!mtlshm_snapshot(host, &snapshot));
	for (uint32_t i = 0; i < snapshot.lcore_count; i++)
		held += snapshot.lcores[i].owner != 0;
	return held;
}

/* All at once, each with its number. */
static void run(void *(*function)(void *number))
{
	pthread_t threads[THREADS];

	for (long i = 0; i < THREADS; i++)
		CHECK(!pthread_create(&threads[i], NULL, function, (void *)i));
	for (int i = 0; i < THREADS; i++)
		pthread_join(threads[i], NULL);
}

static void take(uint32_t lcore)
{
	CHECK(__atomic_add_fetch(&owners[lcore], 1, __ATOMIC_SEQ_CST) == 1);
	__atomic_add_fetch(&wins, 1, __ATOMIC_RELAXED);
}

static void drop(uint32_t lcore)
{
	CHECK(__atomic_sub_fetch(&owners[lcore], 1, __ATOMIC_SEQ_CST) == 0);
}

static void *claim_all(void *number)
{
	struct mtlshm_instance *me = instances[(long)number];
	const int refusal = me == instances[((long)number + 1) % THREADS] ? -EALREADY : -EBUSY;

	for (int round = 0; round < ROUNDS; round++) {
		pthread_barrier_wait(&barrier);
		for (uint32_t lcore = 0; lcore < LCORES; lcore++) {
			int rc = mtlshm_claim(me, lcore, MTLSHM_LCORE_APP);

			CHECK(rc == 0 || rc == refusal);
			if (!rc)
				take(lcore);
		}
		pthread_barrier_wait(&barrier);
		for (uint32_t lcore = (uint32_t)(long)number; lcore < LCORES; lcore += THREADS)
			owners[lcore] = 0;
		if (pthread_barrier_wait(&barrier) == PTHREAD_BARRIER_SERIAL_THREAD) {
			CHECK(wins == LCORES);
			wins = 0;
			for (int i = 0; i < THREADS; i++)
				mtlshm_release_all(instances[i]);
		}
		pthread_barrier_wait(&barrier);
	}
	return NULL;
}

static void of_threads_with_an_instance_each_one_wins_each_lcore(void)
{
	for (int i = 0; i < THREADS; i++)
		instances[i] = new_instance();
	run(claim_all);
	CHECK(count_held() == 0);
	for (int i = 0; i < THREADS; i++)
		mtlshm_instance_free(instances[i]);
}

static void of_threads_that_share_an_instance_one_wins_each_lcore(void)
{
	instances[0] = new_instance();
	for (int i = 1; i < THREADS; i++)
		instances[i] = instances[0];
	run(claim_all);
	CHECK(count_held() == 0);
	mtlshm_instance_free(instances[0]);
}

/* Of an instance that was not given its CPUs: whoever is refused looks them up anew, while others ask for them. */
static void *claim_all_by_mask(void *number)
{
	struct mtlshm_cpuset mask;

	CHECK(!mtlshm_affinity(&mask));
	for (int round = 0; round < ROUNDS; round++) {
		for (uint32_t i = 0; i < LCORES; i++) {
			uint32_t lcore = (i + (uint32_t)(long)number) % LCORES;
			int rc = mtlshm_claim(instances[0], lcore, MTLSHM_LCORE_APP);

			CHECK(mask.bits[0] >> lcore & 1 ? rc == 0 || rc == -EALREADY : rc == -EDOM);
			if (!rc) {
				take(lcore);
				drop(lcore);
				CHECK(!mtlshm_release(instances[0], lcore));
			}
		}
	}
	return NULL;
}

static void threads_claim_what_their_mask_allows(void)
{
	CHECK(!mtlshm_register(&instances[0], host, NULL));
	run(claim_all_by_mask);
	CHECK(count_held() == 0);
	mtlshm_instance_free(instances[0]);
}

static void *claim_some(void *number)
{
	struct mtlshm_instance *me = instances[(long)number];
	const struct mtlshm_want want = {.count = 9, .numa_node = MTLSHM_ANY_NODE, .timeout_ms = 1000 * LIFETIME};
	uint16_t lcores[9];

	for (int round = 0; round < ROUNDS * 10; round++) {
		int rc = mtlshm_claim_many(me, &want, lcores);

		CHECK(rc == 0 || rc == -EBUSY);
		for (int i = 0; !rc && i < 9; i++)
			take(lcores[i]);
		for (int i = 0; !rc && i < 9; i++)
			drop(lcores[i]);
		for (int i = 0; !rc && i < 9; i++)
			CHECK(!mtlshm_release(me, lcores[i]));
	}
	return NULL;
}

static void no_two_claims_of_several_get_the_same_lcore(void)
{
	for (int i = 0; i < THREADS; i++)
		instances[i] = new_instance();
	run(claim_some);
	CHECK(wins > 0);
	CHECK(count_held() == 0);
	for (int i = 0; i < THREADS; i++)
		mtlshm_instance_free(instances[i]);
}

/* Thread 0 unregisters the instance that the others are claiming with. */
static void *claim_until_gone(void *number)
{
	int rc = 0;

	pthread_barrier_wait(&barrier);
	if (number == 0)
		CHECK(!mtlshm_unregister(instances[0]));
	for (uint32_t lcore = (uint32_t)(long)number; rc != -EBADF; lcore = (lcore + 1) % LCORES) {
		rc = mtlshm_claim(instances[0], lcore, MTLSHM_LCORE_APP);
		CHECK(rc == 0 || rc == -EALREADY || rc == -EBADF);
		mtlshm_release(instances[0], lcore);
	}
	return NULL;
}

static void nothing_is_held_when_an_instance_was_unregistered_amid_claims(void)
{
	struct mtlshm_instance *next;

	for (int round = 0; round < ROUNDS; round++) {
		instances[0] = new_instance();
		run(claim_until_gone);
		mtlshm_instance_free(instances[0]);
		CHECK(count_held() == 0);
		next = new_instance();
		for (uint32_t lcore = 0; lcore < LCORES; lcore++)
			CHECK(!mtlshm_claim(next, lcore, MTLSHM_LCORE_SCH));
		mtlshm_instance_free(next);
	}
}

static void *come_and_go(void *number)
{
	(void)number;
	for (int round = 0; round < ROUNDS; round++) {
		struct mtlshm_instance *me = new_instance();

		CHECK(mtlshm_alive(host, mtlshm_owner(me)) == 1);
		mtlshm_instance_free(me);
	}
	return NULL;
}

static void threads_register_and_unregister_at_once(void)
{
	uint64_t left[MTLSHM_INSTANCES];

	run(come_and_go);
	CHECK(mtlshm_owners(host, left) == 0);
}

static void *come_and_go_for_ever(void *unused)
{
	(void)unused;
	for (;;) {
		struct mtlshm_instance *me = new_instance();

		mtlshm_instance_free(me);
		pthread_testcancel();
	}
	return NULL;
}

static void a_thread_that_is_cancelled_inside_locks_nobody_out(void)
{
	pthread_t thread;

	for (int round = 0; round < ROUNDS; round++) {
		CHECK(!pthread_create(&thread, NULL, come_and_go_for_ever, NULL));
		usleep((useconds_t)(round % 50));
		pthread_cancel(thread);
		pthread_join(thread, NULL);
		mtlshm_instance_free(new_instance()); /* would wait for ever */
	}
}

/* Who writes says the same in two places; the last thread reads meanwhile. */
static void *tell_or_read(void *number)
{
	static struct mtlshm_event events[MTLSHM_EVENTS];
	uint64_t next = 0, whole = 0;
	char text[8];

	snprintf(text, sizeof(text), "%ld", (long)number);
	for (int round = 0; round < ROUNDS * 10; round++) {
		int count;

		if ((long)number != THREADS - 1) {
			CHECK(!mtlshm_tell(host, MTLSHM_EVENT_NIC, text, text));
			continue;
		}
		count = mtlshm_events(host, next, events);
		CHECK(count >= 0 && count <= MTLSHM_EVENTS);
		for (int i = 0; i < count; i++) {
			CHECK(events[i].number >= next);
			next = events[i].number + 1;
			if (events[i].kind != MTLSHM_EVENT_NIC)
				continue;
			CHECK(events[i].label[0] && !strcmp(events[i].label, events[i].text));
			whole++;
		}
	}
	CHECK((long)number != THREADS - 1 || whole > 0);
	return NULL;
}

static void events_written_at_once_are_read_whole(void)
{
	static struct mtlshm_event events[MTLSHM_EVENTS];

	run(tell_or_read);
	CHECK(mtlshm_events(host, 0, events) == MTLSHM_EVENTS);
	/* Of two in one place the later may have been overwritten by the earlier, seldom; else nothing is lost. */
	CHECK(events[MTLSHM_EVENTS - 1].number >= (THREADS - 1) * ROUNDS * 10 - 1);
}

int main(void)
{
	char sysfs[] = "/tmp/mtlshm-test-XXXXXX", command[256];

	alarm(LIFETIME);
	snprintf(path, sizeof(path), "/dev/shm/mtlshm-test-threads-%d", getpid());
	atexit(clean_up);
	/* A host of 64 CPUs. */
	CHECK(mkdtemp(sysfs));
	snprintf(command, sizeof(command),
		 "d=%s/devices/system/cpu && mkdir -p $d && echo 0-63 | tee $d/possible >$d/online", sysfs);
	CHECK(!system(command));
	CHECK(!mtlshm_open(&host, path, MTLSHM_CREATE, sysfs));
	pthread_barrier_init(&barrier, NULL, THREADS);

	no_two_claims_of_several_get_the_same_lcore();
	wins = 0;
	of_threads_with_an_instance_each_one_wins_each_lcore();
	of_threads_that_share_an_instance_one_wins_each_lcore();
	threads_claim_what_their_mask_allows();
	nothing_is_held_when_an_instance_was_unregistered_amid_claims();
	threads_register_and_unregister_at_once();
	a_thread_that_is_cancelled_inside_locks_nobody_out();
	events_written_at_once_are_read_whole();

	CHECK(!mtlshm_close(host));
	snprintf(command, sizeof(command), "rm -r %s", sysfs);
	CHECK(!system(command));
	return 0;
}
