/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Coming and going without end, in the company of others that do the same, and what must be true all the while.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "puppet.h"

static uint64_t *witness; /* by lcore: who thinks it is his, in a file of the test's own */
static uint32_t held[LCORES], held_count;

static void got(uint32_t lcore)
{
	uint64_t before = __atomic_load_n(&witness[lcore], __ATOMIC_SEQ_CST);

	EXPECT(before == 0 || mtlshm_alive(puppet.host, before) == 0);
	EXPECT(__atomic_compare_exchange_n(&witness[lcore], &before, mtlshm_owner(puppet.me), 0, __ATOMIC_SEQ_CST,
					   __ATOMIC_SEQ_CST));
	held[held_count++] = lcore;
}

static void lose(uint32_t position)
{
	uint64_t mine_still = mtlshm_owner(puppet.me);

	EXPECT(__atomic_compare_exchange_n(&witness[held[position]], &mine_still, 0, 0, __ATOMIC_SEQ_CST,
					   __ATOMIC_SEQ_CST));
	held[position] = held[--held_count];
}

static void claim_one(void)
{
	uint32_t lcore = (uint32_t)rand() % LCORES;
	int rc = mtlshm_claim(puppet.me, lcore, MTLSHM_LCORE_APP);

	EXPECT(rc == 0 || rc == -EBUSY || rc == -EALREADY);
	if (!rc)
		got(lcore);
}

static void claim_some(void)
{
	const struct mtlshm_want want = {
		.count = 1 + (uint32_t)rand() % 8, .numa_node = MTLSHM_ANY_NODE, .timeout_ms = 1000 * LIFETIME};
	uint16_t lcores[8];
	int rc = mtlshm_claim_many(puppet.me, &want, lcores);

	EXPECT(rc == 0 || rc == -EBUSY);
	for (uint32_t i = 0; !rc && i < want.count; i++)
		got(lcores[i]);
}

static void release_one(void)
{
	uint32_t position, lcore;

	if (!held_count)
		return;
	position = (uint32_t)rand() % held_count;
	lcore = held[position];
	lose(position);
	EXPECT(mtlshm_release(puppet.me, lcore) == 0);
}

static void release_everything(void)
{
	uint32_t expected = held_count;

	while (held_count)
		lose(0);
	EXPECT(mtlshm_release_all(puppet.me) == (int)expected);
}

/* WITNESS SEED: register, claim, release and unregister without end, in the company of others that do the same. Dies
 * with SIGABRT if an lcore it was given is somebody else's too, or anything else is wrong. */
