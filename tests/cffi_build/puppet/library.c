/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What the library does: each command is the function of that name.
 */
#include <string.h>

#include "puppet.h"

static long do_open(char **words)
{
	return mtlshm_open(&puppet.host, puppet.path, (uint32_t)number(words[1]), puppet.sysfs);
}

static long do_close(char **words)
{
	(void)words;
	return mtlshm_close(puppet.host);
}

static long do_retire(char **words)
{
	(void)words;
	return mtlshm_retire(puppet.host);
}

static const struct mtlshm_cpuset every_cpu = {{~0ull, ~0ull, ~0ull, ~0ull, ~0ull, ~0ull, ~0ull, ~0ull, ~0ull, ~0ull,
						~0ull, ~0ull, ~0ull, ~0ull, ~0ull, ~0ull}};

static int become(const struct mtlshm_identity *identity)
{
	int rc = mtlshm_register(&puppet.me, puppet.host, identity);

	if (!rc)
		puppet.instances[puppet.count++] = puppet.me;
	return rc;
}

int become_instance(const char *label, uint32_t kind, const struct mtlshm_cpuset *cpus)
{
	const struct mtlshm_identity identity = {.label = label, .kind = kind, .cpus = cpus};

	return become(&identity);
}

/* [KIND]: as an instance that may claim any lcore. */
static long do_register(char **words)
{
	struct mtlshm_cpuset all;

	memset(&all, 0xff, sizeof(all));
	return become_instance(NULL, (uint32_t)number(words[1]), &all);
}

/* As one that may claim what the affinity mask allows. */
static long do_register_masked(char **words)
{
	(void)words;
	return become_instance(NULL, MTLSHM_KIND_SHM, NULL);
}

/* PARENT: as a tenant. */
static long do_register_under(char **words)
{
	const struct mtlshm_identity identity = {.cpus = &every_cpu, .parent = (uint64_t)number(words[1])};

	return become(&identity);
}

/* As a tenant of whom the environment says. */
static long do_register_inheriting(char **words)
{
	const struct mtlshm_identity identity = {.cpus = &every_cpu};
	(void)words;

	return become(&identity);
}

static long do_parent(char **words)
{
	uint64_t parent;
	int rc = mtlshm_parent(puppet.host, (uint64_t)number(words[1]), &parent);

	return rc ? rc : (long)parent;
}

/* KEY COUNT: the owner of the reservation, negative if it was there already, or 0 if there is none to be had. */
static long do_reserve(char **words)
{
	const struct mtlshm_want want = {.count = (uint32_t)number(words[2]), .numa_node = MTLSHM_ANY_NODE};
	struct mtlshm_reserved reserved;
	int rc = mtlshm_reserve(puppet.host, words[1], NULL, &want, &every_cpu, &reserved);

	return rc < 0 ? 0 : rc ? -(long)reserved.owner : (long)reserved.owner;
}

/* OWNER */
static long do_end(char **words)
{
	return mtlshm_end(puppet.host, (uint64_t)number(words[1]));
}

/* KIND PARENT: keeps a proxied instance of itself, the one in hand from now on. */
static long do_register_proxy(char **words)
{
	const struct mtlshm_process process = {.pid = 1, .label = "proxied"};
	int rc = mtlshm_register_proxy(&puppet.me, puppet.host, (uint32_t)number(words[1]), &process,
				       (uint64_t)number(words[2]));

	if (!rc)
		puppet.instances[puppet.count++] = puppet.me;
	return rc;
}

/* LCORE FROM */
static long do_take(char **words)
{
	return mtlshm_take(puppet.me, (uint32_t)number(words[1]), (uint64_t)number(words[2]), MTLSHM_LCORE_APP);
}

/* N: that often; returns how often it worked. */
static long do_register_many(char **words)
{
	long n = number(words[1]), done = 0;

	while (done < n && !do_register((char *[]){NULL, NULL}))
		done++;
	return done;
}

static long do_unregister(char **words)
{
	(void)words;
	return mtlshm_unregister(puppet.me);
}

static long do_owner(char **words)
{
	(void)words;
	return (long)mtlshm_owner(puppet.me);
}

static long do_alive(char **words)
{
	return mtlshm_alive(puppet.host, (uint64_t)number(words[1]));
}

static long do_collect(char **words)
{
	return mtlshm_collect(puppet.host, (uint64_t)number(words[1]));
}

static long do_sweep(char **words)
{
	(void)words;
	return mtlshm_sweep(puppet.host);
}

/* LCORE [TYPE] */
static long do_claim(char **words)
{
	return mtlshm_claim(puppet.me, (uint32_t)number(words[1]), (uint32_t)number(words[2]));
}

/* COUNT [TIMEOUT_MS] */
static long do_claim_many(char **words)
{
	const struct mtlshm_want want = {
		.count = (uint32_t)number(words[1]),
		.numa_node = MTLSHM_ANY_NODE,
		.timeout_ms = (uint32_t)number(words[2]),
	};
	uint16_t lcores[MTLSHM_LCORES];

	return mtlshm_claim_many(puppet.me, &want, lcores);
}

static long do_release(char **words)
{
	return mtlshm_release(puppet.me, (uint32_t)number(words[1]));
}

static long do_release_all(char **words)
{
	(void)words;
	return mtlshm_release_all(puppet.me);
}

/* LCORE OWNER */
static long do_evict(char **words)
{
	return mtlshm_evict(puppet.host, (uint32_t)number(words[1]), (uint64_t)number(words[2]));
}

static long do_lock(char **words)
{
	return mtlshm_lock(puppet.me, (uint32_t)number(words[1]));
}

static long do_unlock(char **words)
{
	(void)words;
	return mtlshm_unlock(puppet.me);
}

/* How many instances it sees. */
static long do_snapshot(char **words)
{
	static struct mtlshm_snapshot snapshot;
	int rc = mtlshm_snapshot(puppet.host, &snapshot);

	(void)words;
	return rc ? rc : (long)snapshot.instance_count;
}

const struct command library_commands[] = {
	{"open", do_open},
	{"close", do_close},
	{"retire", do_retire},
	{"register", do_register},
	{"register_masked", do_register_masked},
	{"register_under", do_register_under},
	{"register_inheriting", do_register_inheriting},
	{"register_proxy", do_register_proxy},
	{"parent", do_parent},
	{"reserve", do_reserve},
	{"end", do_end},
	{"take", do_take},
	{"register_many", do_register_many},
	{"unregister", do_unregister},
	{"owner", do_owner},
	{"alive", do_alive},
	{"collect", do_collect},
	{"sweep", do_sweep},
	{"claim", do_claim},
	{"claim_many", do_claim_many},
	{"release", do_release},
	{"release_all", do_release_all},
	{"evict", do_evict},
	{"lock", do_lock},
	{"unlock", do_unlock},
	{"snapshot", do_snapshot},
	{0},
};
