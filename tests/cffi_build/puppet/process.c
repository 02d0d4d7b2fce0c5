/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What happens to the process: who it is, what it may do, and how it forks, becomes another and ends.
 */
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "puppet.h"

extern char **environ;

/* Until the test opens the FIFO for writing, and until it closes it. */
static void await_open(const char *fifo)
{
	close(open(fifo, O_RDONLY | O_CLOEXEC));
}

static void await_close(const char *fifo)
{
	int fd = open(fifo, O_RDONLY | O_CLOEXEC);
	char byte;

	while (read(fd, &byte, 1) > 0)
		;
	close(fd);
}

/* UID GID [GROUP] */
static long do_become(char **words)
{
	gid_t group = (gid_t)number(words[3]);

	if (setgroups(words[3] ? 1 : 0, &group) || setgid((gid_t)number(words[2])) || setuid((uid_t)number(words[1])))
		return -errno;
	return 0;
}

static long do_chdir(char **words)
{
	return chdir(words[1]) ? -errno : 0;
}

static long do_umask(char **words)
{
	return (long)umask((mode_t)number(words[1]));
}

/* MASK */
static long do_affinity(char **words)
{
	unsigned long mask = (unsigned long)number(words[1]);

	return syscall(SYS_sched_setaffinity, 0, sizeof(mask), &mask) < 0 ? -errno : 0;
}

static long do_limit_descriptors(char **words)
{
	struct rlimit limit;

	getrlimit(RLIMIT_NOFILE, &limit);
	limit.rlim_cur = (rlim_t)number(words[1]);
	return setrlimit(RLIMIT_NOFILE, &limit) ? -errno : 0;
}

/* BYTES: keep all memory from now on in RAM, as media processes do, and be allowed no more than that. */
static long do_lock_memory(char **words)
{
	const struct rlimit limit = {(rlim_t)number(words[1]), (rlim_t)number(words[1])};

	return setrlimit(RLIMIT_MEMLOCK, &limit) || mlockall(MCL_FUTURE) ? -errno : 0;
}

static long do_closefrom(char **words)
{
	closefrom((int)number(words[1]));
	return 0;
}

static long do_setsid(char **words)
{
	(void)words;
	return setsid();
}

/* FIFO: go on when the test opens it, at the same moment as others that wait there. */
static long do_gate(char **words)
{
	await_open(words[1]);
	return 0;
}

/* PID: the next process in this PID namespace shall have it. */
static long do_next_pid(char **words)
{
	int fd = open("/proc/sys/kernel/ns_last_pid", O_WRONLY | O_CLOEXEC);
	int rc = dprintf(fd, "%ld", number(words[1]) - 1) < 0 ? -errno : 0;

	close(fd);
	return rc;
}

/* COMMANDS ANSWERS: fork. The parent answers with the child's pid; the child is a puppet too, on these two FIFOs, and has
 * answered once already. */
static long do_fork(char **words)
{
	pid_t pid = fork();

	if (pid)
		return pid;
	alarm(LIFETIME);
	if (dup2(open(words[1], O_RDONLY), STDIN_FILENO) < 0 || dup2(open(words[2], O_WRONLY), STDOUT_FILENO) < 0)
		_exit(1);
	return 0;
}

/* FIFO: a child made by vfork() waits there; it shares our memory, and we are stopped meanwhile. */
static long do_vfork(char **words)
{
	if (!vfork()) {
		await_close(words[1]);
		_exit(0);
	}
	return 0;
}

/* FIFO: start a program that waits there. */
static long do_spawn(char **words)
{
	char *const arguments[] = {"cat", words[1], NULL};
	pid_t pid;

	return -posix_spawn(&pid, "/bin/cat", NULL, NULL, arguments, environ);
}

/* A real fault: as PID 1 of a namespace it could not be killed by a SIGSEGV that is sent. */
static long do_fault(char **words)
{
	(void)words;
	*(volatile int *)NULL = 0;
	return 0;
}

/* Without unregistering. */
static long do_exit(char **words)
{
	exit((int)number(words[1]));
}

/* FIFO: become a program that waits there. */
static long do_exec(char **words)
{
	execl("/bin/cat", "cat", words[1], NULL);
	return -errno;
}

/* Go on in another thread, and end the main thread. */
static long do_leave_main(char **words)
{
	pthread_t thread;

	(void)words;
	answer(0);
	pthread_create(&thread, NULL, obey, NULL);
	pthread_exit(NULL);
}

/* From now on the kernel knows no open-file-description locks, as before Linux 3.15. */
static long do_forget_ofd_locks(char **words)
{
#define ARGUMENT(n) offsetof(struct seccomp_data, args[n]) /* its lower half */
	struct sock_filter filter[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_fcntl, 0, 4),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, ARGUMENT(1)),
		BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, F_OFD_GETLK, 0, 2),
		BPF_JUMP(BPF_JMP | BPF_JGT | BPF_K, F_OFD_SETLKW, 1, 0),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EINVAL),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	const struct sock_fprog program = {sizeof(filter) / sizeof(filter[0]), filter};

	(void)words;
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program))
		return -errno;
	return 0;
}

const struct command process_commands[] = {
	{"become", do_become},
	{"chdir", do_chdir},
	{"umask", do_umask},
	{"affinity", do_affinity},
	{"limit_descriptors", do_limit_descriptors},
	{"lock_memory", do_lock_memory},
	{"closefrom", do_closefrom},
	{"setsid", do_setsid},
	{"gate", do_gate},
	{"next_pid", do_next_pid},
	{"fork", do_fork},
	{"vfork", do_vfork},
	{"spawn", do_spawn},
	{"fault", do_fault},
	{"exit", do_exit},
	{"exec", do_exec},
	{"leave_main", do_leave_main},
	{"forget_ofd_locks", do_forget_ofd_locks},
	{0},
};
