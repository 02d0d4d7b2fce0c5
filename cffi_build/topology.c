/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The host's CPUs, from sysfs.
 *
 * What the kernel shows and what it does not:
 *   - possible, online: always there. possible may have holes and is fixed at boot; online changes.
 *   - isolated (Linux 4.2): missing before; an empty line where nothing is isolated.
 *   - cpuN/topology and cpuN/cache are removed while cpuN is offline, and cpuN is missing from its siblings'
 *     lists and from its node's cpulist then. So all of these speak of online CPUs only, and the same core
 *     can have two siblings today and one tomorrow.
 *   - a CPU may go offline while we read: its files are gone (ENOENT) or refuse to be read (ENODEV). It is
 *     described as if the kernel knew nothing of it.
 *   - Virtual machines, containers and small boards leave out any of cache, topology and node.
 *
 * WHAT A CONTAINER SHOWS is not the kernel's word: lxcfs renumbers `online`, sandboxes have no sysfs at all, and files may be
 * forbidden or hold anything. A thread's affinity mask is the kernel's: its numbers are the host's and its CPUs are online.
 * So of this host the CPUs in the caller's mask are online, and what sysfs fails to tell is made up harmlessly, to the point
 * that all is one node and one cache and each CPU a core of its own. A directory that is named instead of /sys describes
 * another machine, about which the mask knows nothing; there, an error is an error.
 *
 * Siblings agree on their lists, so one of them is asked for all: 1,024 CPUs cost some 1,000 files instead
 * of 10,000.
 */
#include "topology.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "cpuset.h"
#include "failure.h"
#include "mtlshm.h"
#include "sysfs.h"

#define SYSFS "/sys"
#define POSSIBLE "devices/system/cpu/possible"
#define ONLINE "devices/system/cpu/online"

/* Machines have up to five: instructions and data at level 1, then one a level. */
#define CACHE_INDEXES 16
/* CPUs that sched_getaffinity() can tell us about: four times the highest NR_CPUS of any architecture. */
#define AFFINITY_CPUS 32768

/* For callers that go on without the file: its failure is not reported then. */
static bool forgotten(bool tolerable)
{
	if (tolerable)
		failure_forget();
	return tolerable;
}

/* Not an error: the kernel does not know it, or not any more. */
static bool is_missing(int rc)
{
	return forgotten(rc == -ENOENT || rc == -ENODEV);
}

/* Does the failure say something about sysfs, and nothing about us? */
static bool is_unknown(int rc)
{
	return forgotten(rc && rc != -EMFILE && rc != -ENFILE && rc != -ENOMEM);
}

static int open_directory(int directory, const char *path)
{
	int fd = openat(directory, path, O_PATH | O_DIRECTORY | O_CLOEXEC);

	return fd < 0 ? failure("open", path) : fd;
}

/* The SMT siblings of an online CPU, itself included. */
static int read_siblings(int directory, uint32_t cpu, struct mtlshm_cpuset *siblings)
{
	char path[64];
	int rc;

	snprintf(path, sizeof(path), "cpu%u/topology/core_cpus_list", cpu);
	rc = sysfs_list(directory, path, siblings);
	if (is_missing(rc)) { /* its name before Linux 5.3 */
		snprintf(path, sizeof(path), "cpu%u/topology/thread_siblings_list", cpu);
		rc = sysfs_list(directory, path, siblings);
	}
	return rc;
}

/* 0 where unknown: the kernel says -1 then, and firmware of arm64 may give any 31-bit number. */
static int read_package(int directory, uint32_t cpu, uint16_t *package)
{
	char path[64];
	int32_t number;
	int rc;

	*package = 0;
	snprintf(path, sizeof(path), "cpu%u/topology/physical_package_id", cpu);
	rc = sysfs_number(directory, path, &number);
	if (!rc && number >= 0 && number <= UINT16_MAX)
		*package = (uint16_t)number;
	return is_missing(rc) ? 0 : rc;
}

