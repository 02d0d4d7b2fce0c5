/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The semaphore, as those use it who come to the same place at once.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#include "puppet.h"

/* FILE N: add 1 to the number in the file N times, each time under the semaphore. */
static long do_count(char **words)
{
	volatile long *total;
	int fd = open(words[1], O_RDWR | O_CREAT, 0600);

	EXPECT(!ftruncate(fd, sizeof(*total)));
	total = mmap(NULL, sizeof(*total), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	EXPECT(total != MAP_FAILED);
	close(fd);
	for (long i = 0; i < number(words[2]); i++) {
		int rc = mtlshm_lock(puppet.me, 1000 * LIFETIME);
		long value = *total;

		if (rc < 0)
			return rc;
		if (i % 64 == 0)
			sched_yield();
		*total = value + 1;
		mtlshm_unlock(puppet.me);
	}
	return 0;
}

/* Sleep in the kernel until someone gives the semaphore back, without looking by ourselves. Begins when somebody else waits
 * already. 0: woken. */
static long do_sleep_on_semaphore(char **words)
{
	const struct timespec limit = {.tv_sec = LIFETIME};
	int fd = open(puppet.path, O_RDONLY);
	const struct mtlshm_segment *segment = mmap(NULL, sizeof(*segment), PROT_READ, MAP_SHARED, fd, 0);
	uint64_t word;

	(void)words;
	EXPECT(segment != MAP_FAILED);
	do
		word = __atomic_load_n(&segment->header.semaphore, __ATOMIC_RELAXED);
	while (!(word & 1));
	answer(0);
	return syscall(SYS_futex, &segment->header.semaphore, FUTEX_WAIT, (uint32_t)word, &limit, NULL, 0) ? -errno : 0;
}

#ifdef __x86_64__
#define TRAP_FLAG 0x100 /* EFLAGS.TF: a SIGTRAP after each instruction */

static volatile long instructions_left, given_back;

/* What another thread of the same instance, and then another instance, may do between two instructions. */
static void interrupt(int unused, siginfo_t *info, void *context)
{
	greg_t *flags = &((ucontext_t *)context)->uc_mcontext.gregs[REG_EFL];

	(void)unused;
	(void)info;
	if (instructions_left > 0) {
		instructions_left--;
		*flags |= TRAP_FLAG;
		return;
	}
	*flags &= ~TRAP_FLAG;
	if (instructions_left == 0) {
		given_back = mtlshm_unlock(puppet.me);
		EXPECT(!mtlshm_lock(puppet.instances[0], 0));
	}
	instructions_left = -1;
}

/* Of two instances the second gives the semaphore back, and is interrupted after each instruction once. Returns
 * how often its other thread was first; or -1: the first instance lost what it held. */
static long do_unlock_twice(char **words)
{
	const struct sigaction action = {.sa_sigaction = interrupt, .sa_flags = SA_SIGINFO};
	const struct sigaction none = {.sa_handler = SIG_DFL};
	long first = 0;

	(void)words;
	EXPECT(!sigaction(SIGTRAP, &action, NULL));
	for (long n = 1;; n++) {
		int rc;

		EXPECT(!mtlshm_lock(puppet.me, 0));
		instructions_left = n;
		given_back = 1;
		raise(SIGTRAP);
		rc = mtlshm_unlock(puppet.me);
		if (instructions_left > 0) { /* it was over before */
			instructions_left = -1;
			break;
		}
		if (mtlshm_unlock(puppet.instances[0]))
			return -1;
		EXPECT(given_back ? !rc : rc == -EPERM);
		first += !given_back;
	}
	EXPECT(!sigaction(SIGTRAP, &none, NULL));
	return first;
}
#endif

const struct command semaphore_commands[] = {
	{"count", do_count},
	{"sleep_on_semaphore", do_sleep_on_semaphore},
#ifdef __x86_64__
	{"unlock_twice", do_unlock_twice},
#endif
	{0},
};
