/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Clients that know no manager, and do to libmtl's legacy table what libmtl does: legacy; anchor, which only stays
 * attached; and, at the end, drain.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../legacy_table.h"
#include "client.h"
#include "kinds.h"

static struct table *table;
static struct entry myself;
static int table_id;

static int lock_table(void)
{
	int fd = legacy_lock(self.lock);

	if (fd < 0)
		witness_wrong("could not lock the legacy table:", fd);
	return fd;
}

static void attach_table(void)
{
	int fd = lock_table();
	int rc = legacy_attach(&table, &table_id, (key_t)strtol(self.key, NULL, 0));

	if (rc)
		witness_wrong("could not attach to the legacy table:", rc);
	close(fd);
	gethostname(myself.hostname, sizeof(myself.hostname) - 1);
	strcpy(myself.user, "root");
	strcpy(myself.comm, "torture");
	myself.pid = getpid();
}

static void detach_table(void)
{
	int fd = lock_table();
	int rc = legacy_detach(table, table_id);

	if (rc)
		witness_wrong("could not detach from the legacy table:", rc);
	close(fd);
}

/* The first that is not active from there on, which may be none. */
static bool claim_from_table(uint32_t first)
{
	int fd = lock_table();
	bool granted = false;

	for (uint32_t i = first; i < self.lcores && !granted; i++) {
		granted = legacy_claim(table, i, &myself);
		if (granted)
			got(i);
	}
	close(fd);
	return granted;
}

static void release_to_table(void)
{
	int fd = lock_table();
	uint32_t lcore = gives(throw_dice(self.held_count));
	const struct entry *entry = &table->entries[lcore];

	if (!entry->active || entry->pid != myself.pid)
		witness_wrong("its entry in the legacy table is no longer its own, but of pid", entry->pid);
	legacy_release(table, lcore);
	close(fd);
}

void live_on_table(void)
{
	for (;;) {
		attach_table();
		for (uint32_t n = throw_dice(30); n; n--) {
			uint32_t what = throw_dice(100);

			if (what < 30)
				claim_from_table(throw_dice(self.lcores));
			else if (what < 50 && self.held_count)
				release_to_table();
			else
				doze(3000);
		}
		if (!throw_dice(4))
			end();
		while (self.held_count)
			release_to_table();
		detach_table();
	}
}

void drain_table(void)
{
	attach_table();
	while (claim_from_table(0))
		dprintf(STDOUT_FILENO, "%u ", self.held[self.held_count - 1]);
	while (self.held_count)
		release_to_table();
	detach_table();
}

void stay_attached(void)
{
	attach_table();
	for (;;)
		pause();
}
