/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Clients in shared memory: shm; janitor, which often collects the dead; and, at the end, newcomer.
 */
#include <errno.h>
#include <stdio.h>
#include <sysexits.h>
#include <unistd.h>

#include "client.h"
#include "instance.h"
#include "kinds.h"

static void claim_one(void)
{
	uint32_t lcore = throw_dice(self.lcores);
	int rc;

	if (is_held(lcore))
		return;
	rc = mtlshm_claim(me, lcore, throw_dice(MTLSHM_LCORE_TYPES));
	if (!rc)
		got(lcore);
	else if (rc != -EBUSY)
		witness_wrong("claim said", rc);
}

/* So quickly that whoever takes turns on a CPU is likely to be in the middle of a claim. */
static void claim_and_release(uint32_t times)
{
	while (times--) {
		uint32_t before = self.held_count;

		claim_one();
		if (self.held_count > before && mtlshm_release(me, gives(before)))
			witness_wrong("could not release what it had just been given: lcore", self.held[before]);
	}
}

static void claim_some(void)
{
	uint32_t count = 1 + throw_dice(SOME);
	uint16_t given[SOME];

	if (!claim_several(count, MTLSHM_LCORE_SCH, given))
		for (uint32_t i = 0; i < count; i++)
			got(given[i]);
}

static void release_one(void)
{
	int rc;

	if (!self.held_count)
		return;
	rc = mtlshm_release(me, gives(throw_dice(self.held_count)));
	if (rc)
		witness_wrong("could not release what it had:", rc);
}

static void release_everything(void)
{
	int expected = (int)self.held_count, rc;

	give_all();
	rc = mtlshm_release_all(me);
	if (rc != expected)
		witness_wrong("released another number of lcores than it had:", rc - expected);
}

static void use_semaphore(void)
{
	uint64_t before = __atomic_load_n(&self.witness->semaphores, __ATOMIC_SEQ_CST);
	int rc = mtlshm_lock(me, WITNESS_PATIENCE_MS);

	if (rc == -ETIMEDOUT) {
		not_had_since(before);
		return;
	}
	if (rc < 0)
		witness_wrong("could not take the semaphore:", rc);
	witness_entered();
	if (!throw_dice(4))
		doze(200);
	witness_leaves();
	rc = mtlshm_unlock(me);
	if (rc)
		witness_wrong("could not give back the semaphore:", rc);
}

/* A child is nobody until it registers; what it inherited can do nothing. */
static void go_on_as_child(void)
{
	int rc = mtlshm_claim(me, throw_dice(self.lcores), MTLSHM_LCORE_APP);
	bool something = self.held_count; /* was its parent's; a child begins with nothing */

	begin_as_child();
	if (rc != -ECHILD)
		witness_wrong("a child's claim in its parent's name said", rc);
	rc = something ? mtlshm_release(me, self.held[0]) : mtlshm_release_all(me);
	if (rc != -ECHILD)
		witness_wrong("a child's release in its parent's name said", rc);
	mtlshm_instance_free(me);
	become_instance();
}

void live_in_shared_memory(void)
{
	static const uint32_t sweeps[] = {[WITNESS_SHM] = 2, [WITNESS_JANITOR] = 30};

	open_segment();
	for (;;) {
		become_instance();
		for (uint32_t n = throw_dice(60); n; n--) {
			uint32_t what = throw_dice(100);

			if (what < sweeps[self.kind])
				sweep();
			else if (what < 40)
				claim_one();
			else if (what < 60)
				release_one();
			else if (what < 70)
				claim_some();
			else if (what < 75)
				release_everything();
			else if (what < 80)
				use_semaphore();
			else if (what < 82)
				claim_and_release(throw_dice(5000));
			else if (what < 99)
				doze(300);
			else if (throw_dice(3))
				break;
			else if (throw_dice(2))
				become_another();
			else if (!fork_once())
				go_on_as_child();
		}
		if (!throw_dice(20))
			end();
		leave();
		if (!throw_dice(10)) {
			mtlshm_close(host);
			open_segment();
		}
	}
}

void have_everything(void)
{
	struct mtlshm_want want = {.numa_node = MTLSHM_ANY_NODE, .timeout_ms = WITNESS_PATIENCE_MS};
	uint16_t given[WITNESS_LCORES];
	int rc;

	open_segment();
	become_instance();
	for (uint32_t i = 0; i < self.lcores; i++) {
		rc = mtlshm_claim(me, i, MTLSHM_LCORE_APP);
		if (!rc)
			dprintf(STDOUT_FILENO, "%u ", i);
		else if (rc != -EBUSY)
			witness_wrong("at the end, a claim said", rc);
		want.count += !rc;
	}
	dprintf(STDOUT_FILENO, "\n");
	while (getchar() != EOF)
		;
	rc = mtlshm_release_all(me);
	if (rc != (int)want.count)
		witness_wrong("at the end, it could not release all lcores:", rc);
	rc = mtlshm_lock(me, WITNESS_PATIENCE_MS);
	if (rc < 0 || mtlshm_unlock(me))
		witness_wrong("at the end, the semaphore cannot be had:", rc);
	rc = mtlshm_claim_many(me, &want, given);
	if (rc == -EBUSY) /* the daemon has lent one again that was released just now: whoever started us looks anew */
		_exit(EX_TEMPFAIL);
	if (rc)
		witness_wrong("at the end, a claim of all lcores said", rc);
	/* All records but the daemon's and that of what is lent; soon, as the daemon has yet to hear that drain is
	 * gone. */
	for (int i = 1, tries = WITNESS_PATIENCE_MS / 10; i < MTLSHM_INSTANCES - 2; i++) {
		for (rc = mtlshm_register(&me, host, NULL); rc == -EUSERS && tries; tries--) {
			usleep(10000);
			rc = mtlshm_register(&me, host, NULL);
		}
		if (rc)
			witness_wrong("at the end, a record cannot be had:", rc);
	}
}
