/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Our layout in one number, and segments of other layouts.
 *
 * After an upgrade the file of the last version is still there, and after a downgrade that of the next one. If
 * nobody lives in it, it is in the way and of no use; so any process that may make a segment removes it. If somebody does, it
 * is the truth about the lcores of this host, and a second table beside it would grant them twice: then it is an error.
 *
 * WHETHER ANYBODY LIVES can be told of an unknown layout by what all layouts have in common, from the second on: the
 * byte locks (no lock at all is held on the file, wherever that layout has them), the control word first in each record, and
 * a header that says where the records are, and where in a record its kind is. The first layout has fixed numbers for that.
 *   Records of proxied processes have no lock. Only a daemon can tell whether such a process lives, so here it does. The
 * pool of the legacy table is no process: the next daemon finds in that table what was lent.
 *
 * REMOVING races with processes that register in the old layout meanwhile. It goes as in retire.c: the burial lock, a look,
 * the mark RETIRED, a second look, unlink; the mark and the burial byte are at the same place in all layouts. Killed after
 * the mark, what is left is a retired segment of another layout, which nobody can register in: the next one to come
 * removes it.
 */
#include "layout.h"

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "assertion.h"
#include "failure.h"
#include "nap.h"
#include "token.h"

const char layout_magic[8] = "MTLSHM\r\n";

/* FNV-1a over every size and offset of the layout. */
uint64_t layout_fingerprint(void)
{
#define AT(type, field) offsetof(struct type, field)
	/* clang-format off */
	const uint64_t layout[] = {
		MTLSHM_LAYOUT_VERSION, MTLSHM_DEPTH, MTLSHM_TYPE_BITS, MTLSHM_INDEX_BITS, MTLSHM_LIFE_BASE,
		MTLSHM_DAEMON_BYTE, MTLSHM_BURIAL_BYTE, MTLSHM_INSTANCES, MTLSHM_LCORES, MTLSHM_EVENTS,
		sizeof(struct mtlshm_segment),
		AT(mtlshm_segment, header), AT(mtlshm_segment, instances), AT(mtlshm_segment, lcores),
		AT(mtlshm_segment, events),
		sizeof(struct mtlshm_header), AT(mtlshm_header, magic), AT(mtlshm_header, version),
		AT(mtlshm_header, lcores), AT(mtlshm_header, fingerprint), AT(mtlshm_header, size),
		AT(mtlshm_header, created_ns), AT(mtlshm_header, boot_id), AT(mtlshm_header, state),
		AT(mtlshm_header, doorbell), AT(mtlshm_header, records_at), AT(mtlshm_header, record_size),
		AT(mtlshm_header, records), AT(mtlshm_header, kind_at), AT(mtlshm_header, semaphore), AT(mtlshm_header, registered),
		AT(mtlshm_header, collected), AT(mtlshm_header, recovered), AT(mtlshm_header, takeovers),
		AT(mtlshm_header, events), AT(mtlshm_header, claims), AT(mtlshm_header, releases),
		sizeof(struct mtlshm_record), AT(mtlshm_record, control), AT(mtlshm_record, registered_ns),
		AT(mtlshm_record, parent), AT(mtlshm_record, kind), AT(mtlshm_record, process), AT(mtlshm_record, key),
		AT(mtlshm_record, claims), AT(mtlshm_record, releases),
		sizeof(struct mtlshm_process), AT(mtlshm_process, start_ticks),
		AT(mtlshm_process, pid_namespace), AT(mtlshm_process, pidfd_inode), AT(mtlshm_process, pid),
		AT(mtlshm_process, uid), AT(mtlshm_process, comm), AT(mtlshm_process, hostname),
		AT(mtlshm_process, label),
		sizeof(struct mtlshm_lcore), AT(mtlshm_lcore, owner), AT(mtlshm_lcore, note),
		sizeof(struct mtlshm_event), AT(mtlshm_event, number), AT(mtlshm_event, seal), AT(mtlshm_event, when_ns),
		AT(mtlshm_event, owner), AT(mtlshm_event, parent), AT(mtlshm_event, pid_namespace), AT(mtlshm_event, pid),
		AT(mtlshm_event, uid), AT(mtlshm_event, kind), AT(mtlshm_event, instance_kind), AT(mtlshm_event, lcores),
		AT(mtlshm_event, comm), AT(mtlshm_event, hostname), AT(mtlshm_event, label), AT(mtlshm_event, text),
	};
	/* clang-format on */
#undef AT
	const unsigned char *bytes = (const unsigned char *)layout;
	uint64_t hash = UINT64_C(0xcbf29ce484222325);

	for (size_t i = 0; i < sizeof(layout); i++)
		hash = (hash ^ bytes[i]) * UINT64_C(0x100000001b3);
	return hash;
}

