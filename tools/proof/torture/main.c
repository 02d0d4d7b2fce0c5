/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A client of one of several kinds, which does at random what it may until somebody kills it, and notes what it was
 * given in the observer's record (witness.h).
 *
 *     torture KIND SLOT SEED WITNESS LCORES SEGMENT SYSFS SOCKET KEY LOCKFILE
 *
 * KIND is shm, janitor, socket, legacy, tree, guest, steward, greedy or regular, of which keepers start many and expect
 * nothing; or anchor, a legacy process that only stays attached, or holder, whose tenants the regulars are; or, when all
 * others are gone, audit, and then newcomer or drain: a client in shared memory and a legacy one that say which lcores they
 * can have.
 *
 * Its slot is 2n, and 2n + 1 is for a child of its own. Families have more.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "client.h"
#include "kinds.h"

static const struct {
	const char *name;
	uint32_t kind;
	void (*live)(void);
} kinds[] = {
	{"shm", WITNESS_SHM, live_in_shared_memory},
	{"janitor", WITNESS_JANITOR, live_in_shared_memory},
	{"socket", WITNESS_SOCKET, live_on_socket},
	{"legacy", WITNESS_LEGACY, live_on_table},
	{"tree", WITNESS_TREE, live_in_tree},
	{"guest", WITNESS_GUEST, live_as_guest},
	{"steward", WITNESS_STEWARD, live_as_steward},
	{"greedy", WITNESS_GREEDY, live_greedily},
	{"regular", WITNESS_REGULAR, live_as_regular},
	{"holder", WITNESS_STEWARD, hold},
	{"audit", WITNESS_STEWARD, audit},
	{"anchor", WITNESS_LEGACY, stay_attached},
	{"newcomer", WITNESS_SHM, have_everything},
	{"drain", WITNESS_LEGACY, drain_table},
};

int main(int argc, char **argv)
{
	const size_t count = sizeof(kinds) / sizeof(kinds[0]);
	size_t which = 0;

	if (argc != 11)
		return 2;
	setpriority(PRIO_PROCESS, 0, WITNESS_NICENESS);
	while (which < count && strcmp(argv[1], kinds[which].name))
		which++;
	if (which == count)
		return 2;
	self.kind = kinds[which].kind;
	set_dice(argv);
	self.witness = witness_open(argv[4]);
	if (!self.witness)
		return 2;
	self.record = argv[4];
	self.lcores = (uint32_t)strtoul(argv[5], NULL, 0);
	self.segment = argv[6];
	self.sysfs = argv[7];
	self.socket = argv[8];
	self.key = argv[9];
	self.lock = argv[10];
	begin((uint32_t)strtoul(argv[2], NULL, 0));
	kinds[which].live();
	return 0;
}
