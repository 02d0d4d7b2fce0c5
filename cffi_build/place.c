/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Which lcores a claim of several shall have: the one place where the placement policy is written down.
 *
 * UNITS. The SMT policy is settled first, by turning what is free into units, taken whole or not at all.
 *   any     every CPU is a unit
 *   avoid   every physical core without a busy CPU is a unit of one CPU
 *   whole   every physical core of which all online CPUs can be had is a unit of them all
 * From then on a unit is known by one CPU, its leader, and only counting is left. All units weigh the same,
 * except for whole cores on a machine that has several kinds (hybrid, or some siblings offline). Then a
 * unit weighs its CPUs, and "is there enough" becomes "can it be made up exactly": a subset sum.
 *
 * DOMAINS. Units are taken from one last-level cache if one has enough, else from one NUMA node, else from
 * several. Of the domains that have enough, the one with least is best: it leaves the others whole for
 * claims that need more. Where none has enough, the fullest is taken entirely and the rest sought anew, which
 * makes the domains touched as few as they can be. Hence two steps do for everything: fit, and drain.
 *   A cache can be wider than a node (Intel's sub-NUMA clustering divides the L3 of a socket into nodes, and
 * sysfs shows one cache), so a cache here means the CPUs that share both cache and node.
 *
 * WHAT COMES LAST. The choice is made among the CPUs that nothing speaks against; if those are not enough, again with the
 * next kind of unwelcome.h added.
 *
 * REFUSALS. Every step leaves units that can make up what is still needed. So once that holds at the start a
 * choice will be found; and asking it of an idle machine tells -ERANGE from -EBUSY.
 *
 * COST. This runs under the semaphore, which single claims do not need: some microseconds for 64 CPUs, a hundred for
 * 1,024. Loops are plain, since programs ask for several lcores when they start. Only the subset sum clears no more than it
 * uses.
 */
#include "place.h"

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>

#include "cpuset.h"
#include "topology.h"
#include "unwelcome.h"

struct domain {
	uint16_t cache; /* 0 if the domain is a node */
	uint16_t node;
	uint16_t weight; /* of its units */
};

struct choice {
	const struct mtlshm_topology *topology;
	struct mtlshm_cpuset units;     /* leaders of those that may still be taken */
	struct mtlshm_cpuset taken;     /* leaders of those that are */
	uint32_t need;                  /* the weight that is still missing */
	bool mixed;                     /* units differ in weight; if not, each weighs 1 */
	uint32_t heaviest;              /* if mixed: the highest weight, */
	uint16_t weight[MTLSHM_LCORES]; /* and that of each leader */
	bool by_node;                   /* domains are nodes; if not, caches */
	uint32_t domains;
	struct domain domain[MTLSHM_LCORES]; /* those that have units, in no order */
};

static uint32_t weight_of(const struct choice *choice, uint32_t leader)
{
	return choice->mixed ? choice->weight[leader] : 1;
}

/* Can these units make up exactly `need`? If so, quota[weight] (unless NULL) is how many of each weight do,
 * with as few of the lightest as can be, then of the next. A sum is reached from a smaller one by one more
 * unit; last[] remembers by which weight it was reached first, and used[] how many of that weight it took. */
static bool make_up(const struct choice *choice, const struct mtlshm_cpuset *units, uint32_t need, uint16_t *quota)
{
	uint16_t last[MTLSHM_LCORES + 1], used[MTLSHM_LCORES + 1], have[MTLSHM_LCORES + 1];
	uint32_t leader, total = 0;

	memset(have, 0, sizeof(have[0]) * (choice->heaviest + 1));
	cpuset_for_each(leader, units) {
		have[choice->weight[leader]]++;
		total += choice->weight[leader];
	}
	if (need > total)
		return false;
	memset(last, 0, sizeof(last[0]) * (need + 1));
	last[0] = UINT16_MAX; /* by nothing, but reached */
	for (uint32_t weight = choice->heaviest; weight; weight--) {
		if (!have[weight])
			continue;
		memset(used, 0, sizeof(used[0]) * (need + 1));
		for (uint32_t sum = weight; sum <= need; sum++) {
			uint32_t before = sum - weight;

			if (last[sum] || !last[before] || used[before] == have[weight])
				continue;
			last[sum] = (uint16_t)weight;
			used[sum] = (uint16_t)(used[before] + 1);
		}
	}
	if (!last[need] || !quota)
		return last[need];
	memset(quota, 0, sizeof(quota[0]) * (choice->heaviest + 1));
	for (uint32_t sum = need; sum; sum -= last[sum])
		quota[last[sum]]++;
	return true;
}

static bool adds_up(const struct choice *choice, const struct mtlshm_cpuset *units, uint32_t need)
{
	return choice->mixed ? make_up(choice, units, need, NULL) : cpuset_count(units) >= need;
}

