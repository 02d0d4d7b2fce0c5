/* SPDX-License-Identifier: BSD-3-Clause */
#include "scenario.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "judgement.h"
#include "report.h"
#include "rival.h"

static void must_become(struct mind *me)
{
	enter(me);
	NEEDED(!me->rc);
}

static void become_owner(struct mind *me)
{
	must_become(me);
	for (uint32_t i = TARGET; i < TARGET + 3; i++)
		take(me, i);
	NEEDED(!me->rc);
}

static void become_holder(struct mind *me)
{
	must_become(me);
	NEEDED(mtlshm_lock(me->instance, 0) >= 0);
	me->semaphore = true;
}

static void become_daemon(struct mind *me)
{
	must_become(me);
	me->proxy = add_proxy(&me->instance);
	me->has[4] = false;
}

static void claim_free(struct mind *me)
{
	take(me, TARGET);
}

static void claim_of_the_dead(struct mind *me)
{
	take(me, 2);
}

static void claim_of_the_living(struct mind *me)
{
	take(me, 0);
}

static void release_all(struct mind *me)
{
	memset(me->has, 0, sizeof(me->has));
	me->rc = mtlshm_release_all(me->instance);
}

static void claim_many(struct mind *me, uint32_t count, uint32_t type)
{
	const struct mtlshm_want want = {.count = count, .type = type, .numa_node = MTLSHM_ANY_NODE, .timeout_ms = 1};
	uint16_t lcores[LCORES];

	me->rc = mtlshm_claim_many(me->instance, &want, lcores);
	for (uint32_t i = 0; !me->rc && i < count; i++)
		me->has[lcores[i]] = true;
}

static void claim_four(struct mind *me)
{
	claim_many(me, 4, MTLSHM_LCORE_SCH);
}

/* Has claimed so before, hence knows the machine: reading of it takes 70,000 instructions. */
static void become_versed(struct mind *me)
{
	must_become(me);
	claim_four(me);
	release_all(me);
	NEEDED(me->rc == 4);
}

static void become_versed_behind_a_dead_holder(struct mind *me)
{
	become_versed(me);
	die_holding(12, 13, true);
}

/* More than there are without those of the dead. */
static void claim_almost_all(struct mind *me)
{
	claim_many(me, LCORES - 4, MTLSHM_LCORE_SCH);
}

static void release(struct mind *me)
{
	me->has[TARGET] = false;
	me->rc = mtlshm_release(me->instance, TARGET);
}

static void release_not_ours(struct mind *me)
{
	me->rc = mtlshm_release(me->instance, 0);
}

static void leave(struct mind *me)
{
	memset(me->has, 0, sizeof(me->has));
	me->owner = 0;
	me->rc = mtlshm_unregister(me->instance);
}

static void collect(struct mind *me)
{
	me->rc = mtlshm_collect(world.host, world.dead);
}

static void sweep(struct mind *me)
{
	me->rc = mtlshm_sweep(world.host);
}

static void lock_for(struct mind *me, uint32_t timeout_ms)
{
	me->rc = mtlshm_lock(me->instance, timeout_ms);
	me->semaphore = me->rc >= 0;
}

static void lock(struct mind *me)
{
	lock_for(me, 1);
}

static void lock_patiently(struct mind *me)
{
	lock_for(me, 60000);
}

static void unlock(struct mind *me)
{
	me->semaphore = false;
	me->rc = mtlshm_unlock(me->instance);
}

static void make_proxy(struct mind *me)
{
	const struct mtlshm_process nobody = {.pid = 1};

	me->rc = mtlshm_register_proxy(&me->instance, world.host, MTLSHM_KIND_SOCKET, &nobody, 0);
}

static void hand_over(struct mind *me)
{
	me->rc = mtlshm_take(me->instance, 4, world.proxied, MTLSHM_LCORE_SCH);
	me->has[4] = !me->rc;
}

static void become_tenant(struct mind *me)
{
	me->parent = world.bystander.owner;
	must_become(me);
}

static void become_tenant_with_lcores(struct mind *me)
{
	become_tenant(me);
	take(me, LENT);
	take(me, LENT + 2); /* was the dead leaf's */
	NEEDED(!me->rc);
}

static void claim_two(struct mind *me)
{
	claim_many(me, 2, MTLSHM_LCORE_SCH);
}

