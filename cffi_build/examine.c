/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What is wrong with a segment, and putting it right.
 *
 * Everybody else opens a segment only if its header is right, and then has to take the table for what it says. Here nothing
 * is taken for anything: the file is read into a copy with pread(), where a truncation is a short read,
 * and compared with what can be known otherwise. That is the host (boot, CPUs), the layout we were built with, and the
 * life locks, which are the kernel's: no byte that is written can make somebody seem alive or dead.
 *
 * THE FINGERPRINT decides what kind of file it is: if it is right, so is the layout, and the other fields of the
 * header can be written anew. If it is wrong, this may be another version's segment, whose users know it is
 * right; then only the absence of all users allows to remove it.
 *
 * A RECORD THAT SAYS NOTHING while its life lock is held is that of a living owner, and has been overwritten (or he
 * is registering this moment: hence the second look). The same is to be thought of one in no state that there is, if it
 * was that of a process which only a daemon can ask. What he is called is then still in the tokens of his
 * lcores, and the record can be made to say so again; if it was not so, what comes of it is an instance that is
 * found dead. A record that says LIVE or PROXIED is believed. Tokens that no record knows are free, as every claim finds.
 *
 * MENDING takes the lock that the change belongs to, looks again, and changes by compare-and-swap what was
 * seen, so a claim or death meanwhile is not undone; mending something twice does nothing.
 */
#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "failure.h"
#include "layout.h"
#include "life.h"
#include "segment.h"

struct report {
	struct mtlshm_damage *damages;
	int count;
};

static void add(struct report *report, uint32_t kind, uint32_t index, uint64_t value)
{
	report->damages[report->count++] = (struct mtlshm_damage){.kind = kind, .index = index, .value = value};
}

/* Does the copied table know the owner, as segment_knows() asks of the table itself? */
static bool knows(const struct mtlshm_segment *table, uint64_t owner)
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

		if (record->parent == owner && knows(table, owner_make(i, control_generation(record->control))))
			return true;
	}
	return false;
}

/* Could the word have been left by somebody who is gone? What a tenant gives back to a parent that has ended says so. */
static bool is_leftover(const struct mtlshm_segment *table, uint64_t token)
{
	uint32_t index = owner_index(token);

	return index < MTLSHM_INSTANCES && (token & TOKEN_TYPE_MASK) < MTLSHM_LCORE_TYPES && owner_generation(token) &&
	       owner_generation(token) < control_generation(table->instances[index].control);
}

/* The generation that a record which says nothing should have, by the tokens that name it; 0: they do not say, or
 * there is no sign that its owner lives. */
