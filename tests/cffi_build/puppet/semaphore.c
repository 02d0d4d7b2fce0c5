/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The semaphore, as those use it who come to the same place at once.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
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

const struct command semaphore_commands[] = {
	{"count", do_count},
	{"sleep_on_semaphore", do_sleep_on_semaphore},
	{0},
};
