/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What a victim does that nobody disturbs, instruction by instruction, and how another one gets to any place in it.
 *
 * All victims are forks of one process, so they do the same; where one does not (it has another PID to read from /proc,
 * or the clock had moved on), its instruction pointer tells, and it is done again. In the end it is taken where it is,
 * and counted as `astray`.
 */
#ifndef TRACE_H
#define TRACE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "victim.h"

enum { LONGEST_TRACE = 1 << 20 };

struct trace {
	uint32_t length;
	uint32_t changes, calls;   /* of the segment, and system calls, and the latter alone */
	uint32_t repeated, astray; /* victims that were not at their places */
	struct {
		struct place place;
		bool changed; /* the instruction before changed the segment, or was a system call */
	} steps[LONGEST_TRACE];
};

extern struct trace trace;

/* Step a victim through the call, and look at the table after each change. */
void record(const struct scenario *scenario);

/* A victim at that place; the world is as the victim left it. 0: none got there. */
pid_t victim_at(const struct scenario *scenario, uint32_t position);

/* What is wrong from now on happens there. */
void set_place(const char *doing, uint32_t position);

#endif
