/* SPDX-License-Identifier: BSD-3-Clause */
#include "judgement.h"

#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "report.h"
#include "table.h"
#include "world.h"

void look_at_table(const struct mtlshm_segment *start)
{
	EXPECT(world.kind & NO_SEGMENT || header_is_still(&start->header), "the header was changed");
	for (uint32_t i = 0; i < LCORES; i++) {
		uint64_t owner = owner_in(segment->lcores[i].owner);

		EXPECT(!world.bystander.has[i] || owner == world.bystander.owner, "lcore %u was taken from the living",
		       i);
		EXPECT(!lent(i) || descends(owner, world.bystander.owner),
		       "lcore %u, which a living parent lends, is %#lx's", i, (unsigned long)owner);
		EXPECT(!owner || known(owner) || owner == world.victim->reservation,
		       "lcore %u is %#lx's, who is unknown", i, (unsigned long)owner);
	}
	for (uint32_t i = 0; i < MTLSHM_INSTANCES; i++)
		if (control_of(i) != start->instances[i].control && state_of(i) == MTLSHM_LIVE)
			EXPECT(locked(i, F_RDLCK), "record %u says LIVE, and has no life lock", i);
}

static bool is_among_living(uint64_t owner)
{
	return owner && (owner == world.victim->owner || owner == world.rival.owner || owner == world.bystander.owner ||
			 owner == world.proxied || owner == world.victim->proxy);
}

void judge(void)
{
	const struct mind *victim = world.victim, *minds[] = {&world.bystander, victim, &world.rival};
	uint64_t holder = owner_in(segment->header.semaphore), rightful = 0;

	for (int n = 0; n < 3; n++) {
		uint64_t owner = minds[n]->owner;

		EXPECT(!owner || known(owner), "the table does not know a living instance, %#lx", (unsigned long)owner);
		EXPECT(!owner || locked(index_in(owner), F_RDLCK), "a living instance has no life lock");
		if (minds[n]->semaphore) {
			EXPECT(!rightful, "two have the semaphore");
			rightful = owner;
		}
	}
	EXPECT(!victim->refused || lent(victim->refused) || world.rival.had[victim->refused],
	       "refused lcore %u, which nobody alive has had", victim->refused);
	EXPECT(!victim->owner || victim->owner != world.rival.owner, "the rival and the victim are the same instance");
	EXPECT(holder == rightful || (!rightful && !is_among_living(holder)), "%#lx has the semaphore, %#lx thinks so",
	       (unsigned long)holder, (unsigned long)rightful);
	for (uint32_t i = 0; i < LCORES; i++) {
		uint64_t word = owner_in(segment->lcores[i].owner), owner = i == 4 ? world.proxied : 0;

		EXPECT(!lent(i) || world.rival.parent || !world.rival.has[i],
		       "lcore %u, which a living parent lends, was granted to a stranger", i);
		if (victim->reserved[i])
			owner = victim->reservation;
		if (i == 4 && victim->has[4])
			owner = victim->proxy;
		else
			for (int n = 0; n < 3; n++) {
				if (!minds[n]->has[i])
					continue;
				EXPECT(!owner, "lcore %u is owned twice", i);
				owner = minds[n]->owner;
			}
		if (owner)
			EXPECT(word == owner, "lcore %u is %#lx's, but %#lx's in the table", i, (unsigned long)owner,
			       (unsigned long)word);
		else if (lent(i))
			EXPECT(descends(word, world.bystander.owner),
			       "lcore %u, which a living parent lends, is %#lx's", i, (unsigned long)word);
		else
			EXPECT(!is_among_living(word), "lcore %u is a living instance's, which does not know", i);
	}
}

void judge_opened(void)
{
	struct stat st;

	EXPECT(!stat(world.path, &st) && st.st_ino == world.rival.inode, "two segments have come of one");
}

void judge_removed(void)
{
	EXPECT(world.victim->rc || world.rival.rc, "somebody is registered in a segment that was removed");
}