static long do_churn(char **words)
{
	int fd = open(words[1], O_RDWR | O_CREAT, 0600);
	struct mtlshm_cpuset all;
	char label[64];

	EXPECT(!ftruncate(fd, sizeof(*witness) * LCORES));
	witness = mmap(NULL, sizeof(*witness) * LCORES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	EXPECT(witness != MAP_FAILED);
	close(fd);
	memset(&all, 0xff, sizeof(all));
	snprintf(label, sizeof(label), "%063d", getpid());
	srand((unsigned int)number(words[2]));
	answer(0);
	for (;;) {
		EXPECT(!become_instance(label, MTLSHM_KIND_SHM, &all));
		for (int i = rand() % 50; i; i--) {
			switch (rand() % 10) {
			case 0:
			case 1:
			case 2:
			case 3: claim_one(); break;
			case 4:
			case 5: release_one(); break;
			case 6:
			case 7: claim_some(); break;
			case 8: release_everything(); break;
			case 9: EXPECT(mtlshm_sweep(puppet.host) >= 0); break;
			}
		}
		while (held_count)
			lose(0);
		mtlshm_instance_free(puppet.instances[--puppet.count]);
	}
}

/* N: look N times at others churning. Returns in how many snapshots something did not fit. */
static long do_watch(char **words)
{
	static struct mtlshm_instance_info seen[MTLSHM_INSTANCES]; /* by index: what its last owner was shown as */
	static struct mtlshm_snapshot snapshot;
	long wrong = 0;

	for (long i = 0; i < number(words[1]); i++) {
		uint32_t lcores[MTLSHM_INSTANCES] = {0};
		int fits = mtlshm_snapshot(puppet.host, &snapshot) == 0;

		for (uint32_t j = 0; j < snapshot.lcore_count; j++) {
			const struct mtlshm_lcore_info *lcore = &snapshot.lcores[j];

			if (!lcore->owner)
				continue;
			fits &= lcore->instance >= 0 && (uint32_t)lcore->instance < snapshot.instance_count &&
				snapshot.instances[lcore->instance].owner == lcore->owner;
			lcores[lcore->instance & (MTLSHM_INSTANCES - 1)]++;
		}
		for (uint32_t j = 0; j < snapshot.instance_count; j++) {
			const struct mtlshm_instance_info *info = &snapshot.instances[j];
			struct mtlshm_instance_info *before =
				&seen[info->owner >> MTLSHM_TYPE_BITS & (MTLSHM_INSTANCES - 1)];

			fits &= info->lcores == lcores[j];
			if (info->process.label[0] ==
			    '0') /* one of those that churn: each has a name that tells its pid */
				fits &= strlen(info->process.label) == 63 &&
					strtol(info->process.label, NULL, 10) == info->process.pid;
			if (before->owner == info->owner)
				fits &= before->registered_ns == info->registered_ns;
			*before = *info;
		}
		wrong += !fits;
	}
	return wrong;
}

/* SEED: open, register, unregister and remove the segment without end, in the company of others that do the same. Dies
 * with SIGABRT if an instance finds that its segment is not the one that others find. */
static long do_replace(char **words)
{
	srand((unsigned int)number(words[1]));
	answer(0);
	for (;;) {
		int rc;

		EXPECT(!mtlshm_open(&puppet.host, puppet.path, MTLSHM_CREATE, puppet.sysfs));
		rc = mtlshm_register(&puppet.me, puppet.host, NULL);
		EXPECT(rc == 0 || rc == -ESTALE);
		for (int i = rand() % 4; !rc && i; i--) {
			/* Opens the path: -ESTALE if it is another file. */
			EXPECT(mtlshm_alive(puppet.host, mtlshm_owner(puppet.me)) == 1);
			sched_yield();
		}
		if (!rc)
			mtlshm_instance_free(puppet.me);
		if (rand() % 2) {
			rc = mtlshm_retire(puppet.host);
			EXPECT(rc == 0 || rc == -EBUSY || rc == -ESTALE);
			if (!rc)
				EXPECT(!unlink(puppet.path));
		}
		EXPECT(!mtlshm_close(puppet.host));
	}
}

struct storm {
	int forks;
	int over;
};

static void *fork_on(void *data)
{
	struct storm *storm = data;
	struct pollfd test = {.fd = STDIN_FILENO}; /* POLLHUP, when the test is over */

	for (int i = 0; i < storm->forks; i++) {
		if (!fork()) {
			alarm(LIFETIME);
			poll(&test, 1, -1);
			_exit(0);
		}
	}
	__atomic_store_n(&storm->over, 1, __ATOMIC_RELAXED);
	return NULL;
}

/* FORKS: register and unregister while another thread forks; the children live until the test is over. Returns how many
 * instances there are in the end. */
static long do_fork_storm(char **words)
{
	struct storm storm = {(int)number(words[1]), 0};
	const int keep = 100;
	pthread_t thread;

	EXPECT(!pthread_create(&thread, NULL, fork_on, &storm));
	for (int i = 0; !__atomic_load_n(&storm.over, __ATOMIC_RELAXED) || i < keep; i++) {
		struct mtlshm_instance *old = puppet.instances[i % keep];

		EXPECT(!mtlshm_register(&puppet.instances[i % keep], puppet.host, NULL));
		mtlshm_instance_free(old);
	}
	pthread_join(thread, NULL);
	return keep;
}

const struct command churn_commands[] = {
	{"churn", do_churn}, {"watch", do_watch}, {"replace", do_replace}, {"fork_storm", do_fork_storm}, {0},
};