/* The online CPUs that share the last-level cache of this one; -ENOENT if the kernel knows no caches. */
static int read_sharers(int directory, uint32_t cpu, struct mtlshm_cpuset *sharers)
{
	int32_t level = 0, last_level = 0;
	int rc, type, index = -1;
	char path[64];

	for (int i = 0; i < CACHE_INDEXES; i++) {
		snprintf(path, sizeof(path), "cpu%u/cache/index%d/level", cpu, i);
		rc = sysfs_number(directory, path, &level);
		if (is_missing(rc))
			break;
		if (rc)
			return rc;
		if (level <= last_level)
			continue;
		snprintf(path, sizeof(path), "cpu%u/cache/index%d/type", cpu, i);
		rc = sysfs_first(directory, path, &type);
		if (rc && !is_missing(rc))
			return rc;
		if (!rc && type == 'I') /* Data, Instruction, Unified */
			continue;
		last_level = level;
		index = i;
	}
	if (index < 0)
		return -ENOENT;
	snprintf(path, sizeof(path), "cpu%u/cache/index%d/shared_cpu_list", cpu, index);
	return sysfs_list(directory, path, sharers);
}

/* Name the members of a group that have no name yet after `cpu`, the lowest of them. */
static void name_group(const struct mtlshm_topology *topology, uint16_t *names, uint32_t cpu,
		       struct mtlshm_cpuset *members, struct mtlshm_cpuset *named)
{
	uint32_t member;

	cpuset_and(members, members, &topology->online);
	cpuset_andnot(members, members, named);
	cpuset_add(members, cpu); /* it may have left its own list just now */
	cpuset_for_each(member, members) {
		names[member] = (uint16_t)cpu;
		cpuset_add(named, member);
	}
}

static int read_core(struct mtlshm_topology *topology, int directory, uint32_t cpu, struct mtlshm_cpuset *named)
{
	struct mtlshm_cpuset siblings = {0};
	uint16_t package;
	uint32_t sibling;
	int rc = read_siblings(directory, cpu, &siblings);

	if (rc && !is_missing(rc))
		return rc;
	rc = read_package(directory, cpu, &package);
	if (rc)
		return rc;
	name_group(topology, topology->core, cpu, &siblings, named);
	cpuset_for_each(sibling, &siblings)
		topology->package[sibling] = package;
	return 0;
}

/* CPUs of whose caches nothing is known: all those of a package share one. */
static void invent_caches(struct mtlshm_topology *topology, const struct mtlshm_cpuset *unknown)
{
	uint32_t cpu, first;

	cpuset_for_each(cpu, unknown) {
		cpuset_for_each(first, unknown) {
			if (topology->package[first] == topology->package[cpu])
				break;
		}
		topology->llc[cpu] = (uint16_t)first;
	}
}

static int read_cores_and_caches(struct mtlshm_topology *topology, int directory)
{
	struct mtlshm_cpuset in_core = {0}, in_cache = {0}, unknown = {0}, sharers;
	uint32_t cpu;
	int rc;

	cpuset_for_each(cpu, &topology->online) {
		if (!cpuset_has(&in_core, cpu)) {
			rc = read_core(topology, directory, cpu, &in_core);
			if (rc)
				return rc;
		}
		if (!cpuset_has(&in_cache, cpu)) {
			rc = read_sharers(directory, cpu, &sharers);
			if (!rc)
				name_group(topology, topology->llc, cpu, &sharers, &in_cache);
			else if (is_missing(rc))
				cpuset_add(&unknown, cpu);
			else
				return rc;
		}
	}
	invent_caches(topology, &unknown);
	return 0;
}

