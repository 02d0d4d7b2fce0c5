/* SPDX-License-Identifier: BSD-3-Clause
 *
 * libmtl's legacy table, and what libmtl does to it; for programs that stand in for processes with libmtl. Written from
 * what libmtl was seen to do, and not from our own mtlshm/legacy/, which is tried against it.
 *
 * All but locking is done with the lock held.
 */
#ifndef LEGACY_TABLE_H
#define LEGACY_TABLE_H

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/file.h>
#include <sys/shm.h>

#ifndef RTE_MAX_LCORE
#define RTE_MAX_LCORE 128
#endif

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
	struct entry entries[RTE_MAX_LCORE];
};

_Static_assert(sizeof(struct entry) == 176, "as in every libmtl");
_Static_assert(RTE_MAX_LCORE != 128 || sizeof(struct table) == 22532, "as in every libmtl");

/* Returns the descriptor that has the lock until it is closed, or a negative errno. */
static inline int legacy_lock(const char *path)
{
	int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);

	return fd < 0 || flock(fd, LOCK_EX) ? -errno : fd;
}

/* Whoever finds himself alone there zeroes it. Returns 0 or a negative errno. */
static inline int legacy_attach(struct table **table, int *id, key_t key)
{
	struct shmid_ds status;

	*id = shmget(key, sizeof(struct table), IPC_CREAT | 0666);
	if (*id < 0)
		return -errno;
	*table = shmat(*id, NULL, 0);
	if (*table == (void *)-1 || shmctl(*id, IPC_STAT, &status))
		return -errno;
	if (status.shm_nattch == 1)
		memset(*table, 0, sizeof(**table));
	return 0;
}

/* Who leaves nobody there removes it. Returns 0 or a negative errno. */
static inline int legacy_detach(struct table *table, int id)
{
	struct shmid_ds status;

	if (shmdt(table) || shmctl(id, IPC_STAT, &status))
		return -errno;
	if (status.shm_nattch == 0)
		shmctl(id, IPC_RMID, NULL);
	return 0;
}

/* Take the entry if it is nobody's, or of a dead process of the same host and user. */
static inline bool legacy_claim(struct table *table, uint32_t lcore, const struct entry *myself)
{
	struct entry *entry = &table->entries[lcore];

	if (entry->active && !strcmp(entry->hostname, myself->hostname) && !strcmp(entry->user, myself->user) &&
	    kill(entry->pid, 0))
		entry->active = false;
	if (entry->active)
		return false;
	*entry = *myself;
	entry->active = true;
	table->used++;
	return true;
}

static inline void legacy_release(struct table *table, uint32_t lcore)
{
	table->entries[lcore].active = false;
	table->used--;
}

#endif
