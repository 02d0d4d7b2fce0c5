/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Families: who holds lcores for its tenants, and tenants that do so in turn. tree is a process as `mtlshm-ctl run` is,
 * which has children; guest is a tenant of a reservation, and has children too. Each may die whenever it
 * likes, before its children or after them.
 *
 * Two children a member, as long as these can be told apart in the record: the slots of a family are a heap.
 */
#include <errno.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "client.h"
#include "instance.h"
#include "kinds.h"
#include "reservations.h"

enum { CHILDREN = 2 };

static struct {
	uint32_t level;                /* how far from the first of the line, */
	uint64_t line[WITNESS_LEVELS]; /* which are these owners */
	uint32_t position;             /* in the heap; 0 is at this slot: */
	uint32_t first_slot;
	pid_t children[CHILDREN];
	uint16_t parents[WITNESS_LCORES], parents_count; /* what the parent holds for us, or did */
	uint16_t lent[WITNESS_LCORES], lent_count;
} member;

static bool lends(void)
{
	return member.level < WITNESS_LEVELS;
}

static void lend(uint16_t lcore)
{
	witness_lends(lcore, member.level);
	member.lent[member.lent_count++] = lcore;
}

static bool is_lent(uint16_t lcore)
{
	for (uint32_t i = 0; i < member.lent_count; i++)
		if (member.lent[i] == lcore)
			return true;
	return false;
}

static void take_back_all(void)
{
	while (member.lent_count)
		witness_takes_back(member.lent[--member.lent_count], member.level);
}

/* What one may know that the parent has, mostly. */
static uint16_t some_lcore(void)
{
	if (member.parents_count && throw_dice(8))
		return member.parents[throw_dice(member.parents_count)];
	return (uint16_t)throw_dice(self.lcores);
}

/* A member of level 0 only lends, one of the last only uses. */
static bool for_tenants(void)
{
	return !member.level || (lends() && throw_dice(2));
}

static void keep(uint16_t lcore, bool tenants)
{
	if (tenants)
		lend(lcore);
	else
		got(lcore);
}

static void claim_one(bool tenants)
{
	uint16_t lcore = some_lcore();
	int rc;

	if (is_held(lcore) || is_lent(lcore))
		return;
	rc = mtlshm_claim(me, lcore, tenants ? MTLSHM_LCORE_LEASE : throw_dice(MTLSHM_LCORE_LEASE));
	if (!rc)
		keep(lcore, tenants);
	else if (rc != -EBUSY && (rc != -EDOM || !member.level))
		witness_wrong("a claim in a family said", rc);
}

static void claim_some(bool tenants)
{
	uint32_t count = 1 + throw_dice(SOME / 2);
	uint16_t given[SOME];

	if (!claim_several(count, tenants ? MTLSHM_LCORE_LEASE : MTLSHM_LCORE_APP, given))
		for (uint32_t i = 0; i < count; i++)
			keep(given[i], tenants);
}

static void release(uint32_t position)
{
	int rc = mtlshm_release(me, gives(position));

	if (rc)
		witness_wrong("could not release what it had of its parent's:", rc);
}

/* So quickly that siblings, on another CPU or for a turn on this one, are likely to be in the middle of their claims. */
static void claim_and_release(uint32_t times, void (*claim)(bool tenants))
{
	while (times-- && member.level) {
		uint32_t before = self.held_count;

		claim(false);
		while (self.held_count > before)
			release(self.held_count - 1);
	}
}

/* Unless a tenant has it. */
static void release_lent(void)
{
	uint32_t position;
	uint16_t lcore;
	int rc;

	if (!member.lent_count)
		return;
	position = throw_dice(member.lent_count);
	lcore = member.lent[position];
	member.lent[position] = member.lent[--member.lent_count];
	witness_takes_back(lcore, member.level);
	rc = mtlshm_release(me, lcore);
	if (rc == -EPERM)
		lend(lcore);
	else if (rc)
		witness_wrong("could not release what it held for tenants:", rc);
}

