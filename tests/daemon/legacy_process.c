/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A process without a manager, as far as others see it in libmtl's legacy table: it does to that table what libmtl does,
 * when a test tells it.
 *
 *     legacy_process KEY LOCKFILE
 *
 * Commands come on standard input, one a line; each is answered with a number, a negative errno if it failed. See class
 * Puppet in tools/lab/processes.py.
 */
#include <errno.h>
#include <pthread.h>
#include <pwd.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/shm.h>
#include <unistd.h>

#include "../../tools/proof/legacy_table.h"

/* Seconds after which it ends by itself, should the test be gone. */
#define LIFETIME 36000

static key_t key;
static const char *lock_path;
static struct table *table;
static int id = -1;
static int held_lock = -1;
static struct entry myself;

static int lock(void)
{
	int fd = legacy_lock(lock_path);

	if (fd < 0)
		abort();
	return fd;
}

/* With the lock dropped by the close, or before it. */
static void unlock(int fd)
{
	if (fd % 2)
		flock(fd, LOCK_UN);
	close(fd);
}

static void look_at_myself(void)
{
	struct passwd *user = getpwuid(getuid());

	gethostname(myself.hostname, sizeof(myself.hostname) - 1);
	snprintf(myself.user, sizeof(myself.user), "%s", user ? user->pw_name : "nobody");
	snprintf(myself.comm, sizeof(myself.comm), "%s", "legacy_process");
	myself.pid = getpid();
}

static long attach(void)
{
	look_at_myself();
	return legacy_attach(&table, &id, key);
}

/* FIRST LAST TYPE: the first lcore that is not active, of those from FIRST to LAST. Returns it. */
static long claim(long first, long last, long type)
{
	myself.type = (int)type;
	for (long i = first; i <= last && i < RTE_MAX_LCORE; i++)
		if (legacy_claim(table, (uint32_t)i, &myself))
			return i;
	return -ENOSPC;
}

static long release(long lcore)
{
	if (lcore < 0 || lcore >= RTE_MAX_LCORE)
		return -EINVAL;
	if (!table->entries[lcore].active)
		return -EIO;
	legacy_release(table, (uint32_t)lcore);
	return 0;
}

static void *obey(void *unused);

static int be_there(void *unused)
{
	alarm(LIFETIME);
	for (;;)
		pause();
	return unused != NULL;
}

static int hidden; /* from those who look where the table is attached; atomic */

static int linger(void *unused)
{
	close(STDIN_FILENO);
	close(STDOUT_FILENO);
	alarm(LIFETIME);
	if (unshare(CLONE_NEWIPC))
		return 1;
	__atomic_store_n(&hidden, 1, __ATOMIC_SEQ_CST);
	for (;;)
		pause();
	return unused != NULL;
}

static long run(char *line)
{
	char *words[5] = {0}, *rest = line;
	long numbers[5] = {0}, result;
	int fd;

	for (int i = 0; i < 5 && (words[i] = strtok_r(rest, " ", &rest)); i++)
		numbers[i] = strtol(words[i], NULL, 0);
	if (!strcmp(words[0], "leave_main")) { /* the process goes on in another thread */
		pthread_t thread;

		if (pthread_create(&thread, NULL, obey, NULL))
			abort();
		pthread_exit(NULL);
	}
	if (!strcmp(words[0], "take_lock")) {
		held_lock = lock();
		return 0;
	}
	if (!strcmp(words[0], "give_lock")) {
		unlock(held_lock);
		return 0;
	}
	if (!strcmp(words[0], "fork_child")) { /* a child that does nothing but be there. Returns its pid */
		pid_t child = fork();

		if (!child) {
			close(STDIN_FILENO);
			close(STDOUT_FILENO);
			for (;;)
				pause();
		}
		return child;
	}
	if (!strcmp(words[0], "share_memory")) {
		/* Two processes, one memory, and so one attachment. Returns the pid of the other, which ends with us. */
		static char stack[65536] __attribute__((aligned(16)));

		return clone(be_there, stack + sizeof(stack), CLONE_VM, NULL);
	}
	if (!strcmp(words[0], "keep_memory")) {
		/* Our memory outlasts us, as that of a large process does for a while. Returns the pid of who keeps it. */
		static char stack[65536] __attribute__((aligned(16)));
		pid_t keeper = clone(linger, stack + sizeof(stack), CLONE_VM, NULL);

		while (!__atomic_load_n(&hidden, __ATOMIC_SEQ_CST))
			sched_yield();
		return keeper;
	}
	if (!strcmp(words[0], "next_pid")) { /* in its PID namespace */
		FILE *file = fopen("/proc/sys/kernel/ns_last_pid", "w");

		if (!file || fprintf(file, "%ld", numbers[1] - 1) < 0 || fclose(file))
			return -errno;
		return 0;
	}
	if (!strcmp(words[0], "active")) /* LCORE: is it, in the table? */
		return table->entries[numbers[1]].active;
	if (!strcmp(words[0], "reserved")) /* LCORE: is it active, and will no process take it for one of its own? */
		return table->entries[numbers[1]].active && table->entries[numbers[1]].hostname[0] == '[';

	fd = lock();
	if (!strcmp(words[0], "attach"))
		result = attach();
	else if (!strcmp(words[0], "detach"))
		result = legacy_detach(table, id);
	else if (!strcmp(words[0], "claim"))
		result = claim(numbers[1], words[2] ? numbers[2] : RTE_MAX_LCORE - 1, numbers[3]);
	else if (!strcmp(words[0], "release"))
		result = release(numbers[1]);
	else if (!strcmp(words[0], "wipe")) /* as if nobody had been attached when somebody came */
		memset(table, 0, sizeof(*table)), result = 0;
	else if (!strcmp(words[0], "remove")) /* as an administrator does with ipcrm */
		result = shmctl(id, IPC_RMID, NULL);
	else
		abort();
	unlock(fd);
	return result;
}

static void *obey(void *unused)
{
	char line[256];

	for (;;) {
		size_t length = 0;

		/* Byte by byte, so that what was not read yet is there for another thread. */
		while (length < sizeof(line) - 1 && read(STDIN_FILENO, &line[length], 1) == 1 && line[length] != '\n')
			length++;
		if (!length)
			exit(0);
		line[length] = '\0';
		dprintf(STDOUT_FILENO, "%ld\n", run(line));
	}
	return unused;
}

int main(int argc, char **argv)
{
	if (argc != 3)
		return 2;
	key = (key_t)strtol(argv[1], NULL, 0);
	lock_path = argv[2];
	alarm(LIFETIME);
	obey(NULL);
	return 0;
}
