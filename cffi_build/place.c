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
 * those who need more. Where none has enough, the fullest is taken entirely and the rest sought anew, which
 * makes the domains touched as few as they can be. Hence two steps do for everything: fit, and drain.
 *   A cache can be wider than a node (Intel's sub-NUMA clustering divides the L3 of a socket into nodes, and
 * sysfs shows one cache), so a cache here means the CPUs that share both cache and node.
 *
 * WHAT COMES LAST. Some CPUs are taken only if the claim cannot do without them. From the least to the most unwelcome:
 *   siblings       the SMT sibling is in use by somebody else, who would lose half of a core
 *   housekeeping   not isolated, on a host that isolates some
 *   other nodes    than the one that was wished for
 *   CPU 0          where the kernel does what it can do nowhere else, and which libmtl, whose main lcore has id 0, gives to
 *                  nobody
 * The choice is made among the best CPUs; if those are not enough, again with the next kind added.
 *
 * REFUSALS. Every step leaves units that can make up what is still needed. So once that holds at the start a
 * choice will be found; and asking it of an idle machine tells -ERANGE from -EBUSY.
 *
 * COST. This runs under the semaphore: a quarter of a microsecond for 64 CPUs. Arrays are initialised only
 * as far as they are used, and bits are walked a word at a time.
 */
#include "place.h"

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>

#include "cpuset.h"

/* For every CPU of a set, ascending; the CPU in hand may be removed. break leaves only the word. It does not
 * look beyond the CPUs the machine has, as cpuset_for_each() would: that halves the time of a claim. */
#define for_each_cpu(cpu, set, cpus)                                                            \
	for (uint32_t word_ = 0; word_ * 64 < (cpus); word_++)                                  \
		for (uint64_t bits_ = (set)->bits[word_];                                       \
		     bits_ && ((cpu) = word_ * 64 + (uint32_t)__builtin_ctzll(bits_), true);    \
		     bits_ &= bits_ - 1)

struct domain {
	uint16_t cache; /* 0 if the domain is a node */
	uint16_t node;
	uint16_t weight; /* of its units */
};