/* A child of ours that has come to its end leaves its slot to another. */
static void bury(uint32_t child, int status)
{
	bool killed = WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;

	if (status && !killed)
		witness_wrong("a child of it ended with the status", status);
	witness_count(killed ? &self.witness->killed[self.kind] : &self.witness->ended[self.kind]);
	witness_vacate(member.first_slot + CHILDREN * member.position + 1 + child);
	member.children[child] = 0;
}

static void look_for_the_dead(void)
{
	int status;

	for (uint32_t i = 0; i < CHILDREN; i++)
		if (member.children[i] && waitpid(member.children[i], &status, WNOHANG) > 0)
			bury(i, status);
}

static void kill_a_child(void)
{
	uint32_t child = throw_dice(CHILDREN);
	int status;

	if (!member.children[child])
		return;
	witness_condemn(member.first_slot + CHILDREN * member.position + 1 + child);
	kill(member.children[child], SIGKILL);
	waitpid(member.children[child], &status, 0);
	bury(child, status);
}

static void live_in_family(void);

static _Noreturn void live_as_child(uint32_t child, uint64_t parent)
{
	for (uint32_t i = 0; i < member.lent_count; i++)
		member.parents[i] = member.lent[i];
	member.parents_count = member.lent_count;
	member.lent_count = 0;
	for (uint32_t i = 0; i < CHILDREN; i++)
		member.children[i] = 0;
	member.line[member.level++] = parent;
	member.position = CHILDREN * member.position + 1 + child;
	begin_as_child_at(member.first_slot + member.position);
	mtlshm_instance_free(me);
	live_in_family();
	end();
}

/* Unless there is one: of ours, or of one that was here before. */
static void have_a_child(void)
{
	uint32_t child = throw_dice(CHILDREN);
	uint64_t parent = mtlshm_owner(me);
	uint32_t slot = member.first_slot + CHILDREN * member.position + 1 + child;
	pid_t pid;

	if (!lends() || !member.lent_count || !witness_books(slot))
		return;
	witness_count(&self.witness->forked);
	pid = fork();
	if (!pid)
		live_as_child(child, parent);
	if (pid > 0)
		member.children[child] = pid;
}

/* One that has a parent itself. */
static void mourn_the_parent(void)
{
	if (member.level == WITNESS_LEVELS && mtlshm_alive(host, member.line[member.level - 1]) == 0 && !throw_dice(8))
		witness_count(&self.witness->orphaned);
}

static void do_something(void)
{
	uint32_t what = throw_dice(100);

	look_for_the_dead();
	if (what < 2)
		sweep();
	else if (what < 30)
		claim_one(for_tenants());
	else if (what < 40)
		claim_some(for_tenants());
	else if (what < 44)
		claim_and_release(throw_dice(10000), claim_one);
	else if (what < 47)
		claim_and_release(throw_dice(500), claim_some);
	else if (what < 55 && self.held_count)
		release(throw_dice(self.held_count));
	else if (what < 60)
		release_lent();
	else if (what < 72)
		have_a_child();
	else if (what < 74)
		kill_a_child();
	else if (what < 76)
		mourn_the_parent();
	else
		doze(500);
}

/* Until the parent is gone, or it has had enough. */
static void live_in_family(void)
{
	do {
		uint64_t parent = member.level ? member.line[member.level - 1] : MTLSHM_NO_PARENT;

		if (become_tenant(parent))
			return;
		witness_descends(mtlshm_owner(me), member.line);
		for (uint32_t n = throw_dice(80); n; n--)
			do_something();
		if (!throw_dice(4))
			end();
		if (!member.position && !throw_dice(10))
			become_another();
		take_back_all();
		leave();
	} while (throw_dice(3));
}

void live_in_tree(void)
{
	member.first_slot = self.slot;
	open_segment();
	for (;;)
		live_in_family();
}

void live_as_guest(void)
{
	static struct mtlshm_reserved found;

	member.first_slot = self.slot;
	member.level = 1;
	open_segment();
	for (;;) {
		if (!find_reservation(&found)) {
			doze(5000);
			continue;
		}
		member.line[0] = found.owner;
		member.parents_count = 0;
		for (uint32_t i = 0; i < found.count; i++)
			member.parents[member.parents_count++] = found.lcores[i];
		live_in_family();
	}
}