/* CPUs of no node are on node 0, as on a kernel without NUMA, where the directory is missing. */
static int read_nodes(struct mtlshm_topology *topology, int root)
{
	struct mtlshm_cpuset nodes, cpus;
	uint32_t node, cpu;
	char path[64];
	int rc = sysfs_list(root, "devices/system/node/online", &nodes);

	if (is_missing(rc))
		memset(&nodes, 0, sizeof(nodes));
	else if (rc)
		return rc;
	cpuset_for_each(node, &nodes) {
		snprintf(path, sizeof(path), "devices/system/node/node%u/cpulist", node);
		rc = sysfs_list(root, path, &cpus);
		if (is_missing(rc))
			continue;
		if (rc)
			return rc;
		cpuset_and(&cpus, &cpus, &topology->online);
		cpuset_for_each(cpu, &cpus)
			topology->node[cpu] = (uint16_t)node;
	}
	cpuset_for_each(cpu, &topology->online)
		cpuset_add(&topology->nodes, topology->node[cpu]);
	return 0;
}

static int read_possible(int root, struct mtlshm_cpuset *possible, uint32_t *cpus)
{
	uint32_t cpu;
	int rc = sysfs_list(root, POSSIBLE, possible);

	if (rc)
		return rc;
	*cpus = 0;
	cpuset_for_each(cpu, possible)
		*cpus = cpu + 1;
	return *cpus ? 0 : failure_is(-EBADMSG, POSSIBLE, "names no CPU: is something mounted over it?");
}

/* Which CPUs there are. */
static int read_cpus(struct mtlshm_topology *topology, int root)
{
	int rc = read_possible(root, &topology->possible, &topology->cpus);

	if (!rc)
		rc = sysfs_list(root, ONLINE, &topology->online);
	cpuset_and(&topology->online, &topology->online, &topology->possible);
	return rc;
}

/* What they share. */
static int read_structure(struct mtlshm_topology *topology, int root)
{
	int directory, rc = sysfs_list(root, "devices/system/cpu/isolated", &topology->isolated);

	if (rc && !is_missing(rc))
		return rc;
	directory = open_directory(root, "devices/system/cpu");
	if (directory < 0)
		return directory;
	rc = read_cores_and_caches(topology, directory);
	close(directory);
	if (rc)
		failure_below("devices/system/cpu");
	return rc ? rc : read_nodes(topology, root);
}

/* Of a machine that `root` describes. */
static int read_machine(struct mtlshm_topology *topology, int root)
{
	int rc;

	memset(topology, 0, sizeof(*topology));
	rc = read_cpus(topology, root);
	return rc ? rc : read_structure(topology, root);
}

/* These CPUs share one node, one cache and nothing else. */
static void make_up(struct mtlshm_topology *topology)
{
	uint32_t cpu, first = cpuset_next(&topology->online, 0);

	cpuset_for_each(cpu, &topology->online) {
		topology->core[cpu] = (uint16_t)cpu;
		topology->llc[cpu] = (uint16_t)first;
	}
	cpuset_add(&topology->nodes, 0);
}

static void add_cpus(struct mtlshm_topology *topology, const struct mtlshm_cpuset *cpus)
{
	uint32_t cpu;

	cpuset_or(&topology->possible, &topology->possible, cpus);
	cpuset_or(&topology->online, &topology->online, cpus);
	cpuset_for_each(cpu, &topology->possible)
		topology->cpus = cpu + 1;
}

/* Of this host. `root` may be no descriptor: then every read fails. */
static int read_host(struct mtlshm_topology *topology, int root, const struct mtlshm_cpuset *mine)
{
	static const struct mtlshm_topology nothing;
	struct mtlshm_cpuset possible, online;
	int rc;

	*topology = nothing;
	rc = read_cpus(topology, root);
	if (is_unknown(rc))
		*topology = nothing;
	else if (rc)
		return rc;
	add_cpus(topology, mine);
	possible = topology->possible;
	online = topology->online;
	rc = read_structure(topology, root);
	if (!is_unknown(rc))
		return rc;
	*topology = nothing;
	add_cpus(topology, &possible);
	topology->online = online;
	make_up(topology);
	return 0;
}

