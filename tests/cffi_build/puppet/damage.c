/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A table that is taken away or overwritten under those who use it, and what becomes of them.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "puppet.h"

static int times_handled;
static void *table;
static int taken_for_ours;

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

/* In place of munmap(2) of the table: the moment after, when anything may be mapped there and be cut short. */
static void on_munmap(int signal)
{
	(void)signal;
	taken_for_ours = mtlshm_fault(table);
}

/* Close the segment. Would a SIGBUS of what is mapped in place of the table from then on be taken for one of the table? */
static long do_close_and_fault(char **words)
{
	const struct sigaction action = {.sa_handler = on_munmap};
	struct sock_filter filter[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_munmap, 0, 3),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[1])),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, sizeof(struct mtlshm_segment), 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	const struct sock_fprog program = {sizeof(filter) / sizeof(filter[0]), filter};
	FILE *maps = fopen("/proc/self/maps", "re");
	char line[PATH_MAX + 100];
	int rc;

	(void)words;
	while (fgets(line, sizeof(line), maps))
		if (strstr(line, puppet.path) && strstr(line, "rw-s"))
			table = (void *)strtoul(line, NULL, 16);
	fclose(maps);
	EXPECT(table);
	sigaction(SIGSYS, &action, NULL);
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program))
		return -errno;
	taken_for_ours = -1;
	rc = mtlshm_close(puppet.host);
	return rc ? rc : taken_for_ours;
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
	{"close_and_fault", do_close_and_fault},
	{0},
};