/* As a run within a run does. */
static void lend_two(struct mind *me)
{
	claim_many(me, 2, MTLSHM_LCORE_LEASE);
}

static void become_versed_tenant(struct mind *me)
{
	become_tenant(me);
	claim_two(me);
	release_all(me);
	NEEDED(me->rc == 2);
}

/* And a tenant of its own has died. */
static void become_parent(struct mind *me)
{
	struct mind child = {0};
	pid_t pid;

	become_tenant(me);
	NEEDED(!mtlshm_claim(me->instance, LENT, MTLSHM_LCORE_LEASE));
	child.parent = me->owner;
	pid = fork();
	if (!pid) {
		enter(&child);
		NEEDED(!child.rc && !mtlshm_claim(child.instance, LENT, MTLSHM_LCORE_APP));
		kill(getpid(), SIGKILL);
	}
	await_death(pid);
}

static void register_as_tenant(struct mind *me)
{
	me->parent = world.bystander.owner;
	enter(me);
}

static void register_under_the_dead(struct mind *me)
{
	me->parent = world.middle;
	enter(me);
}

static void claim_lent(struct mind *me)
{
	take(me, LENT);
}

static void claim_lent_to_the_dead(struct mind *me)
{
	take(me, LENT + 2);
}

static void release_lent(struct mind *me)
{
	me->has[LENT] = false;
	me->rc = mtlshm_release(me->instance, LENT);
}

static void collect_leaf(struct mind *me)
{
	me->rc = mtlshm_collect(world.host, world.leaf);
}

static void collect_middle(struct mind *me)
{
	me->rc = mtlshm_collect(world.host, world.middle);
}

static void reserve(struct mind *me)
{
	const struct mtlshm_want want = {.count = RESERVED_COUNT, .numa_node = MTLSHM_ANY_NODE, .timeout_ms = 1};
	static struct mtlshm_reserved made;

	me->rc = mtlshm_reserve(world.host, RESERVED_KEY, NULL, &want, &world.all, &made);
	for (uint32_t i = 0; !me->rc && i < made.count; i++)
		me->reserved[made.lcores[i]] = true;
	me->reservation = me->rc ? 0 : made.owner;
}

/* Knows the machine. */
static void become_versed_nobody(struct mind *me)
{
	reserve(me);
	NEEDED(!me->rc && !mtlshm_end(world.host, me->reservation));
	me->reservation = 0;
	memset(me->reserved, 0, sizeof(me->reserved));
}

static void end_reserved(struct mind *me)
{
	memset(me->reserved, 0, sizeof(me->reserved));
	me->rc = mtlshm_end(world.host, me->reservation);
}

static void open_it(struct mind *me)
{
	me->rc = mtlshm_open(&world.host, world.path, MTLSHM_CREATE, world.sysfs);
}

static void remove_it(struct mind *me)
{
	me->rc = mtlshm_retire(world.host);
	if (!me->rc)
		me->rc = unlink(world.path) ? -errno : 0;
	mtlshm_close(world.host);
}

