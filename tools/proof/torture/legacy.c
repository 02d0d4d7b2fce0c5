/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Clients that know no manager, and do to libmtl's legacy table what libmtl does: legacy; anchor, which only stays
 * attached; and, at the end, drain.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/shm.h>
#include <unistd.h>

#include "client.h"
#include "kinds.h"

struct entry {
	char hostname[64];
	char user[32];
	char comm[64];
	int unused_pid;
	int pid;
	int type;
	bool active;
};

struct table {
	int used;
	struct entry entries[128];
};

_Static_assert(sizeof(struct table) == 22532, "as in every libmtl");

static struct table *table;
static struct entry myself;
static int table_id;

static int lock_table(void)
{
	int fd = open(self.lock, O_RDWR | O_CREAT | O_CLOEXEC, 0666);

	if (fd < 0 || flock(fd, LOCK_EX))
		witness_wrong("could not lock the legacy table:", -errno);
	return fd;
}

static void attach_table(void)
{
	int fd = lock_table();
	struct shmid_ds status;

	table_id = shmget((key_t)strtol(self.key, NULL, 0), sizeof(struct table), IPC_CREAT | 0666);
	table = table_id < 0 ? (void *)-1 : shmat(table_id, NULL, 0);
	if (table == (void *)-1 || shmctl(table_id, IPC_STAT, &status))
		witness_wrong("could not attach to the legacy table:", -errno);
	if (status.shm_nattch == 1)
		memset(table, 0, sizeof(*table));
	close(fd);
	gethostname(myself.hostname, sizeof(myself.hostname) - 1);
	strcpy(myself.user, "root");
	strcpy(myself.comm, "torture");
	myself.pid = getpid();
}

static void detach_table(void)
{
	int fd = lock_table();
	struct shmid_ds status;

	if (shmdt(table) || shmctl(table_id, IPC_STAT, &status))
		witness_wrong("could not detach from the legacy table:", -errno);
	if (status.shm_nattch == 0)
		shmctl(table_id, IPC_RMID, NULL);
	close(fd);
}

/* The first that is not active from there on, which may be none. */
static bool claim_from_table(uint32_t first)
{
	int fd = lock_table();
	bool granted = false;

	for (uint32_t i = first; i < self.lcores && !granted; i++) {
		struct entry *entry = &table->entries[i];

		if (entry->active && !strcmp(entry->hostname, myself.hostname) && !strcmp(entry->user, myself.user) &&
		    kill(entry->pid, 0))
			entry->active = false;
		if (entry->active)
			continue;
		*entry = myself;
		entry->active = granted = true;
		table->used++;
		got(i);
	}
	close(fd);
	return granted;
}

static void release_to_table(void)
{
	int fd = lock_table();
	struct entry *entry = &table->entries[gives(throw_dice(self.held_count))];

	if (!entry->active || entry->pid != myself.pid)
		witness_wrong("its entry in the legacy table is no longer its own, but of pid", entry->pid);
	entry->active = false;
	table->used--;
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
				nap(3000);
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