bool layout_is_ours(const struct mtlshm_header *header)
{
	return header->version == MTLSHM_LAYOUT_VERSION && header->fingerprint == layout_fingerprint() &&
	       header->size == sizeof(struct mtlshm_segment);
}

/* How long to sleep when it is somebody else's turn to remove the file. */
#define BURIAL_NAP_NS 1000000

/* More records than any layout will have, and larger ones: what says more is no header. */
#define COMMON_HEADER 128
#define MOST_RECORDS 4096
#define LARGEST_RECORD 4096

struct geometry {
	uint32_t at, size, count, kind_at;
};

/* Where the records of a layout are; false: its header makes no sense. */
static bool read_geometry(const struct mtlshm_header *header, struct geometry *geometry)
{
	if (header->version == 1)
		*geometry = (struct geometry){.at = 256, .size = 256, .count = 256, .kind_at = 16};
	else
		*geometry = (struct geometry){.at = header->records_at,
					      .size = header->record_size,
					      .count = header->records,
					      .kind_at = header->kind_at};
	return geometry->at >= COMMON_HEADER && geometry->at <= MOST_RECORDS * LARGEST_RECORD && geometry->count &&
	       geometry->count <= MOST_RECORDS && geometry->size <= LARGEST_RECORD &&
	       geometry->kind_at >= sizeof(uint64_t) && geometry->kind_at + sizeof(uint32_t) <= geometry->size;
}

int layout_proxied(const struct life *life, const struct mtlshm_header *header)
{
	struct geometry geometry;
	char record[LARGEST_RECORD];
	uint64_t control;
	uint32_t kind;

	if (!read_geometry(header, &geometry))
		return 1;
	for (uint32_t i = 0; i < geometry.count; i++) {
		ssize_t length = pread(life->fd, record, geometry.size, geometry.at + (off_t)i * geometry.size);

		if (length < 0)
			return failure("read the segment", "");
		if (length != (ssize_t)geometry.size) /* cut short: nobody can use it, but its users may not know yet */
			return 1;
		memcpy(&control, record, sizeof(control));
		memcpy(&kind, record + geometry.kind_at, sizeof(kind));
		if (control_proxied(control) && kind != MTLSHM_KIND_POOL)
			return 1;
	}
	return 0;
}

static int in_use(const struct life *life, const struct mtlshm_header *header)
{
	int rc = layout_proxied(life, header);

	return rc ? rc : life_locked(life);
}

static int mark(const struct life *life, const char *path, uint32_t state)
{
	assert(life_holds(life, MTLSHM_BURIAL_BYTE));
	return pwrite(life->fd, &state, sizeof(state), offsetof(struct mtlshm_header, state)) == sizeof(state)
		       ? 0
		       : failure("write", path);
}

/* Under the burial lock. */
static int remove_it(const struct life *life, const char *path, uint32_t *version)
{
	struct mtlshm_header header;
	struct stat mine, named;
	int rc;

	if (fstat(life->fd, &mine) || pread(life->fd, &header, sizeof(header), 0) < 0)
		return failure("read", path);
	if (lstat(path, &named) || mine.st_dev != named.st_dev || mine.st_ino != named.st_ino)
		return 0; /* somebody else was faster */
	if (memcmp(header.magic, layout_magic, sizeof(layout_magic)))
		return LAYOUT_IN_USE; /* it has become something else */
	/* Since the caller looked, somebody else has removed that one and made ours. (Once this counted as in use, and of
	 * twenty that came at once some were turned away.) */
	if (layout_is_ours(&header))
		return 0;
	if (header.fingerprint == layout_fingerprint())
		return LAYOUT_IN_USE; /* ours, and damaged: not for us to remove */
	rc = in_use(life, &header);
	if (!rc)
		rc = mark(life, path, MTLSHM_RETIRED);
	if (rc)
		return rc < 0 ? rc : LAYOUT_IN_USE;
	rc = in_use(life, &header);
	if (!rc && !unlink(path)) {
		*version = header.version;
		return 0;
	}
	if (!rc)
		rc = failure("remove", path);
	mark(life, path, MTLSHM_IN_USE);
	return rc < 0 ? rc : LAYOUT_IN_USE;
}

int layout_replace(const char *path, uint32_t *version)
{
	struct life life;
	bool taken = false;
	int rc;

	*version = 0;
	life_guard(&life);
	life.fd = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
	if (life.fd < 0) {
		rc = errno == ENOENT ? 0 : LAYOUT_IN_USE; /* not ours to remove */
	} else {
		rc = life_take(&life, MTLSHM_BURIAL_BYTE);
		taken = rc == LIFE_TAKEN;
		if (!rc)
			rc = remove_it(&life, path, version);
	}
	life_leave(&life);
	if (taken) { /* the holder lives, and is removing it */
		nap(BURIAL_NAP_NS);
		rc = 0;
	}
	return rc;
}
