/* SPDX-License-Identifier: BSD-3-Clause
 *
 * An instance's handle: the facts that this process keeps of an instance.
 */
#ifndef MTLSHM_HANDLE_H
#define MTLSHM_HANDLE_H

#include <errno.h>
#include <stdbool.h>

#include "life.h"
#include "mtlshm.h"

struct mtlshm_instance {
	uint64_t owner;   /* 0 once unregistered; atomic */
	uint64_t process; /* life_process() of the registrant */
	struct mtlshm_host *host;
	uint64_t lease;               /* what a claim expects in a word, and a release leaves there: see lease_of() */
	struct mtlshm_record *record; /* in the table */
	bool proxied;
	bool cpus_given;
	bool quiet;                /* no event says that it ends */
	struct mtlshm_cpuset cpus; /* may be claimed; words are atomic */
	uint64_t usual_type;       /* of the lcore released last, as a guess; atomic */
	void *pin;
};

/* Make one, of no owner yet. `cpus` NULL: those of the affinity mask. NULL: out of memory. */
struct mtlshm_instance *handle_new(struct mtlshm_host *host, const struct mtlshm_cpuset *cpus);

/* The end of each way to a handle: store it in *result, or free it if `rc` is an error. Returns rc. */
int handle_finish(struct mtlshm_instance **result, struct mtlshm_instance *instance, int rc);

/* The owner, or 0 and the reason in *error: -EBADF or -ECHILD. On the path of every claim, so no more than a few loads. */
static inline uint64_t handle_owner(const struct mtlshm_instance *instance, int *error)
{
	uint64_t owner = instance ? __atomic_load_n(&instance->owner, __ATOMIC_RELAXED) : 0;

	if (__builtin_expect(!owner || instance->process != life_process(), 0)) {
		*error = instance && instance->process != life_process() ? -ECHILD : -EBADF;
		return 0;
	}
	return owner;
}

/* May it claim this one? On the path of every claim; another thread may be in handle_refresh(). */
static inline bool handle_may(const struct mtlshm_instance *instance, uint32_t lcore)
{
	return lcore < MTLSHM_LCORES &&
	       (__atomic_load_n(&instance->cpus.bits[lcore / 64], __ATOMIC_RELAXED) >> (lcore % 64) & 1);
}

/* Count what it has claimed or given back: relaxed, and no locked instruction, which would cost a third of a claim. The
 * line is the owner's own, so this is a store to its first cache. */
static inline void handle_count(uint64_t *count, uint64_t by)
{
	__atomic_store_n(count, __atomic_load_n(count, __ATOMIC_RELAXED) + by, __ATOMIC_RELAXED);
}

/* What the caller may claim by policy: the CPUs given, or the calling thread's affinity mask. */
int handle_cpus(const struct mtlshm_instance *instance, struct mtlshm_cpuset *cpus);

/* For single claims: look up the affinity mask again, unless the CPUs were given. Returns 0 or a negative errno. */
int handle_refresh(struct mtlshm_instance *instance);

#endif
