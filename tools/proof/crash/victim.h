/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The victim: a process, forked and traced, that comes as far as the call and makes it under our eyes.
 *
 * Stepping costs up to 60 microseconds an instruction, so what lies far ahead is reached by a breakpoint of the
 * processor's. What is traced lies between two breakpoints in our own code.
 */
#ifndef VICTIM_H
#define VICTIM_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

struct scenario;

/* Where it can be: at an address, the nth time that this comes. */
struct place {
	uint64_t ip;
	uint32_t nth;
};

/* Start one; it is stopped at the call. */
pid_t start_victim(const struct scenario *scenario);

/* Wherever it is. */
void kill_victim(pid_t pid);

/* Where it is; whether the call is over there. */
uint64_t ip_of(pid_t pid);
bool at_end(uint64_t ip);

/* Is its next instruction a system call; one that waits for the semaphore, or for somebody to remove the segment? */
bool enters_kernel(pid_t pid, uint64_t ip);
bool about_to_sleep(pid_t pid, uint64_t ip);

/* Let it go on for one instruction; until it comes to a breakpoint. */
void step(pid_t pid);
void go_on(pid_t pid);

/* Run to a place. False: it came to the end before; it may be one where it would sleep for long. */
bool run_to(pid_t pid, const struct place *place, const struct place *end);

/* Where the address is in our code, if it is ours(). The vDSO's are not: it takes no breakpoints. */
uint64_t offset_of(uint64_t ip);
bool ours(uint64_t ip);

#endif
