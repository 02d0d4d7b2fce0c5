/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The calls that are tried: who makes each, in which world, and what a rival does meanwhile.
 */
#ifndef SCENARIO_H
#define SCENARIO_H

#include <stdbool.h>

#include "world.h"

struct scenario {
	const char *name;
	enum world_kind world;
	void (*before)(struct mind *me); /* or NULL */
	void (*call)(struct mind *me);
	int expected;    /* what it returns if nobody disturbs it; if somebody does, less, */
	int refusals[3]; /* or one of these; 0 is the last */
	bool sleeps;     /* it would wait for ever: we look no further */
	void (*meddle)(unsigned int variant);
	void (*judge)(void);
};

/* Up to one that has no name. */
extern const struct scenario scenarios[];

#endif
