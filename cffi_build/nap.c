/* SPDX-License-Identifier: BSD-3-Clause */
#include "nap.h"

#include <errno.h>
#include <linux/futex.h>
#include <stddef.h>
#include <sys/syscall.h>
#include <unistd.h>

#define SECOND 1000000000

/* Not FUTEX_PRIVATE_FLAG: the waiter may be any process. */
static void futex(const uint32_t *word, int operation, uint32_t value, int64_t ns)
{
	/* The kernel's timespec: of each system call of a 64-bit machine, and of those with "time64". */
	const int64_t limit[] = {ns / SECOND, ns % SECOND};
#ifndef SYS_futex_time64
	syscall(SYS_futex, word, operation, value, limit, NULL, 0);
#else
	long rc = syscall(SYS_futex_time64, word, operation, value, limit, NULL, 0);
#ifdef SYS_futex
	const long short_limit[] = {(long)(ns / SECOND), (long)(ns % SECOND)};

	if (rc && errno == ENOSYS) /* before Linux 5.1 */
		syscall(SYS_futex, word, operation, value, short_limit, NULL, 0);
#endif
	(void)rc;
#endif
}

void nap_on(const uint32_t *word, uint32_t value, int64_t ns)
{
	futex(word, FUTEX_WAIT, value, ns);
}

void nap_end(uint32_t *word)
{
	futex(word, FUTEX_WAKE, 1, 0);
}

void nap(int64_t ns)
{
	const uint32_t nobody_wakes = 0;

	nap_on(&nobody_wakes, 0, ns);
}
