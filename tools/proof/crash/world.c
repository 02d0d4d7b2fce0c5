/* SPDX-License-Identifier: BSD-3-Clause */
#include "world.h"

#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "report.h"
#include "table.h"

struct world world;

bool about_the_file(void)
{
	return world.kind & (NOBODY | NO_SEGMENT | RETIRED);
}

bool lent(uint32_t lcore)
{
	return world.kind & FAMILY && lcore >= LENT && lcore < LENT + LENT_COUNT;
}

void enter(struct mind *who)
{
	const struct mtlshm_identity identity = {.cpus = &world.all,
						 .parent = who->parent ? who->parent : MTLSHM_NO_PARENT};

	who->rc = mtlshm_register(&who->instance, world.host, &identity);
	who->owner = who->rc ? 0 : mtlshm_owner(who->instance);
}

void take(struct mind *who, uint32_t lcore)
{
	who->rc = mtlshm_claim(who->instance, lcore, MTLSHM_LCORE_APP);
	if (who->rc)
		who->refused = lcore;
	else
		who->has[lcore] = who->had[lcore] = true;
}

void await_death(pid_t pid)
{
	int status;

	NEEDED(waitpid(pid, &status, 0) == pid && WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
}

void die_holding(uint32_t first, uint32_t second, bool semaphore)
{
	struct mind own = {0};
	pid_t pid = fork();

	if (!pid) {
		enter(&own);
		NEEDED(!own.rc && !mtlshm_claim(own.instance, first, 0) && !mtlshm_claim(own.instance, second, 1));
		NEEDED(!semaphore || !mtlshm_lock(own.instance, 0));
		kill(getpid(), SIGKILL);
	}
	await_death(pid);
}

/* Both die before anybody looks at either. */
static void family_dies(void)
{
	struct mind middle = {.parent = world.bystander.owner}, leaf = {0};
	pid_t pid = fork(), child;

	if (!pid) {
		enter(&middle);
		NEEDED(!middle.rc && !mtlshm_claim(middle.instance, LENT + 1, MTLSHM_LCORE_LEASE) &&
		       !mtlshm_claim(middle.instance, LENT + 2, MTLSHM_LCORE_LEASE));
		child = fork();
		if (!child) {
			leaf.parent = middle.owner;
			enter(&leaf);
			NEEDED(!leaf.rc && !mtlshm_claim(leaf.instance, LENT + 2, MTLSHM_LCORE_APP));
			kill(getpid(), SIGKILL);
		}
		await_death(child);
		kill(getpid(), SIGKILL);
	}
	await_death(pid);
	world.middle = owner_of_record(4);
	world.leaf = owner_of_record(5);
	NEEDED(known(world.middle) && known(world.leaf) && lcores_of(world.middle) == 1 && lcores_of(world.leaf) == 1);
}

uint64_t add_proxy(struct mtlshm_instance **result)
{
	const struct mtlshm_process nobody = {.pid = 1};

	NEEDED(!mtlshm_register_proxy(result, world.host, MTLSHM_KIND_LEGACY, &nobody, 0));
	return mtlshm_owner(*result);
}

void make_world(enum world_kind kind, const char *path, const char *sysfs)
{
	struct mtlshm_instance *proxy;

	world.kind = kind;
	world.path = path;
	world.sysfs = sysfs;
	memset(&world.all, 0xff, sizeof(world.all));
	world.victim = mmap(NULL, sizeof(*world.victim), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	NEEDED(world.victim != MAP_FAILED);
	NEEDED(!mtlshm_open(&world.host, path, MTLSHM_CREATE, sysfs));
	map_table(path);
	if (about_the_file()) {
		world.before = *segment;
		return;
	}
	enter(&world.bystander);
	take(&world.bystander, 0);
	take(&world.bystander, 1);
	NEEDED(!world.bystander.rc && index_in(world.bystander.owner) == 0);
	die_holding(2, 3, kind & DEAD_HAS_SEMAPHORE);
	world.dead = owner_of_record(1);
	world.proxied = add_proxy(&proxy);
	NEEDED(index_in(world.proxied) == 2 && !mtlshm_claim(proxy, 4, MTLSHM_LCORE_SCH));
	die_holding(6, 7, false);
	NEEDED(lcores_of(world.dead) == 2 && known(world.dead) && !locked(1, F_WRLCK) &&
	       lcores_of(owner_of_record(3)) == 2);
	if (kind & FAMILY) {
		for (uint32_t i = 0; i < LENT_COUNT; i++)
			NEEDED(!mtlshm_claim(world.bystander.instance, LENT + i, MTLSHM_LCORE_LEASE));
		family_dies();
	}
	if (kind & ALMOST_FULL)
		for (uint32_t i = 4; i < MTLSHM_INSTANCES; i++)
			add_proxy(&proxy);
	if (kind & BYSTANDER_HAS_SEMAPHORE)
		NEEDED(!mtlshm_lock(world.bystander.instance, 0));
	world.before = *segment;
}

void reopen(void)
{
	if (world.host)
		NEEDED(!mtlshm_close(world.host));
	NEEDED(!mtlshm_open(&world.host, world.path, MTLSHM_CREATE, world.sysfs));
	map_table(world.path);
}

void restore_world(void)
{
	memset(world.victim, 0, sizeof(*world.victim));
	memset(&world.rival, 0, sizeof(world.rival));
	world.bystander.semaphore = world.kind & BYSTANDER_HAS_SEMAPHORE;
	if (world.kind & NO_SEGMENT) {
		unlink(world.path);
		return;
	}
	if (about_the_file()) {
		reopen();
		if (world.kind & RETIRED)
			NEEDED(!mtlshm_retire(world.host));
		world.before = *segment;
		return;
	}
	*segment = world.before;
}
