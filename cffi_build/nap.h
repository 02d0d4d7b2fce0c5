/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Sleeping by a system call of our own: no cancellation point, unlike what the C library has.
 *
 * On a 32-bit machine time_t may have 64 bits (-D_TIME_BITS=64, Debian's armhf), while the system calls without
 * "time64" in their name take 32: they would read a timespec of the C library as another duration, mostly 0. So
 * the kernel's own structures are used here, and nothing else in the core gives the kernel a duration.
 */
#ifndef MTLSHM_NAP_H
#define MTLSHM_NAP_H

#include <stdint.h>

/* Sleep while *word is `value`, until somebody ends the nap, a signal comes or so many ns have passed. `word` may be
 * shared with other processes. */
void nap_on(const uint32_t *word, uint32_t value, int64_t ns);

/* Wake one sleeper on the word. */
void nap_end(uint32_t *word);

/* Sleep so many ns, or until a signal comes. */
void nap(int64_t ns);

#endif
