/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Repairing a segment: one kind of damage after the other, as examine.c reports it.
 *
 * Each repair takes the lock that protects what it changes (see life.c), looks again, and changes by compare-and-swap what
 * was seen. So a claim or death meanwhile is not undone, and a repair done twice does nothing. Fields of the header that
 * never change are written without a lock: there is one right value.
 */
#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "assertion.h"
#include "examine.h"
#include "failure.h"
#include "fault.h"
#include "layout.h"
#include "life.h"
#include "segment.h"
#include "token.h"

/* No errno, since unlink(2) may fail with any: the file is in use, so it stays. */
enum { IN_USE = 1 };

/* Remove the file, if it is not in use: no lock is held on any byte of it, since those of another layout may be anywhere, and
 * no instance is in it that has none. */
static int remove_unused(const char *path, struct life *life, const struct mtlshm_segment *table)
{
	struct stat mine, named;
	int rc = life_take(life, MTLSHM_BURIAL_BYTE);

	if (!rc)
		rc = life_locked(life);
	if (rc)
		return rc < 0 ? rc : IN_USE;
	rc = table->header.fingerprint == layout_fingerprint() ? 0 : layout_proxied(life, &table->header);
	if (rc)
		return rc < 0 ? rc : IN_USE;
	for (uint32_t i = 0; table->header.fingerprint == layout_fingerprint() && i < MTLSHM_INSTANCES; i++)
		if (control_proxied(table->instances[i].control))
			return IN_USE;
	if (fstat(life->fd, &mine) || lstat(path, &named))
		return failure("look at", path);
	if (mine.st_dev != named.st_dev || mine.st_ino != named.st_ino)
		return -ESRCH;
	assert(life_holds(life, MTLSHM_BURIAL_BYTE));
	return unlink(path) ? failure("remove", path) : 0;
}

static int write_field(const struct life *life, uint32_t offset, const void *right, size_t size)
{
	ssize_t written = pwrite(life->fd, right, size, (off_t)offset);

	if (written >= 0)
		errno = EIO;
	return written == (ssize_t)size ? 0 : failure("write the segment's header", "");
}

/* As many as this host can have, but no fewer than there are in use: our view may be a container's. */
static int true_lcores(const struct mtlshm_segment *table, uint32_t *lcores)
{
	int rc = segment_lcores(NULL, lcores);

	for (uint32_t i = *lcores; !rc && i < MTLSHM_LCORES; i++)
		if (examine_knows(table, owner_of(table->lcores[i].owner)))
			*lcores = i + 1;
	return rc;
}

static int mend_header(const struct life *life, const struct mtlshm_segment *table, uint32_t offset)
{
	const uint32_t version = MTLSHM_LAYOUT_VERSION;
	const uint64_t size = sizeof(struct mtlshm_segment);
	uint32_t lcores;
	int rc;

	switch (offset) {
	case offsetof(struct mtlshm_header, magic):
		return write_field(life, offset, layout_magic, sizeof(layout_magic));
	case offsetof(struct mtlshm_header, version): return write_field(life, offset, &version, sizeof(version));
	case offsetof(struct mtlshm_header, size): return write_field(life, offset, &size, sizeof(size));
	case offsetof(struct mtlshm_header, lcores):
		rc = true_lcores(table, &lcores);
		return rc ? rc : write_field(life, offset, &lcores, sizeof(lcores));
	default: return -EOPNOTSUPP;
	}
}

static int change(uint64_t *word, uint64_t from, uint64_t to)
{
	return __atomic_compare_exchange_n(word, &from, to, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED) ? 0 : -ESRCH;
}

static int mend_state(const char *path, struct life *life, struct mtlshm_segment *live,
		      const struct mtlshm_segment *table)
{
	uint32_t state = table->header.state;
	int rc = state == MTLSHM_RETIRED ? remove_unused(path, life, table) : IN_USE;

	if (rc != IN_USE)
		return rc;
	/* Once more: another process may hold it, and be about to remove the file. */
	rc = life_take(life, MTLSHM_BURIAL_BYTE);
	if (rc)
		return rc;
	assert(life_holds(life, MTLSHM_BURIAL_BYTE));
	return __atomic_compare_exchange_n(&live->header.state, &state, MTLSHM_IN_USE, false, __ATOMIC_SEQ_CST,
					   __ATOMIC_RELAXED)
		       ? 0
		       : -ESRCH;
}

