/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Finding what is wrong with a segment; mend.c repairs it.
 *
 * Everybody else opens a segment only if its header is right, and then has to believe the table. Here nothing
 * is believed: the file is read into a copy with pread(), where a truncation is a short read,
 * and compared with what can be known otherwise: the host (boot, CPUs), the layout we were built with, and the
 * life locks, which are the kernel's. No byte that is written can make anyone seem alive or dead.
 *
 * THE FINGERPRINT decides the kind of the file: if it is right, so is the layout, and the other fields of the
 * header can be written anew. If it is wrong, this may be another version's segment, whose users know it is
 * right; then it may be removed only if nobody uses it.
 *
 * A RECORD THAT NAMES NO OWNER while its life lock is held is that of a living owner, and has been overwritten (or
 * the owner registers this moment: hence the second look). The same is presumed of a record in an unknown state, if it
 * was that of a process which only a daemon can ask. The tokens of its lcores still name the owner, and the record can
 * be made to say so again; if the presumption was wrong, what comes of it is an instance that is found dead. A record that
 * says LIVE or PROXIED is believed. Tokens that no record knows are free, as every claim finds.
 */
#include "examine.h"

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "failure.h"
#include "layout.h"
#include "life.h"
#include "segment.h"
#include "token.h"

static void add(struct report *report, uint32_t kind, uint32_t index, uint64_t value)
{
	report->damages[report->count++] = (struct mtlshm_damage){.kind = kind, .index = index, .value = value};
}

bool examine_knows(const struct mtlshm_segment *table, uint64_t owner)
{
	uint32_t index = owner_index(owner);

	return index < MTLSHM_INSTANCES && control_of(table->instances[index].control, owner);
}

static bool is_proxied_kind(uint32_t kind)
{
	return kind > MTLSHM_KIND_DAEMON && kind < MTLSHM_KINDS;
}

/* A reservation that is being made is LIVE. */
static bool is_kind(uint32_t kind, bool proxied)
{
	return is_proxied_kind(kind) ? proxied || kind == MTLSHM_KIND_RESERVATION : !proxied && kind < MTLSHM_KINDS;
}

/* Is a dead record kept for its tenants, as it is to be if it has a parent itself? */
static bool is_kept(const struct mtlshm_segment *table, uint64_t owner)
{
	if (!table->instances[owner_index(owner)].parent)
		return false;
	for (uint32_t i = 0; i < MTLSHM_INSTANCES; i++) {
		const struct mtlshm_record *record = &table->instances[i];

		if (record->parent == owner && examine_knows(table, owner_make(i, control_generation(record->control))))
			return true;
	}
	return false;
}

/* Could the word be a leftover of an owner that has ended? A tenant leaves one when it gives back to such a parent. */
static bool is_leftover(const struct mtlshm_segment *table, uint64_t token)
{
	uint32_t index = owner_index(token);

	return index < MTLSHM_INSTANCES && (token & TOKEN_TYPE_MASK) < MTLSHM_LCORE_TYPES && owner_generation(token) &&
	       owner_generation(token) < control_generation(table->instances[index].control);
}

uint64_t examine_generation(const struct mtlshm_segment *table, uint32_t index, bool locked)
{
	const struct mtlshm_record *record = &table->instances[index];
	uint64_t control = record->control, found = 0;

	if (examine_knows(table, owner_make(index, control_generation(control))))
		return 0;
	if (!locked && (!is_proxied_kind(record->kind) || (control && control_free(control))))
		return 0;
	for (uint32_t i = 0; i < MTLSHM_LCORES; i++) {
		uint64_t owner = owner_of(table->lcores[i].owner);

		/* Leftovers of earlier owners have lower ones. */
		if (owner && owner_index(owner) == index && owner_generation(owner) > found)
			found = owner_generation(owner);
	}
	return found;
}

static void examine_header(const struct mtlshm_header *header, struct report *report)
{
	const struct {
		size_t offset;
		uint64_t says;
		bool right;
	} fields[] = {
		{offsetof(struct mtlshm_header, magic), 0, !memcmp(header->magic, layout_magic, sizeof(layout_magic))},
		{offsetof(struct mtlshm_header, version), header->version, header->version == MTLSHM_LAYOUT_VERSION},
		{offsetof(struct mtlshm_header, size), header->size, header->size == sizeof(struct mtlshm_segment)},
		{offsetof(struct mtlshm_header, lcores), header->lcores,
		 header->lcores >= MTLSHM_LCORES_MIN && header->lcores <= MTLSHM_LCORES},
	};

	for (size_t i = 0; i < sizeof(fields) / sizeof(fields[0]); i++)
		if (!fields[i].right)
			add(report, MTLSHM_DAMAGE_HEADER, (uint32_t)fields[i].offset, fields[i].says);
}

