/* SPDX-License-Identifier: BSD-3-Clause
 *
 * One call of the core, its caller killed or stopped at every instruction.
 *
 *     crash SCENARIO SEGMENT SYSFS CPU SEED HOW
 *     crash list
 *
 * A VICTIM (victim.h) makes the call under our eyes. HOW is `every`, or `changes`: only around every change of the
 * segment and every system call, and at some other instructions chosen by SEED. At each of those positions it is
 *
 *   killed   then somebody recovers, and nothing may be lost, left, owned twice or unusable (recovery.h);
 *   stopped  while a rival does what it likes (rival.h), then goes on to the end of the call: what each of them was
 *            told must agree with what the table says, and no two may think they own the same (judgement.h).
 *
 * And while it is stepped through the call for the first time (trace.h), the table is looked at after each change.
 *
 * WHAT IS TRUE is what we ourselves read in the segment (table.h), and what each process was told (world.h); the core
 * is believed in nothing.
 */
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>

#include "report.h"
#include "recovery.h"
#include "rival.h"
#include "scenario.h"
#include "trace.h"
#include "victim.h"
#include "world.h"

enum {
	SHORT = 700,    /* calls with `every`, whatever is asked for */
	VARIATIONS = 4, /* of what a rival does, around changes */
	SAMPLES = 24,   /* other positions, with `changes` */
	FAILURES = 5,   /* then give up */
};

/* How often it was done: 0, if no victim got there. */
static uint32_t kill_at(const struct scenario *scenario, uint32_t position)
{
	pid_t pid;

	set_place("killed", position);
	pid = victim_at(scenario, position);
	if (!pid)
		return 0;
	kill_victim(pid);
	recover(now.variation);
	return 1;
}

static bool may_return(const struct scenario *scenario, int rc)
{
	if (rc >= 0)
		return rc <= scenario->expected;
	if (rc == scenario->expected)
		return true;
	for (const int *refusal = scenario->refusals; *refusal; refusal++)
		if (rc == *refusal)
			return true;
	return false;
}

static uint32_t stop_at(const struct scenario *scenario, uint32_t position)
{
	pid_t pid;

	set_place("stopped", position);
	pid = victim_at(scenario, position);
	if (!pid)
		return 0;
	scenario->meddle(now.variation);
	if (!at_end(ip_of(pid)))
		go_on(pid);
	EXPECT(may_return(scenario, world.victim->rc), "it returned %d", world.victim->rc);
	scenario->judge();
	kill_victim(pid);
	set_place("killed after it was stopped", position);
	dismiss_rival();
	recover(now.variation);
	return 1;
}

static const struct scenario *find(const char *name)
{
	for (const struct scenario *each = scenarios; each->name; each++)
		if (!strcmp(name, each->name))
			return each;
	return NULL;
}

int main(int argc, char **argv)
{
	const struct scenario *scenario;
	uint32_t killed = 0, stopped = 0;
	cpu_set_t one;
	bool every;

	if (argc == 2 && !strcmp(argv[1], "list")) {
		for (scenario = scenarios; scenario->name; scenario++)
			puts(scenario->name);
		return 0;
	}
	if (argc != 7 || !(scenario = find(argv[1])))
		return 2;
	now.scenario = scenario->name;
	srand((unsigned int)atoi(argv[5]));
	every = !strcmp(argv[6], "every");
	setvbuf(stdout, NULL, _IOLBF, 0);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	/* A process and who traces it take turns: on two CPUs each turn would be a wake-up of the other. */
	CPU_ZERO(&one);
	CPU_SET(atoi(argv[4]), &one);
	NEEDED(!sched_setaffinity(0, sizeof(one), &one));

	make_world(scenario->world, argv[2], argv[3]);
	/* Once for nothing: the second time malloc() finds in our heap what it will find from then on. */
	record(scenario);
	kill_at(scenario, trace.length);
	stop_at(scenario, trace.length);
	record(scenario);
	for (uint32_t i = 0; i <= trace.length && now.failures < FAILURES; i++) {
		bool near = i == 0 || i == trace.length || trace.steps[i].changed || trace.steps[i + 1].changed;

		now.variation = (unsigned int)rand() / 7;
		if (!every && !near && trace.length > SHORT && (uint32_t)rand() % (trace.length + 1) >= SAMPLES)
			continue;
		killed += kill_at(scenario, i);
		for (int n = 0; n < (near ? VARIATIONS : 1); n++) {
			stopped += stop_at(scenario, i);
			now.variation = (unsigned int)rand() / 7;
		}
	}
	printf("done\t%s\t%u\t%u\t%u\t%u\t%u\t%u\t%u\t%u\n", scenario->name, trace.length, trace.changes, trace.calls,
	       killed, stopped, trace.repeated, trace.astray, now.failures);
	return now.failures != 0;
}
