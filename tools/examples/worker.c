/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A media process in C: claims one given lcore, moves there, and works until it is told to stop.
 *
 *     cc worker.c $(pkg-config --cflags --libs mtlshm) -o worker && ./worker 3
 */
#define _GNU_SOURCE 1 /* CPU_SET() */
#include <mtlshm.h>

#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>

static volatile sig_atomic_t stopped;

static void stop(int signal)
{
	(void)signal;
	stopped = 1;
}

static void check(int result, const char *what)
{
	const char *why = result < 0 ? mtlshm_failure(result) : NULL;

	if (result >= 0)
		return;
	fprintf(stderr, "worker: %s: %s\n", what, why ? why : mtlshm_strerror(result));
	exit(1);
}

int main(int argc, char **argv)
{
	struct mtlshm_identity identity = {.label = "worker in C"};
	struct mtlshm_instance *me;
	struct mtlshm_host *host;
	unsigned long frames = 0;
	cpu_set_t here;
	int lcore;

	if (argc != 2) {
		fprintf(stderr, "usage: worker LCORE\n");
		return 2;
	}
	lcore = atoi(argv[1]);
	signal(SIGTERM, stop);
	signal(SIGINT, stop);

	check(mtlshm_open(&host, NULL, MTLSHM_CREATE, NULL), "open");
	check(mtlshm_register(&me, host, &identity), "register");
	check(mtlshm_claim(me, (uint32_t)lcore, MTLSHM_LCORE_APP), "claim");

	CPU_ZERO(&here);
	CPU_SET(lcore, &here);
	sched_setaffinity(0, sizeof(here), &here);
	printf("worker in C: at work on lcore %d\n", lcore);
	fflush(stdout);
	while (!stopped)
		frames++; /* as a poll-mode driver spins */

	mtlshm_instance_free(me); /* releases the lcore; so would death */
	mtlshm_close(host);
	printf("worker in C: stopped after %lu rounds\n", frames);
	return 0;
}