static int examine_table(const struct mtlshm_segment *table, const struct life *life, struct report *report)
{
	bool hidden[1 << MTLSHM_INDEX_BITS] = {false};
	uint64_t semaphore = owner_of(table->header.semaphore);
	int held;

	for (uint32_t i = 0; i < MTLSHM_INSTANCES; i++) {
		const struct mtlshm_record *record = &table->instances[i];
		uint64_t owner = owner_make(i, control_generation(record->control));
		bool known = examine_knows(table, owner), proxied = known && control_proxied(record->control);

		held = life_held(life, life_byte(owner), 1);
		if (held < 0)
			return held;
		hidden[i] = (held && !known) || examine_generation(table, i, held);
		if (hidden[i])
			add(report, MTLSHM_DAMAGE_HIDDEN, i, record->control);
		else if (known && !held && !proxied && !is_kept(table, owner))
			add(report, MTLSHM_DAMAGE_DEAD, i, owner);
		else if (!known && (record->control & CONTROL_STATE_MASK) != MTLSHM_FREE)
			add(report, MTLSHM_DAMAGE_RECORD, i, record->control);
		if (known && !is_kind(record->kind, proxied))
			add(report, MTLSHM_DAMAGE_KIND, i, record->kind);
	}
	for (uint32_t i = 0; i < MTLSHM_LCORES; i++) {
		uint64_t token = table->lcores[i].owner, owner = owner_of(token);

		if (token && !examine_knows(table, owner) && !hidden[owner_index(owner)] && !is_leftover(table, token))
			add(report, MTLSHM_DAMAGE_TOKEN, i, token);
	}
	if (semaphore) {
		bool possible = examine_knows(table, semaphore) || hidden[owner_index(semaphore)];

		held = possible ? life_held(life, life_byte(semaphore), 1) : 0;
		if (!held)
			add(report, MTLSHM_DAMAGE_SEMAPHORE,
			    examine_knows(table, semaphore) || is_leftover(table, semaphore), table->header.semaphore);
	}
	return held < 0 ? held : 0;
}

/* What there is of the file into `table`, zeros for the rest; returns how many bytes it has, or a negative errno. */
static int64_t read_table(const struct life *life, struct mtlshm_segment *table)
{
	struct stat st;
	size_t done = 0;

	memset(table, 0, sizeof(*table));
	if (fstat(life->fd, &st))
		return failure("look at the segment", "");
	if (!S_ISREG(st.st_mode))
		return -EBADMSG;
	while (done < sizeof(*table)) {
		ssize_t n = pread(life->fd, (char *)table + done, sizeof(*table) - done, (off_t)done);

		if (n < 0)
			return failure("read the segment", "");
		if (!n)
			break;
		done += (size_t)n;
	}
	return done < sizeof(*table) ? (int64_t)done : st.st_size;
}

int examine_file(const struct life *life, struct mtlshm_segment *table, struct report *report)
{
	int64_t size = read_table(life, table);
	int held, stale;

	if (size < 0)
		return (int)size;
	if (table->header.fingerprint != layout_fingerprint()) {
		bool ours = !memcmp(table->header.magic, layout_magic, sizeof(layout_magic));

		add(report, ours ? MTLSHM_DAMAGE_LAYOUT : MTLSHM_DAMAGE_FOREIGN, 0, table->header.version);
		return 0;
	}
	if ((uint64_t)size < sizeof(*table)) {
		add(report, MTLSHM_DAMAGE_SHORT, 0, (uint64_t)size);
		return 0;
	}
	examine_header(&table->header, report);
	stale = segment_stale(life, &table->header);
	if (stale < 0)
		return stale;
	if (stale)
		add(report, MTLSHM_DAMAGE_BOOT, 0, 0);
	if (table->header.state == MTLSHM_RETIRED) {
		held = life_held(life, MTLSHM_BURIAL_BYTE, 1);
		if (held < 0)
			return held;
		if (!held)
			add(report, MTLSHM_DAMAGE_RETIRED, 0, 0);
	} else if (table->header.state != MTLSHM_IN_USE) {
		add(report, MTLSHM_DAMAGE_STATE, 0, table->header.state);
	}
	return examine_table(table, life, report);
}

int examine_enter(struct life *life, const char *path, int mode)
{
	struct stat st;
	int rc = life_init();

	failure_forget();
	if (rc)
		return rc;
	life_guard(life);
	life->fd = open(path, mode | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
	if (life->fd >= 0 && !fstat(life->fd, &st) && S_ISREG(st.st_mode))
		return 0;
	if (life->fd >= 0)
		errno = EBADMSG;
	rc = errno == ENOENT ? -ENOENT : segment_no_file(path, mode);
	life_leave(life);
	return rc;
}

int mtlshm_examine(const char *path, struct mtlshm_damage *damages)
{
	struct report report = {.damages = damages};
	struct mtlshm_segment *table = malloc(sizeof(*table));
	struct life life;
	int rc = table ? examine_enter(&life, path, O_RDONLY) : -ENOMEM;

	if (!rc) {
		rc = examine_file(&life, table, &report);
		life_leave(&life);
	}
	free(table);
	return rc ? rc : report.count;
}