/* open(), read() and close() are cancellation points; a cancelled thread would leave a descriptor behind. */
static int root_enter(const char *sysfs, int *cancel_state)
{
	int root;

	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, cancel_state);
	root = open_directory(AT_FDCWD, sysfs ? sysfs : SYSFS);
	if (root < 0)
		pthread_setcancelstate(*cancel_state, NULL);
	return root;
}

static int root_leave(const char *sysfs, int root, int cancel_state, int rc)
{
	if (rc)
		failure_below(sysfs ? sysfs : SYSFS);
	close(root);
	pthread_setcancelstate(cancel_state, NULL);
	return rc;
}

int topology_read(struct mtlshm_topology *topology, const char *sysfs, const struct mtlshm_cpuset *mine)
{
	int cancel_state, root = root_enter(sysfs, &cancel_state);

	if (root >= 0)
		return root_leave(sysfs, root, cancel_state,
				  sysfs ? read_machine(topology, root) : read_host(topology, root, mine));
	return sysfs || !is_unknown(root) ? root : read_host(topology, -1, mine);
}

int mtlshm_topology_read(struct mtlshm_topology *topology, const char *sysfs)
{
	struct mtlshm_cpuset mine = {0};
	int rc;

	failure_forget();
	rc = sysfs ? 0 : mtlshm_affinity(&mine);
	return rc ? rc : topology_read(topology, sysfs, &mine);
}

int topology_possible(const char *sysfs, uint32_t *cpus)
{
	struct mtlshm_cpuset possible, mine = {0};
	int cancel_state, root = root_enter(sysfs, &cancel_state), rc = root;
	uint32_t cpu;

	if (root >= 0)
		rc = root_leave(sysfs, root, cancel_state, read_possible(root, &possible, cpus));
	if (sysfs || (rc && !is_unknown(rc)))
		return rc;
	if (rc)
		*cpus = MTLSHM_LCORES;
	rc = mtlshm_affinity(&mine);
	if (rc)
		return rc;
	cpuset_for_each(cpu, &mine)
		if (cpu >= *cpus)
			*cpus = cpu + 1;
	return 0;
}

int topology_online(const char *sysfs, struct mtlshm_cpuset *online)
{
	int cancel_state, root = root_enter(sysfs, &cancel_state), rc = root;

	if (root >= 0)
		rc = root_leave(sysfs, root, cancel_state, sysfs_list(root, ONLINE, online));
	if (sysfs || !is_unknown(rc))
		return rc;
	*online = (struct mtlshm_cpuset){0};
	return 0;
}

void topology_keep_node(const struct mtlshm_topology *topology, uint32_t node, struct mtlshm_cpuset *set)
{
	uint32_t cpu;

	cpuset_for_each(cpu, set)
		if (topology->node[cpu] != node)
			cpuset_remove(set, cpu);
}

/* The kernel keeps a thread's mask inside its cpuset (cpuset(7)) and shows of it only CPUs that are up
 * (sched_getaffinity() in kernel/sched: mask & cpu_active_mask), so nothing else needs to be asked. It wants
 * room for every possible CPU, else EINVAL, and says how many bytes it wrote. The raw call tells us that;
 * glibc's wrapper would clear the rest of the buffer at each call. */
int mtlshm_affinity(struct mtlshm_cpuset *cpus)
{
	unsigned long mask[AFFINITY_CPUS / 8 / sizeof(unsigned long)];
	long length = syscall(SYS_sched_getaffinity, 0, sizeof(mask), mask);

	if (length < 0)
		return failure("read the affinity mask", "");
	memset(cpus, 0, sizeof(*cpus));
	memcpy(cpus, mask, (size_t)length < sizeof(*cpus) ? (size_t)length : sizeof(*cpus));
	return 0;
}