/* A record in no state, of nobody: FREE, for the next. Its lock keeps newcomers out meanwhile. */
static int mend_record(struct life *life, struct mtlshm_segment *live, uint32_t index, uint64_t control)
{
	off_t byte = life_byte(owner_make(index, 0));
	int rc = life_share(life, byte);

	if (rc)
		return rc;
	assert(life_holds(life, byte));
	return change(&live->instances[index].control, control, control_after(control));
}

static int mend_hidden(const struct life *life, struct mtlshm_segment *live, const struct mtlshm_segment *table,
		       uint32_t index)
{
	uint64_t control = table->instances[index].control, generation;
	int held = life_held(life, life_byte(owner_make(index, 0)), 1);

	if (held < 0)
		return held;
	generation = examine_generation(table, index, held);
	if (!generation)
		return -EOPNOTSUPP; /* it has no lcore, and its next registration will be in another record */
	return change(&live->instances[index].control, control,
		      control_make(generation, held ? MTLSHM_LIVE : MTLSHM_PROXIED));
}

static int mend_in_table(const char *path, struct life *life, const struct mtlshm_segment *table,
			 const struct mtlshm_damage *damage)
{
	struct mtlshm_segment *live;
	struct watched *watched;
	int rc = fault_map(&watched, life->fd, PROT_READ | PROT_WRITE, path);

	if (rc)
		return rc;
	live = fault_table(watched);
	rc = -EOPNOTSUPP;
	switch (damage->kind) {
	case MTLSHM_DAMAGE_STATE:
	case MTLSHM_DAMAGE_RETIRED: rc = mend_state(path, life, live, table); break;
	case MTLSHM_DAMAGE_SEMAPHORE:
		rc = change(&live->header.semaphore, damage->value, 0); /* sleepers look again within 20 ms */
		break;
	case MTLSHM_DAMAGE_RECORD: rc = mend_record(life, live, damage->index, damage->value); break;
	case MTLSHM_DAMAGE_HIDDEN: rc = mend_hidden(life, live, table, damage->index); break;
	case MTLSHM_DAMAGE_TOKEN: rc = change(&live->lcores[damage->index].owner, damage->value, 0); break;
	}
	if (fault_seen(watched))
		rc = -EBADMSG;
	fault_unmap(watched);
	return rc;
}

/* Dead instances are collected as always. */
static int mend_dead(const char *path, uint64_t owner)
{
	struct mtlshm_host *host;
	int rc = mtlshm_open(&host, path, 0, NULL);

	if (rc)
		return rc;
	rc = mtlshm_collect(host, owner);
	mtlshm_close(host);
	return rc < 0 ? rc : 0;
}

/* 0, IN_USE or LIFE_TAKEN (a live process would lose), or a negative errno. */
static int mend(const char *path, struct life *life, const struct mtlshm_segment *table,
		const struct mtlshm_damage *damage)
{
	switch (damage->kind) {
	case MTLSHM_DAMAGE_FOREIGN: /* somebody may need it */ return -EOPNOTSUPP;
	case MTLSHM_DAMAGE_LAYOUT:
	case MTLSHM_DAMAGE_SHORT:
	case MTLSHM_DAMAGE_BOOT: return remove_unused(path, life, table);
	case MTLSHM_DAMAGE_HEADER: return mend_header(life, table, damage->index);
	default: return mend_in_table(path, life, table, damage);
	}
}

int mtlshm_mend(const char *path, const struct mtlshm_damage *damage)
{
	struct {
		struct mtlshm_segment table;
		struct mtlshm_damage damages[MTLSHM_DAMAGES];
	} *now;
	struct report report;
	struct life life;
	int rc, i = 0;

	if (damage->kind == MTLSHM_DAMAGE_DEAD)
		return mend_dead(path, damage->value);
	now = malloc(sizeof(*now));
	if (!now)
		return -ENOMEM;
	report = (struct report){.damages = now->damages};
	rc = examine_enter(&life, path, O_RDWR);
	if (!rc) {
		rc = examine_file(&life, &now->table, &report);
		while (i < report.count && memcmp(&now->damages[i], damage, sizeof(*damage)))
			i++;
		if (!rc)
			rc = i < report.count ? mend(path, &life, &now->table, damage) : -ESRCH;
		if (rc > 0)
			rc = -EBUSY;
		life_leave(&life);
	}
	free(now);
	return rc;
}
