/* SPDX-License-Identifier: BSD-3-Clause */
#include "trace.h"

#include <string.h>

#include "judgement.h"
#include "report.h"
#include "scenario.h"
#include "table.h"
#include "victim.h"

enum {
	LONGEST_WALK = 4000, /* instructions stepped from a breakpoint on */
	ATTEMPTS = 4,        /* for one position */
};

struct trace trace;

void set_place(const char *doing, uint32_t position)
{
	now.doing = doing;
	now.position = position;
	now.ip = trace.steps[position].place.ip;
}

void record(const struct scenario *scenario)
{
	static uint32_t seen[LONGEST_TRACE]; /* by address in our code */
	static struct mtlshm_segment start, last;
	pid_t pid;

	trace.changes = trace.calls = trace.repeated = trace.astray = 0;
	memset(seen, 0, sizeof(seen));
	set_place("stepped", 0);
	restore_world();
	pid = start_victim(scenario);
	start = last = *segment;
	for (uint32_t i = 0;; i++) {
		uint64_t ip = ip_of(pid);
		bool enters = enters_kernel(pid, ip);

		NEEDED(i + 1 < LONGEST_TRACE);
		trace.steps[i].place = (struct place){.ip = ip, .nth = 1};
		if (ours(ip)) {
			NEEDED(offset_of(ip) < LONGEST_TRACE);
			trace.steps[i].place.nth = ++seen[offset_of(ip)];
		}
		trace.length = i;
		set_place("stepped", i);
		if (!i || trace.steps[i].changed)
			look_at_table(&start);
		if (at_end(ip) || (scenario->sleeps && about_to_sleep(pid, ip)))
			break;
		step(pid);
		trace.steps[i + 1].changed = enters || memcmp(segment, &last, sizeof(last));
		trace.changes += trace.steps[i + 1].changed;
		trace.calls += enters;
		last = *segment;
	}
	if (!scenario->sleeps)
		EXPECT(world.victim->rc == scenario->expected, "it returned %d, not %d", world.victim->rc,
		       scenario->expected);
	kill_victim(pid);
}

/* From where to step to that place: the cheapest, counting the stops at a breakpoint before. */
static uint32_t breakpoint_before(uint32_t position)
{
	uint32_t from = 0, best = UINT32_MAX;

	for (uint32_t i = position; i + LONGEST_WALK > position; i--) {
		uint32_t cost = trace.steps[i].place.nth + (position - i);

		if (ours(trace.steps[i].place.ip) && cost < best) {
			best = cost;
			from = i;
		}
		if (!i)
			break;
	}
	return from;
}

pid_t victim_at(const struct scenario *scenario, uint32_t position)
{
	uint32_t from = breakpoint_before(position);

	for (int attempt = 0; attempt < ATTEMPTS; attempt++) {
		pid_t pid;
		bool arrived, elsewhere;

		restore_world();
		pid = start_victim(scenario);
		arrived = run_to(pid, &trace.steps[from].place, &trace.steps[trace.length].place);
		for (uint32_t i = from; arrived && i < position; i++) {
			step(pid);
			arrived = !at_end(ip_of(pid)) || i + 1 == position;
		}
		elsewhere = !arrived || ip_of(pid) != trace.steps[position].place.ip;
		if (!elsewhere || (attempt == ATTEMPTS - 1 && arrived)) {
			trace.astray += elsewhere;
			return pid;
		}
		kill_victim(pid);
		trace.repeated++;
	}
	trace.astray++;
	return 0;
}
