/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What a puppet has, and how its commands are written: a function for each, in a table for each of the things they are
 * about.
 */
#ifndef PUPPET_H
#define PUPPET_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "mtlshm.h"

/* Seconds after which a puppet ends by itself, should the test be gone. */
#define LIFETIME 36000
/* Those who come and go claim of the first so many lcores. */
#define LCORES 64

struct puppet {
	const char *path, *sysfs;
	struct mtlshm_host *host;
	struct mtlshm_instance *instances[2 * MTLSHM_INSTANCES], *me; /* the last of them */
	int count;
};

extern struct puppet puppet;

struct command {
	const char *name;
	long (*function)(char **words); /* words[0] is the command; after the last there are NULLs */
};

/* Each up to one that has no name. */
extern const struct command library_commands[], process_commands[], semaphore_commands[], churn_commands[],
	damage_commands[];

/* Do what is read and answer it, until there is no more to read; then the process ends. For a thread to start with. */
void *obey(void *unused);

/* Of a word, which may be missing: then 0. */
long number(const char *word);

void answer(long long value);

/* Become an instance, which acts from now on. */
int become_instance(const char *label, uint32_t kind, const struct mtlshm_cpuset *cpus);

#define EXPECT(what)                                                                                            \
	do {                                                                                                    \
		if (!(what)) {                                                                                  \
			fprintf(stderr, "puppet %d, %s:%d: not so: %s\n", getpid(), __FILE__, __LINE__, #what); \
			abort();                                                                                \
		}                                                                                               \
	} while (0)

#endif