/* Isolated siblings lead, where there are any. */
static void make_avoiding_units(struct choice *choice, const struct mtlshm_cpuset *free,
				const struct mtlshm_cpuset *busy)
{
	const struct mtlshm_topology *topology = choice->topology;
	struct mtlshm_cpuset held, isolated, closed = {0}; /* cores that are busy or have their unit */
	uint32_t cpu;

	cpuset_and(&held, busy, &topology->online);
	cpuset_and(&isolated, free, &topology->isolated);
	cpuset_for_each(cpu, &held)
		cpuset_add(&closed, topology->core[cpu]);
	for (int pass = 0; pass < 2; pass++) {
		cpuset_for_each(cpu, pass ? free : &isolated) {
			if (cpuset_has(&closed, topology->core[cpu]))
				continue;
			cpuset_add(&closed, topology->core[cpu]);
			cpuset_add(&choice->units, cpu);
		}
	}
}

static void make_whole_units(struct choice *choice, const struct mtlshm_cpuset *free)
{
	const struct mtlshm_topology *topology = choice->topology;
	struct mtlshm_cpuset others, broken = {0};
	uint32_t cpu, leader, lightest = MTLSHM_LCORES;

	cpuset_andnot(&others, &topology->online, free);
	cpuset_for_each(cpu, &others)
		cpuset_add(&broken, topology->core[cpu]);
	cpuset_for_each(cpu, free) {
		leader = topology->core[cpu];
		if (cpuset_has(&broken, leader))
			continue;
		if (leader == cpu) {
			cpuset_add(&choice->units, cpu);
			choice->weight[cpu] = 0;
		}
		choice->weight[leader]++;
	}
	choice->heaviest = 0;
	cpuset_for_each(leader, &choice->units) {
		if (choice->weight[leader] < lightest)
			lightest = choice->weight[leader];
		if (choice->weight[leader] > choice->heaviest)
			choice->heaviest = choice->weight[leader];
	}
	choice->mixed = lightest < choice->heaviest;
	/* Units of one weight are counted. A claim that is no multiple of it needs more than there can be. */
	if (!choice->mixed && choice->heaviest)
		choice->need = choice->need % lightest ? UINT32_MAX : choice->need / lightest;
}

/* Turn free CPUs into units. Can they make up the claim? */
static bool begin(struct choice *choice, const struct mtlshm_topology *topology, const struct mtlshm_want *want,
		  const struct mtlshm_cpuset *free, const struct mtlshm_cpuset *busy)
{
	choice->topology = topology;
	choice->units = (struct mtlshm_cpuset){0};
	choice->taken = (struct mtlshm_cpuset){0};
	choice->need = want->count;
	choice->mixed = false;
	if (want->smt == MTLSHM_SMT_WHOLE)
		make_whole_units(choice, free);
	else if (want->smt == MTLSHM_SMT_AVOID)
		make_avoiding_units(choice, free, busy);
	else
		choice->units = *free;
	return adds_up(choice, &choice->units, choice->need);
}

static bool is_in(const struct choice *choice, const struct domain *domain, uint32_t leader)
{
	return choice->topology->node[leader] == domain->node &&
	       (choice->by_node || choice->topology->llc[leader] == domain->cache);
}

/* The domain of this unit, made if it is new. Neighbours are mostly in the same, so the latest is looked at first. */
static struct domain *find_domain(struct choice *choice, uint32_t leader)
{
	const struct mtlshm_topology *topology = choice->topology;
	struct domain *domain;

	for (uint32_t i = choice->domains; i--;)
		if (is_in(choice, &choice->domain[i], leader))
			return &choice->domain[i];
	domain = &choice->domain[choice->domains++];
	*domain = (struct domain){
		.cache = choice->by_node ? 0 : topology->llc[leader],
		.node = topology->node[leader],
	};
	return domain;
}

/* Sort the units that are left into caches or nodes. */
static void group(struct choice *choice, bool by_node)
{
	uint32_t leader;

	choice->domains = 0;
	choice->by_node = by_node;
	cpuset_for_each(leader, &choice->units) {
		struct domain *domain = find_domain(choice, leader);

		domain->weight = (uint16_t)(domain->weight + weight_of(choice, leader));
	}
}

static struct mtlshm_cpuset members(const struct choice *choice, const struct domain *domain)
{
	struct mtlshm_cpuset set = {0};
	uint32_t leader;

	cpuset_for_each(leader, &choice->units)
		if (is_in(choice, domain, leader))
			cpuset_add(&set, leader);
	return set;
}

/* The order in which domains are looked at: by weight, then by number. */
static uint64_t rank(const struct domain *domain, bool fullest_first)
{
	uint64_t weight = fullest_first ? MTLSHM_LCORES - domain->weight : domain->weight;

	return weight << 32 | (uint32_t)domain->cache << 16 | domain->node;
}

/* The first domain whose rank is not below `floor`. */
static struct domain *first_from(struct choice *choice, uint64_t floor, bool fullest_first)
{
	struct domain *first = NULL;
	uint64_t least = UINT64_MAX;

