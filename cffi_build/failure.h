/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Failures outside of this library, for messages to people: the step of the operating system that failed, and its path. A
 * number alone cannot say it: ENOENT is "no segment there" of one file and "no such CPU" of another.
 *
 * Kept for each thread until its next call. Functions that succeed without a system call, mtlshm_claim() above
 * all, do not come here.
 */
#ifndef MTLSHM_FAILURE_H
#define MTLSHM_FAILURE_H

/* Note that a system call has failed, as in "cannot STEP PATH: Permission denied". `step` is a constant, `path` may
 * be "". Returns -errno. */
int failure(const char *step, const char *path);

/* Note a condition of our own that needs other words than mtlshm_strerror() has, as in "PATH WORDS". Returns `error`. */
int failure_is(int error, const char *path, const char *words);

/* The path that was noted is below this directory. */
void failure_below(const char *directory);

/* At the beginning of a call, and where a failure does not matter: what was noted says nothing any more. */
void failure_forget(void);

#endif