struct choice {
	const struct mtlshm_topology *topology;
	uint32_t cpus;                  /* no set goes beyond */
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

/* Copied to clear a set: for memset() gcc uses "rep stos" here, which takes 20 ns to get going. */
static const struct mtlshm_cpuset none;

static uint32_t weight_of(const struct choice *choice, uint32_t leader)
{
	return choice->mixed ? choice->weight[leader] : 1;
}

/* Can these units make up exactly `need`? If so, quota[weight] (unless NULL) is how many of each weight do,
 * with as few of the lightest as can be, then of the next. A sum is reached from a smaller one by one more
 * unit; last[] remembers by which weight it was reached first, and used[] how many of that weight it took. */
static bool make_up(const struct choice *choice, const struct mtlshm_cpuset *units, uint32_t need,
		    uint16_t *quota)
{
	uint16_t last[MTLSHM_LCORES + 1], used[MTLSHM_LCORES + 1], have[MTLSHM_LCORES + 1];
	uint32_t leader, total = 0;

	memset(have, 0, sizeof(have[0]) * (choice->heaviest + 1));
	for_each_cpu(leader, units, choice->cpus) {
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
	uint32_t count = 0;

	if (choice->mixed)
		return make_up(choice, units, need, NULL);
	for (uint32_t i = 0; i * 64 < choice->cpus; i++)
		count += (uint32_t)__builtin_popcountll(units->bits[i]);
	return count >= need;
}

/* Isolated siblings lead, where there are any. */
static void make_avoiding_units(struct choice *choice, const struct mtlshm_cpuset *free,
				const struct mtlshm_cpuset *busy)
{
	const struct mtlshm_topology *topology = choice->topology;
	struct mtlshm_cpuset held, isolated, closed = none; /* cores that are busy or have their unit */
	uint32_t cpu;

	cpuset_and(&held, busy, &topology->online);
	cpuset_and(&isolated, free, &topology->isolated);
	for_each_cpu(cpu, &held, choice->cpus)
		cpuset_add(&closed, topology->core[cpu]);
	for (int pass = 0; pass < 2; pass++) {
		for_each_cpu(cpu, pass ? free : &isolated, choice->cpus) {
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
	struct mtlshm_cpuset others, broken = none;
	uint32_t cpu, leader, lightest = MTLSHM_LCORES;

	cpuset_andnot(&others, &topology->online, free);
	for_each_cpu(cpu, &others, choice->cpus)
		cpuset_add(&broken, topology->core[cpu]);
	for_each_cpu(cpu, free, choice->cpus) {
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
	for_each_cpu(leader, &choice->units, choice->cpus) {
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
static bool begin(struct choice *choice, const struct mtlshm_topology *topology,
		  const struct mtlshm_want *want, const struct mtlshm_cpuset *free,
		  const struct mtlshm_cpuset *busy)
{
	choice->topology = topology;
	choice->cpus = topology->cpus;
	choice->units = none;
	choice->taken = none;
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

/* The domain of a cache and a node, made if it is new. `slot` holds the latest domain of that cache, which is
 * the right one unless the cache is in several nodes. */
static struct domain *find_domain(struct choice *choice, uint16_t *slot, uint16_t cache, uint16_t node)
{
	struct domain *domain;

	if (*slot < choice->domains) {
		domain = &choice->domain[*slot];
		if (domain->node == node)
			return domain;
		for (uint32_t i = 0; i < choice->domains; i++) {
			domain = &choice->domain[i];
			if (domain->cache == cache && domain->node == node)
				return domain;
		}
	}
	*slot = (uint16_t)choice->domains++;
	domain = &choice->domain[*slot];
	*domain = (struct domain){.cache = cache, .node = node};
	return domain;
}

/* Sort the units that are left into caches or nodes. Neighbours are mostly in the same. */
static void group(struct choice *choice, bool by_node)
{
	const struct mtlshm_topology *topology = choice->topology;
	uint16_t slot[MTLSHM_LCORES]; /* by number of the cache or node */
	struct domain nowhere = {.node = UINT16_MAX}, *domain = &nowhere;
	uint32_t leader, weight = 0;

	memset(slot, 0xff, sizeof(slot[0]) * (by_node ? MTLSHM_LCORES : choice->cpus));
	choice->domains = 0;
	choice->by_node = by_node;
	for_each_cpu(leader, &choice->units, choice->cpus) {
		uint16_t node = topology->node[leader];
		uint16_t cache = by_node ? 0 : topology->llc[leader];

		if (domain->node != node || domain->cache != cache) {
			domain->weight = (uint16_t)(domain->weight + weight);
			weight = 0;
			domain = find_domain(choice, &slot[by_node ? node : cache], cache, node);
		}
		weight += weight_of(choice, leader);
	}
	domain->weight = (uint16_t)(domain->weight + weight);
}

static bool is_in(const struct choice *choice, const struct domain *domain, uint32_t leader)
{
	return choice->topology->node[leader] == domain->node &&
	       (choice->by_node || choice->topology->llc[leader] == domain->cache);
}

static struct mtlshm_cpuset members(const struct choice *choice, const struct domain *domain)
{
	struct mtlshm_cpuset set = none;

	for (uint32_t i = 0; i * 64 < choice->cpus; i++) {
		uint64_t word = 0;

		for (uint64_t bits = choice->units.bits[i]; bits; bits &= bits - 1)
			if (is_in(choice, domain, i * 64 + (uint32_t)__builtin_ctzll(bits)))
				word |= bits & -bits;
		set.bits[i] = word;
	}
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

/* Leave only the domain that what is needed fills best. False: none has enough. */
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

/* Take what is needed from any unit that is left, isolated ones first. */
static void finish(struct choice *choice)
{
	uint16_t quota[MTLSHM_LCORES + 1];
	struct mtlshm_cpuset isolated;
	uint32_t leader;

	if (choice->mixed)
		make_up(choice, &choice->units, choice->need, quota);
	cpuset_and(&isolated, &choice->units, &choice->topology->isolated);
	for (int pass = 0; pass < 2; pass++) {
		for_each_cpu(leader, pass ? &choice->units : &isolated, choice->cpus) {
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
static bool choose(struct choice *choice, const struct mtlshm_topology *topology,
		   const struct mtlshm_want *want, const struct mtlshm_cpuset *free,
		   const struct mtlshm_cpuset *busy, uint16_t *lcores)
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
	for_each_cpu(cpu, whole ? free : &choice->taken, choice->cpus)
		if (cpuset_has(&choice->taken, whole ? topology->core[cpu] : cpu))
			lcores[count++] = (uint16_t)cpu;
	return true;
}

static void keep_node(const struct mtlshm_topology *topology, uint32_t node, struct mtlshm_cpuset *set)
{
	uint32_t cpu;

	for_each_cpu(cpu, set, topology->cpus)
		if (topology->node[cpu] != node)
			cpuset_remove(set, cpu);
}

/* Those of `free` that share a core with one of `others`. */
static void find_siblings(const struct mtlshm_topology *topology, const struct mtlshm_cpuset *free,
			  const struct mtlshm_cpuset *others, struct mtlshm_cpuset *siblings)
{
	struct mtlshm_cpuset held, cores = none;
	uint32_t cpu;

	*siblings = none;
	cpuset_and(&held, others, &topology->online);
	for_each_cpu(cpu, &held, topology->cpus)
		cpuset_add(&cores, topology->core[cpu]);
	for_each_cpu(cpu, free, topology->cpus)
		if (cpuset_has(&cores, topology->core[cpu]))
			cpuset_add(siblings, cpu);
}

/* What comes last, from the least to the most unwelcome. */
enum { SIBLINGS, HOUSEKEEPING, OTHER_NODES, FIRST, UNWELCOME };

static void find_unwelcome(const struct mtlshm_topology *topology, const struct mtlshm_want *want,
			   const struct mtlshm_cpuset *free, const struct mtlshm_cpuset *others,
			   struct mtlshm_cpuset unwelcome[UNWELCOME])
{
	struct mtlshm_cpuset here = *free;

	find_siblings(topology, free, others, &unwelcome[SIBLINGS]);
	unwelcome[HOUSEKEEPING] = none;
	if (!cpuset_empty(&topology->isolated))
		cpuset_andnot(&unwelcome[HOUSEKEEPING], free, &topology->isolated);
	unwelcome[OTHER_NODES] = none;
	if (want->numa_node != MTLSHM_ANY_NODE) {
		keep_node(topology, (uint32_t)want->numa_node, &here);
		cpuset_andnot(&unwelcome[OTHER_NODES], free, &here);
	}
	unwelcome[FIRST] = none;
	cpuset_add(&unwelcome[FIRST], 0);
}

int place(const struct mtlshm_topology *topology, const struct mtlshm_want *want, const struct mtlshm_cpuset *allowed,
	  const struct mtlshm_cpuset *busy, const struct mtlshm_cpuset *others, uint16_t *lcores)
{
	struct mtlshm_cpuset usable, free, best, unwelcome[UNWELCOME];
	struct choice choice;

	if (!want->count || want->smt >= MTLSHM_SMT_POLICIES || want->near > 1)
		return -EINVAL;
	cpuset_and(&usable, allowed, &topology->online);
	if (want->numa_node != MTLSHM_ANY_NODE) {
		if (want->numa_node < 0 || !cpuset_has(&topology->nodes, (uint32_t)want->numa_node))
			return -ENXIO;
		if (!want->near)
			keep_node(topology, (uint32_t)want->numa_node, &usable);
	}
	cpuset_andnot(&free, &usable, busy);
	find_unwelcome(topology, want, &free, others, unwelcome);
	for (int accepted = 0; accepted <= UNWELCOME; accepted++) {
		best = free;
		for (int kind = accepted; kind < UNWELCOME; kind++)
			cpuset_andnot(&best, &best, &unwelcome[kind]);
		if (choose(&choice, topology, want, &best, busy, lcores))
			return 0;
	}
	return begin(&choice, topology, want, &usable, &none) ? -EBUSY : -ERANGE;
}