	for (uint32_t i = 0; i < choice->domains; i++) {
		uint64_t this = rank(&choice->domain[i], fullest_first);

		if (this >= floor && this < least) {
			least = this;
			first = &choice->domain[i];
		}
	}
	return first;
}

/* Leave only the domain that the missing weight fills best. False: none has enough. */
static bool fit(struct choice *choice)
{
	struct domain *domain = first_from(choice, (uint64_t)choice->need << 32, false);
	struct mtlshm_cpuset set;

	for (; domain; domain = first_from(choice, rank(domain, false) + 1, false)) {
		set = members(choice, domain);
		if (!choice->mixed || make_up(choice, &set, choice->need, NULL)) {
			choice->units = set;
			return true;
		}
	}
	return false;
}

/* Take all of the fullest domain without which the others can still make up the rest. False: none. */
static bool drain(struct choice *choice)
{
	struct domain *domain = first_from(choice, 0, true);
	struct mtlshm_cpuset set, others;

	for (; domain; domain = first_from(choice, rank(domain, true) + 1, true)) {
		if (domain->weight > choice->need)
			continue;
		set = members(choice, domain);
		cpuset_andnot(&others, &choice->units, &set);
		if (choice->mixed && !make_up(choice, &others, choice->need - domain->weight, NULL))
			continue;
		cpuset_or(&choice->taken, &choice->taken, &set);
		choice->units = others;
		choice->need -= domain->weight;
		*domain = choice->domain[--choice->domains];
		return true;
	}
	return false;
}

static void narrow(struct choice *choice, bool by_node)
{
	group(choice, by_node);
	while (!fit(choice) && drain(choice))
		;
}

/* Take the missing weight from any unit that is left, isolated ones first. */
static void finish(struct choice *choice)
{
	uint16_t quota[MTLSHM_LCORES + 1];
	struct mtlshm_cpuset isolated;
	uint32_t leader;

	if (choice->mixed)
		make_up(choice, &choice->units, choice->need, quota);
	cpuset_and(&isolated, &choice->units, &choice->topology->isolated);
	for (int pass = 0; pass < 2; pass++) {
		cpuset_for_each(leader, pass ? &choice->units : &isolated) {
			if (!choice->need)
				return;
			if (cpuset_has(&choice->taken, leader))
				continue;
			if (choice->mixed && !quota[choice->weight[leader]])
				continue;
			if (choice->mixed)
				quota[choice->weight[leader]]--;
			choice->need -= weight_of(choice, leader);
			cpuset_add(&choice->taken, leader);
		}
	}
}

/* Choose from these CPUs. False: they cannot make up the claim. */
static bool choose(struct choice *choice, const struct mtlshm_topology *topology, const struct mtlshm_want *want,
		   const struct mtlshm_cpuset *free, const struct mtlshm_cpuset *busy, uint16_t *lcores)
{
	bool whole = want->smt == MTLSHM_SMT_WHOLE;
	uint32_t cpu, count = 0;

	if (!begin(choice, topology, want, free, busy))
		return false;
	group(choice, false);
	if (!fit(choice)) {
		narrow(choice, true);
		narrow(choice, false);
	}
	finish(choice);
	cpuset_for_each(cpu, whole ? free : &choice->taken)
		if (cpuset_has(&choice->taken, whole ? topology->core[cpu] : cpu))
			lcores[count++] = (uint16_t)cpu;
	return true;
}

int place(const struct mtlshm_topology *topology, const struct mtlshm_want *want, const struct mtlshm_cpuset *allowed,
	  const struct mtlshm_cpuset *busy, const struct mtlshm_cpuset *others, uint16_t *lcores)
{
	const struct mtlshm_cpuset nothing = {0};
	struct mtlshm_cpuset usable, free, best, unwelcome[UNWELCOME];
	struct choice choice;

	if (!want->count || want->smt >= MTLSHM_SMT_POLICIES || want->near > 1)
		return -EINVAL;
	cpuset_and(&usable, allowed, &topology->online);
	if (want->numa_node != MTLSHM_ANY_NODE) {
		if (want->numa_node < 0 || !cpuset_has(&topology->nodes, (uint32_t)want->numa_node))
			return -ENXIO;
		if (!want->near)
			topology_keep_node(topology, (uint32_t)want->numa_node, &usable);
	}
	cpuset_andnot(&free, &usable, busy);
	unwelcome_cpus(topology, want, &free, others, unwelcome);
	for (int accepted = 0; accepted <= UNWELCOME; accepted++) {
		best = free;
		for (int kind = accepted; kind < UNWELCOME; kind++)
			cpuset_andnot(&best, &best, &unwelcome[kind]);
		if (choose(&choice, topology, want, &best, busy, lcores))
			return 0;
	}
	return begin(&choice, topology, want, &usable, &nothing) ? -EBUSY : -ERANGE;
}
