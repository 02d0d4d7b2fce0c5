/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A table that is taken away or overwritten under those who use it, and what becomes of them.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "puppet.h"

static int times_handled;

/* A result that no call may have, whatever is done to the segment's bytes. */
static int is_nonsense(int rc)
{
	static const int sensible[] = {EBUSY, EALREADY, EPERM, ETIMEDOUT, ESRCH, EUSERS, ERANGE, ESTALE};

	for (size_t i = 0; i < sizeof(sensible) / sizeof(sensible[0]); i++)
		if (rc == -sensible[i])
			return 0;
	return rc < 0;
}

/* Do everything, over and over, until something gives another error than there may be: that is the answer. With an
 * argument: so many rounds at most, then 0. */
static long do_storm(char **words)
{
	const struct mtlshm_want want = {.count = 3, .numa_node = MTLSHM_ANY_NODE, .timeout_ms = 1};
	static struct mtlshm_instance *other;
	static struct mtlshm_snapshot snapshot;
	long rounds = words[1] ? number(words[1]) : -1;
	uint16_t lcores[3];
	int rc = 0;

	srand((unsigned int)getpid());
	while (rounds--) {
		switch (rand() % 8) {
		case 0: rc = mtlshm_claim(puppet.me, (uint32_t)rand() % LCORES, MTLSHM_LCORE_APP); break;
		case 1: rc = mtlshm_release(puppet.me, (uint32_t)rand() % LCORES); break;
		case 2: rc = mtlshm_claim_many(puppet.me, &want, lcores); break;
		case 3: rc = mtlshm_release_all(puppet.me); break;
		case 4: rc = mtlshm_snapshot(puppet.host, &snapshot); break;
		case 5: rc = mtlshm_sweep(puppet.host); break;
		case 6: rc = mtlshm_alive(puppet.host, mtlshm_owner(puppet.me)); break;
		case 7:
			rc = mtlshm_register(&other, puppet.host, NULL);
			if (!rc)
				mtlshm_instance_free(other);
			break;
		}
		if (is_nonsense(rc))
			return rc;
	}
	return 0;
}

/* FILE: die of it, as a process does whose mapped file is cut short. */
static long do_touch_truncated(char **words)
{
	int fd = open(words[1], O_RDWR);
	volatile char *memory = mmap(NULL, 1, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	EXPECT(!ftruncate(fd, 0));
	return *memory;
}

static long do_die(char **words)
{
	return raise((int)number(words[1]));
}

static void handle(int number, siginfo_t *info, void *unused)
{
	(void)number;
	(void)unused;
	times_handled++;
	if (!mtlshm_fault(info->si_addr))
		_exit(1);
}

/* What an application may do about SIGBUS before it opens a segment. */
static long do_own_handler(char **words)
{
	struct sigaction action = {.sa_sigaction = handle, .sa_flags = SA_SIGINFO};

	(void)words;
	return sigaction(SIGBUS, &action, NULL);
}

static long do_times_handled(char **words)
{
	(void)words;
	return times_handled;
}

const struct command damage_commands[] = {
	{"storm", do_storm},
	{"touch_truncated", do_touch_truncated},
	{"die", do_die},
	{"own_handler", do_own_handler},
	{"times_handled", do_times_handled},
	{0},
};