/* clang-format off: a scenario a line */
const struct scenario scenarios[] = {
	{"register", USUAL, NULL, enter, 0, {0}, false, meddle, judge},
	{"register_after_the_dead", ALMOST_FULL, NULL, enter, 0, {0}, false, meddle, judge},
	{"claim", USUAL, must_become, claim_free, 0, {-EBUSY}, false, meddle, judge},
	{"claim_from_the_dead", USUAL, must_become, claim_of_the_dead, 0, {-EBUSY}, false, meddle, judge},
	{"claim_from_the_living", USUAL, must_become, claim_of_the_living, -EBUSY, {0}, false, meddle, judge},
	{"claim_many", USUAL, become_versed, claim_four, 0, {-EBUSY, -ETIMEDOUT}, false, meddle, judge},
	{"claim_many_from_the_dead",
	 USUAL,
	 become_versed,
	 claim_almost_all,
	 0,
	 {-EBUSY, -ETIMEDOUT},
	 false,
	 meddle,
	 judge},
	{"claim_many_after_a_dead_holder",
	 USUAL,
	 become_versed_behind_a_dead_holder,
	 claim_four,
	 0,
	 {-EBUSY, -ETIMEDOUT},
	 false,
	 meddle,
	 judge},
	{"release", USUAL, become_owner, release, 0, {0}, false, meddle, judge},
	{"release_not_ours", USUAL, must_become, release_not_ours, -EPERM, {0}, false, meddle, judge},
	{"release_all", USUAL, become_owner, release_all, 3, {0}, false, meddle, judge},
	{"unregister", USUAL, become_owner, leave, 0, {0}, false, meddle, judge},
	{"collect", USUAL, must_become, collect, 2, {-ESRCH}, false, meddle, judge},
	{"sweep", USUAL, must_become, sweep, 2, {0}, false, meddle, judge},
	{"lock", USUAL, must_become, lock, 0, {-ETIMEDOUT}, false, meddle, judge},
	{"lock_from_the_dead", DEAD_HAS_SEMAPHORE, must_become, lock, 1, {-ETIMEDOUT}, false, meddle, judge},
	{"lock_from_the_living", BYSTANDER_HAS_SEMAPHORE, must_become, lock_patiently, 0, {0}, true, meddle, judge},
	{"unlock", USUAL, become_holder, unlock, 0, {0}, false, meddle, judge},
	{"register_proxy", USUAL, must_become, make_proxy, 0, {0}, false, meddle, judge},
	{"take", USUAL, become_daemon, hand_over, 0, {0}, false, meddle, judge},
	{"tenant_register", FAMILY, NULL, register_as_tenant, 0, {0}, false, meddle, judge},
	{"tenant_register_under_the_dead", FAMILY, NULL, register_under_the_dead, -ESRCH, {0}, false, meddle, judge},
	{"tenant_claim", FAMILY, become_tenant, claim_lent, 0, {-EBUSY}, false, meddle, judge},
	{"tenant_claim_from_the_dead",
	 FAMILY,
	 become_tenant,
	 claim_lent_to_the_dead,
	 0,
	 {-EBUSY},
	 false,
	 meddle,
	 judge},
	{"tenant_claim_many", FAMILY, become_versed_tenant, claim_two, 0, {-EBUSY, -ETIMEDOUT}, false, meddle, judge},
	{"tenant_lend_many", FAMILY, become_versed_tenant, lend_two, 0, {-EBUSY, -ETIMEDOUT}, false, meddle, judge},
	{"tenant_release", FAMILY, become_tenant_with_lcores, release_lent, 0, {0}, false, meddle, judge},
	{"tenant_release_all", FAMILY, become_tenant_with_lcores, release_all, 2, {0}, false, meddle, judge},
	{"tenant_unregister", FAMILY, become_tenant_with_lcores, leave, 0, {0}, false, meddle, judge},
	{"parent_unregister", FAMILY, become_parent, leave, 0, {0}, false, meddle, judge},
	{"stranger_claims_what_is_lent",
	 FAMILY,
	 must_become,
	 claim_lent_to_the_dead,
	 -EBUSY,
	 {0},
	 false,
	 meddle,
	 judge},
	{"collect_tenant", FAMILY, must_become, collect_leaf, 1, {-ESRCH}, false, meddle, judge},
	{"collect_parent", FAMILY, must_become, collect_middle, 1, {-ESRCH}, false, meddle, judge},
	{"sweep_family", FAMILY, must_become, sweep, 4, {0}, false, meddle, judge},
	{"reserve", USUAL, become_versed_nobody, reserve, 0, {-EBUSY, -ETIMEDOUT}, false, meddle, judge},
	{"end", USUAL, reserve, end_reserved, 0, {0}, false, meddle, judge},
	{"open", NO_SEGMENT, NULL, open_it, 0, {0}, false, open_as_well, judge_opened},
	{"open_the_retired", RETIRED, NULL, open_it, 0, {0}, true, spare_meanwhile, judge_opened},
	{"retire", NOBODY, NULL, remove_it, 0, {-EBUSY}, false, register_meanwhile, judge_removed},
	{"register_in_the_retired", NOBODY, NULL, enter, 0, {-ESTALE}, false, remove_meanwhile, judge_removed},
	{"claim_many_at_first", USUAL, must_become, claim_four, 0, {-EBUSY, -ETIMEDOUT}, false, meddle, judge},
	{0},
};
/* clang-format on */
