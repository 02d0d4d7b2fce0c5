/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What the benchmark programs share. Each measures a subject and its baseline by turns and prints a line a turn,
 * "SUBJECT BASELINE"; what becomes of the numbers is the Python side's.
 */
#ifndef MTLSHM_BENCH_H
#define MTLSHM_BENCH_H

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#include "mtlshm.h"

#define CHECK(what)                                                                                   \
	do {                                                                                          \
		if (!(what)) {                                                                        \
			fprintf(stderr, "%s:%d: not so: %s (errno: %s)\n", __FILE__, __LINE__, #what, \
				strerror(errno));                                                     \
			exit(1);                                                                      \
		}                                                                                     \
	} while (0)

static inline int64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * INT64_C(1000000000) + t.tv_nsec;
}

/* The n-th CPU that this process may use; the last, if there are fewer. */
static inline int nth_cpu(int n)
{
	cpu_set_t allowed;
	int found = 0;

	CHECK(sched_getaffinity(0, sizeof allowed, &allowed) == 0);
	for (int cpu = 0; cpu < CPU_SETSIZE && n >= 0; cpu++) {
		if (CPU_ISSET(cpu, &allowed)) {
			found = cpu;
			n--;
		}
	}
	return found;
}

static inline void pin(int cpu)
{
	cpu_set_t one;

	CPU_ZERO(&one);
	CPU_SET(cpu, &one);
	CHECK(sched_setaffinity(0, sizeof one, &one) == 0);
}

/* A child that does not outlive us, whatever becomes of us. */
static inline pid_t fork_bound(void)
{
	pid_t parent = getpid(), child = fork();

	CHECK(child >= 0);
	if (child == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (getppid() != parent)
			_exit(1);
	}
	return child;
}

/* An instance that may claim every CPU of the made-up machine: this one has not so many. */
static inline struct mtlshm_instance *join(const char *path, const char *sysfs)
{
	struct mtlshm_cpuset all;
	struct mtlshm_identity identity = {.label = "bench", .cpus = &all};
	struct mtlshm_instance *me;
	struct mtlshm_host *host;
	int error;

	memset(&all, 0xff, sizeof all);
	if ((error = mtlshm_open(&host, path, MTLSHM_CREATE, sysfs)) ||
	    (error = mtlshm_register(&me, host, &identity))) {
		fprintf(stderr, "%s: %s\n", path, mtlshm_strerror(error));
		exit(1);
	}
	return me;
}

/* The table as it lies in the file, for baselines and observers: the library hands out no pointer to it. */
static inline struct mtlshm_segment *map_table(const char *path)
{
	int fd = open(path, O_RDWR | O_CLOEXEC);
	struct mtlshm_segment *table;

	CHECK(fd >= 0);
	table = mmap(NULL, sizeof *table, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	CHECK(table != MAP_FAILED);
	close(fd);
	return table;
}

/* What a claim and a release come down to. */
static inline int bare_claim(uint64_t *word, uint64_t token)
{
	uint64_t expected = 0;

	return __atomic_compare_exchange_n(word, &expected, token, 0, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED);
}

static inline int bare_release(uint64_t *word, uint64_t token)
{
	return __atomic_compare_exchange_n(word, &token, 0, 0, __ATOMIC_RELEASE, __ATOMIC_RELAXED);
}

/* server.c: a table behind a socket, the way to do it without shared memory. */
enum { MESSAGE = 118 }; /* bytes; what libmtl sends its manager, and gets back */

pid_t server_start(const char *path, int cpu); /* cpu < 0: anywhere */
int server_connect(const char *path);
int server_claim(int fd, uint8_t lcore);
int server_release(int fd, uint8_t lcore);

/* client.c: libmtl's side of the manager socket. What is refused ends the program. */
int manager_connect(const char *path); /* and REGISTER */
void manager_get(int fd, uint16_t lcore);
void manager_put(int fd, uint16_t lcore);

#endif