static uint64_t true_generation(const struct mtlshm_segment *table, uint32_t index, bool locked)
{
	const struct mtlshm_record *record = &table->instances[index];
	uint64_t control = record->control, found = 0;

	if (knows(table, owner_make(index, control_generation(control))))
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
		{offsetof(struct mtlshm_header, magic), 0,
		 !memcmp(header->magic, segment_magic, sizeof(segment_magic))},
		{offsetof(struct mtlshm_header, version), header->version,
		 header->version == MTLSHM_LAYOUT_VERSION},
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
		bool known = knows(table, owner), proxied = known && control_proxied(record->control);

		held = life_held(life, life_byte(owner), 1);
		if (held < 0)
			return held;
		hidden[i] = (held && !known) || true_generation(table, i, held);
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

		if (token && !knows(table, owner) && !hidden[owner_index(owner)] && !is_leftover(table, token))
			add(report, MTLSHM_DAMAGE_TOKEN, i, token);
	}
	if (semaphore) {
		bool possible = knows(table, semaphore) || hidden[owner_index(semaphore)];

		held = possible ? life_held(life, life_byte(semaphore), 1) : 0;
		if (!held)
			add(report, MTLSHM_DAMAGE_SEMAPHORE, 0, table->header.semaphore);
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

static int examine(const struct life *life, struct mtlshm_segment *table, struct report *report)
{
	int64_t size = read_table(life, table);
	int held, stale;

	if (size < 0)
		return (int)size;
	if (table->header.fingerprint != segment_fingerprint()) {
		bool ours = !memcmp(table->header.magic, segment_magic, sizeof(segment_magic));

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

static int enter(struct life *life, const char *path, int mode)
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
	int rc = table ? enter(&life, path, O_RDONLY) : -ENOMEM;

	if (!rc) {
		rc = examine(&life, table, &report);
		life_leave(&life);
	}
	free(table);
	return rc ? rc : report.count;
}

/* No errno, since unlink(2) may fail with any: the file is in use, so it stays. */
enum { IN_USE = 1 };

/* Remove the file, if nobody uses it: no lock is held on any byte of it, since those of another layout may be anywhere, and
 * no instance is in it that has none. */
static int remove_unused(const char *path, const struct life *life, const struct mtlshm_segment *table)
{
	struct stat mine, named;
	int rc = life_take(life, MTLSHM_BURIAL_BYTE);

	if (!rc)
		rc = life_locked(life);
	if (rc)
		return rc < 0 ? rc : IN_USE;
	rc = table->header.fingerprint == segment_fingerprint() ? 0 : layout_proxied(life, &table->header);
	if (rc)
		return rc < 0 ? rc : IN_USE;
	for (uint32_t i = 0; table->header.fingerprint == segment_fingerprint() && i < MTLSHM_INSTANCES; i++)
		if (control_proxied(table->instances[i].control))
			return IN_USE;
	if (fstat(life->fd, &mine) || lstat(path, &named))
		return failure("look at", path);
	if (mine.st_dev != named.st_dev || mine.st_ino != named.st_ino)
		return -ESRCH;
	return unlink(path) ? failure("remove", path) : 0;
}

static int write_field(const struct life *life, uint32_t offset, const void *right, size_t size)
{
	ssize_t written = pwrite(life->fd, right, size, (off_t)offset);

	if (written >= 0)
		errno = EIO;
	return written == (ssize_t)size ? 0 : failure("write the segment's header", "");
}

/* As many as this host can have, but no fewer than there are in use: the view of who mends it may be a container's. */
static int true_lcores(const struct mtlshm_segment *table, uint32_t *lcores)
{
	int rc = segment_lcores(NULL, lcores);

	for (uint32_t i = *lcores; !rc && i < MTLSHM_LCORES; i++)
		if (knows(table, owner_of(table->lcores[i].owner)))
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
		return write_field(life, offset, segment_magic, sizeof(segment_magic));
	case offsetof(struct mtlshm_header, version):
		return write_field(life, offset, &version, sizeof(version));
	case offsetof(struct mtlshm_header, size):
		return write_field(life, offset, &size, sizeof(size));
	case offsetof(struct mtlshm_header, lcores):
		rc = true_lcores(table, &lcores);
		return rc ? rc : write_field(life, offset, &lcores, sizeof(lcores));
	default:
		return -EOPNOTSUPP;
	}
}

static int change(uint64_t *word, uint64_t from, uint64_t to)
{
	return __atomic_compare_exchange_n(word, &from, to, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED) ? 0 : -ESRCH;
}

static int mend_state(const char *path, const struct life *life, struct mtlshm_segment *live,
		      const struct mtlshm_segment *table)
{
	uint32_t state = table->header.state;
	int rc = state == MTLSHM_RETIRED ? remove_unused(path, life, table) : IN_USE;

	if (rc != IN_USE)
		return rc;
	rc = life_take(life, MTLSHM_BURIAL_BYTE); /* once more: another may hold it, who is about to remove the file */
	if (rc)
		return rc;
	return __atomic_compare_exchange_n(&live->header.state, &state, MTLSHM_IN_USE, false, __ATOMIC_SEQ_CST,
					   __ATOMIC_RELAXED)
		       ? 0
		       : -ESRCH;
}

/* A record in no state, of nobody: FREE, for the next. Its lock keeps newcomers out meanwhile. */
static int mend_record(const struct life *life, struct mtlshm_segment *live, uint32_t index, uint64_t control)
{
	int rc = life_share(life, life_byte(owner_make(index, 0)));

	return rc ? rc : change(&live->instances[index].control, control, control_after(control));
}

static int mend_hidden(const struct life *life, struct mtlshm_segment *live, const struct mtlshm_segment *table,
		       uint32_t index)
{
	uint64_t control = table->instances[index].control, generation;
	int held = life_held(life, life_byte(owner_make(index, 0)), 1);

	if (held < 0)
		return held;
	generation = true_generation(table, index, held);
	if (!generation)
		return -EOPNOTSUPP; /* it has no lcore, and its next registration will be in another record */
	return change(&live->instances[index].control, control,
		      control_make(generation, held ? MTLSHM_LIVE : MTLSHM_PROXIED));
}

static int mend_in_table(const char *path, const struct life *life, const struct mtlshm_segment *table,
			 const struct mtlshm_damage *damage)
{
	struct mtlshm_segment *live =
		mmap(NULL, sizeof(*live), PROT_READ | PROT_WRITE, MAP_SHARED, life->fd, 0);
	struct watched *watched;
	int rc = -EOPNOTSUPP;

	if (live == MAP_FAILED)
		return failure("map", path);
	watched = fault_watch(live);
	if (!watched) {
		munmap(live, sizeof(*live));
		return -ENOMEM;
	}
	switch (damage->kind) {
	case MTLSHM_DAMAGE_STATE:
	case MTLSHM_DAMAGE_RETIRED:
		rc = mend_state(path, life, live, table);
		break;
	case MTLSHM_DAMAGE_SEMAPHORE:
		rc = change(&live->header.semaphore, damage->value, 0); /* sleepers look again within 20 ms */
		break;
	case MTLSHM_DAMAGE_RECORD:
		rc = mend_record(life, live, damage->index, damage->value);
		break;
	case MTLSHM_DAMAGE_HIDDEN:
		rc = mend_hidden(life, live, table, damage->index);
		break;
	case MTLSHM_DAMAGE_TOKEN:
		rc = change(&live->lcores[damage->index].owner, damage->value, 0);
		break;
	}
	if (fault_seen(watched))
		rc = -EBADMSG;
	fault_forget(watched); /* first: what is mapped there next is none of ours */
	munmap(live, sizeof(*live));
	return rc;
}

/* Whoever is dead is collected as always. */
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

/* 0, IN_USE or LIFE_TAKEN (somebody who lives would lose), or a negative errno. */
static int mend(const char *path, const struct life *life, const struct mtlshm_segment *table,
		const struct mtlshm_damage *damage)
{
	switch (damage->kind) {
	case MTLSHM_DAMAGE_FOREIGN: /* may be dear to somebody */
		return -EOPNOTSUPP;
	case MTLSHM_DAMAGE_LAYOUT:
	case MTLSHM_DAMAGE_SHORT:
	case MTLSHM_DAMAGE_BOOT:
		return remove_unused(path, life, table);
	case MTLSHM_DAMAGE_HEADER:
		return mend_header(life, table, damage->index);
	default:
		return mend_in_table(path, life, table, damage);
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
	rc = enter(&life, path, O_RDWR);
	if (!rc) {
		rc = examine(&life, &now->table, &report);
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
