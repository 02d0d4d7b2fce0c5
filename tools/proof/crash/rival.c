/* SPDX-License-Identifier: BSD-3-Clause */
#include "rival.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "recovery.h"
#include "report.h"
#include "table.h"
#include "world.h"

void meddle(unsigned int variant)
{
	struct mind *rival = &world.rival;

	if (variant & 16)
		try_sweep();
	rival->parent = world.kind & FAMILY && variant & 64 ? world.bystander.owner : 0;
	enter(rival);
	EXPECT(!rival->rc, "the rival cannot register: %d", rival->rc);
	if (rival->rc)
		return;
	EXPECT(!lcores_of(rival->owner), "a newcomer has %u lcores that it never claimed", lcores_of(rival->owner));
	if (variant & 1)
		try_sweep();
	for (uint32_t i = 0; i < LCORES; i++)
		if (variant & 2 || (variant & 32 && (i == TARGET || i == 2)))
			take(rival, i);
	for (uint32_t i = 0; variant & 4 && i < LCORES; i += 2) {
		if (!rival->has[i])
			continue;
		rival->has[i] = false;
		EXPECT(!mtlshm_release(rival->instance, i), "the rival cannot release lcore %u", i);
	}
	rival->rc = mtlshm_lock(rival->instance, 0);
	EXPECT(rival->rc >= 0 || rival->rc == -ETIMEDOUT, "the rival's lock: %d", rival->rc);
	rival->semaphore = rival->rc >= 0;
	if (rival->semaphore && !(variant & 8)) {
		rival->semaphore = false;
		EXPECT(!mtlshm_unlock(rival->instance), "the rival cannot unlock");
	}
	if (world.bystander.semaphore) { /* and the victim waits for it */
		world.bystander.semaphore = false;
		EXPECT(!mtlshm_unlock(world.bystander.instance), "the holder cannot unlock");
	}
}

void open_as_well(unsigned int variant)
{
	struct mtlshm_host *second = NULL;
	struct stat st;
	int rc = mtlshm_open(&second, world.path, MTLSHM_CREATE, world.sysfs);

	(void)variant;
	EXPECT(!rc && !stat(world.path, &st), "the rival cannot open: %d", rc);
	world.rival.inode = rc ? 0 : st.st_ino;
	if (second)
		mtlshm_close(second);
}

void spare_meanwhile(unsigned int variant)
{
	struct stat st;

	(void)variant;
	NEEDED(!stat(world.path, &st) && !mtlshm_close(world.host));
	world.host = NULL;
	world.rival.inode = st.st_ino;
}

void register_meanwhile(unsigned int variant)
{
	(void)variant;
	enter(&world.rival);
	EXPECT(!world.rival.rc || world.rival.rc == -ESTALE, "the rival's register: %d", world.rival.rc);
}

void remove_meanwhile(unsigned int variant)
{
	(void)variant;
	world.rival.rc = mtlshm_retire(world.host);
	if (!world.rival.rc)
		NEEDED(!unlink(world.path));
	EXPECT(!world.rival.rc || world.rival.rc == -EBUSY, "the rival's retire: %d", world.rival.rc);
}

void dismiss_rival(void)
{
	mtlshm_instance_free(world.rival.instance);
	world.rival = (struct mind){0};
}
