/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The siege: lcores that are held for tenants all the time, by the holder and by a reservation; regulars, tenants that come
 * again and again and must be given all of them each time; and the greedy, which want whatever is free.
 */
#include <errno.h>
#include <stdio.h>
#include <unistd.h>

#include "client.h"
#include "instance.h"
#include "kinds.h"
#include "reservations.h"

enum { HELD = 3 }; /* for the tenants of the holder */

static uint16_t home[WITNESS_LCORES]; /* what is held for this regular */
static uint32_t home_count;

/* Each line that it says is a lease. */
void hold(void)
{
	static struct mtlshm_reserved made;
	char lease[MTLSHM_LEASE_SIZE];

	open_segment();
	become_instance();
	witness_descends(mtlshm_owner(me), (const uint64_t[WITNESS_LEVELS]){0});
	for (uint16_t i = 0; i < self.lcores && home_count < HELD; i++)
		if (!mtlshm_claim(me, i, MTLSHM_LCORE_LEASE)) {
			witness_lends(i, 0);
			home[home_count++] = i;
		}
	mtlshm_lease_format(host, mtlshm_owner(me), lease);
	dprintf(STDOUT_FILENO, "%s\n", lease);
	reserve_lasting(&made);
	mtlshm_lease_format(host, made.owner, lease);
	dprintf(STDOUT_FILENO, "%s\n", lease);
	for (;;)
		pause();
}

static bool is_home(uint32_t lcore)
{
	for (uint32_t i = 0; i < home_count; i++)
		if (home[i] == lcore)
			return true;
	return false;
}

/* Returns the parent. */
static uint64_t come_again(void)
{
	uint64_t line[WITNESS_LEVELS] = {0};

	if (become_tenant(0))
		witness_wrong("its parent is gone, which nobody killed or ended:", -ESRCH);
	mtlshm_parent(host, mtlshm_owner(me), &line[0]);
	witness_descends(mtlshm_owner(me), line);
	home_count = 0;
	for (uint32_t i = 0; i < self.lcores; i++)
		if (witness_lender(i) == line[0])
			home[home_count++] = (uint16_t)i;
	return line[0];
}

/* The one before us may not be quite dead: its kernel has yet to drop the life lock. */
static bool patiently(int rc, int *tries)
{
	if (rc == -EBUSY && ++*tries > WITNESS_PATIENCE_MS)
		witness_wrong("what is held for it was busy for so many ms:", WITNESS_PATIENCE_MS);
	if (rc == -EBUSY)
		usleep(1000);
	return rc == -EBUSY;
}

static void claim_each(void)
{
	for (uint32_t i = 0; i < home_count; i++) {
		int tries = 0, rc;

		do
			rc = mtlshm_claim(me, home[i], MTLSHM_LCORE_APP);
		while (patiently(rc, &tries));
		if (rc)
			witness_wrong("was refused what is held for it:", rc);
		got(home[i]);
	}
}

static void claim_all_at_once(void)
{
	uint16_t given[WITNESS_LCORES];
	int tries = 0, rc;

	do
		rc = claim_several(home_count, MTLSHM_LCORE_APP, given);
	while (rc == -ETIMEDOUT || patiently(rc, &tries));
	if (rc)
		witness_wrong("was refused all that is held for it:", rc);
	for (uint32_t i = 0; i < home_count; i++) {
		if (!is_home(given[i]))
			witness_wrong("was given what is not held for it: lcore", given[i]);
		got(given[i]);
	}
}

static void try_another(void)
{
	uint32_t lcore = throw_dice(self.lcores);

	if (!is_home(lcore) && !mtlshm_claim(me, lcore, MTLSHM_LCORE_APP))
		witness_wrong("could claim what is not held for it: lcore", lcore);
}

/* Nobody else gets it in between. */
static void give_and_take_again(void)
{
	uint32_t lcore = gives(throw_dice(self.held_count));
	int rc = mtlshm_release(me, lcore);

	if (!rc)
		rc = mtlshm_claim(me, lcore, MTLSHM_LCORE_APP);
	if (rc)
		witness_wrong("could not have again what it had just given back:", rc);
	got(lcore);
}

void live_as_regular(void)
{
	open_segment();
	for (;;) {
		come_again();
		if (throw_dice(2))
			claim_each();
		else
			claim_all_at_once();
		witness_count(&self.witness->returns);
		for (uint32_t n = throw_dice(6); n; n--) {
			uint32_t what = throw_dice(10);

			if (what < 2)
				try_another();
			else if (what < 5)
				give_and_take_again();
			else
				doze(1000);
		}
		if (throw_dice(3))
			end();
		if (!throw_dice(10))
			become_another();
		leave();
	}
}

static void claim_everything(void)
{
	for (uint32_t i = 0; i < self.lcores; i++) {
		int rc = is_held(i) ? -EBUSY : mtlshm_claim(me, i, MTLSHM_LCORE_APP);

		if (!rc)
			got(i);
		else if (rc != -EBUSY)
			witness_wrong("a claim of everything said", rc);
	}
}

/* With pauses, or nobody else would have anything. */
void live_greedily(void)
{
	open_segment();
	for (;;) {
		become_instance();
		for (uint32_t n = 1 + throw_dice(30); n; n--) {
			claim_everything();
			doze(300);
		}
		if (!throw_dice(4))
			end();
		leave();
		doze(50000);
	}
}

/* When all others but the holder are gone. */
void audit(void)
{
	open_segment();
	sweep();
	for (uint32_t i = 0; i < self.lcores; i++) {
		uint64_t lender = witness_lender(i), owner = 0;
		uint32_t tag;

		mtlshm_holder(host, i, &owner, &tag);
		if (lender && owner != lender)
			witness_wrong("at the end, what is held for tenants is not home: lcore", i);
		home_count += lender != 0;
	}
	if (home_count < HELD)
		witness_wrong("at the end, somebody held fewer lcores for tenants than it had claimed:", home_count);
	end_all_reservations();
}
