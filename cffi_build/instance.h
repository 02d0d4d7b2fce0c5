/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef MTLSHM_INSTANCE_H
#define MTLSHM_INSTANCE_H

#include <errno.h>
#include <stdbool.h>

#include "life.h"
#include "mtlshm.h"

struct mtlshm_instance {
	uint64_t owner;            /* 0 once unregistered; atomic */
	uint64_t process;          /* life_process() of the registrant */
	struct mtlshm_host *host;
	uint64_t lease;            /* what a claim expects in a word, and a release leaves there: see lease_of() */
	bool proxied;
	bool cpus_given;
	struct mtlshm_cpuset cpus; /* may be claimed; words are atomic */
	uint64_t usual_type;       /* of the lcore released last, as a guess; atomic */
	void *pin;
};

/* The owner, or 0 and why not in *error. On the path of every claim, so no more than a few loads. */
static inline uint64_t instance_owner(const struct mtlshm_instance *instance, int *error)
{
	uint64_t owner = instance ? __atomic_load_n(&instance->owner, __ATOMIC_RELAXED) : 0;

	if (__builtin_expect(!owner || instance->process != life_process(), 0)) {
		*error = instance && instance->process != life_process() ? -ECHILD : -EBADF;
		return 0;
	}
	return owner;
}

/* May it claim this one? On the path of every claim; another thread may be in instance_refresh(). */
static inline bool instance_may(const struct mtlshm_instance *instance, uint32_t lcore)
{
	return lcore < MTLSHM_LCORES &&
	       (__atomic_load_n(&instance->cpus.bits[lcore / 64], __ATOMIC_RELAXED) >> (lcore % 64) & 1);
}
/* For reservations, which begin as an instance of a process and become one of nobody. `key` is not empty. */
int instance_reserve(struct mtlshm_instance **instance, struct mtlshm_host *host, const char *key, const char *label,
		     const struct mtlshm_cpuset *cpus);

/* The instance is a reservation from here on, whatever becomes of the process; its handle can only be freed. */
void instance_settle(struct mtlshm_instance *instance);

/* What the caller may claim by policy: the CPUs given, or the calling thread's affinity mask. */
int instance_cpus(const struct mtlshm_instance *instance, struct mtlshm_cpuset *cpus);

/* For single claims: look up the affinity mask again, unless the CPUs were given. Returns 0 or a negative errno. */
int instance_refresh(struct mtlshm_instance *instance);

#endif
