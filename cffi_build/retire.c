/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The end of a segment: marked as retired, then removed.
 *
 * A file without a name lives on for those that have it mapped, and they would share out the same
 * cores as the users of a new file. So a segment is first marked retired, which is refused while any life
 * lock is held; an instance that registers at that moment either is seen here or sees the mark itself (both
 * sides store, then load, sequentially consistent). Only then is the name removed. If two processes did that, the
 * slower could remove the name of the new segment; so the one that removes the name holds the burial lock of the
 * inode that the name points to, and has looked again under it.
 *   A process that dies between mark and removal leaves a retired segment with a name. The next to create one
 * buries it; or, if a living instance shows that the mark was premature, takes the mark off.
 *
 * THE BURIAL LOCK protects the mark (header.state) and the removal of the name: both change only under it, so its holder
 * can rely on them. It is held for one visit, or, by a handle that has retired its segment, through the pin in
 * host->burial, which the guard of life.h protects.
 */
#include "retire.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "assertion.h"
#include "failure.h"
#include "host.h"
#include "life.h"
#include "nap.h"

/* How long to sleep when it is somebody else's turn to remove the file. */
#define BURIAL_NAP_NS 1000000

bool retire_named(const struct mtlshm_host *host)
{
	struct stat st;

	return !lstat(host->path, &st) && st.st_dev == host->file.device && st.st_ino == host->file.inode;
}

bool retire_marked(const struct mtlshm_host *host)
{
	return __atomic_load_n(&host->segment->header.state, __ATOMIC_SEQ_CST) == MTLSHM_RETIRED;
}

/* Is the burial lock this handle's? In a forked child it is not: the pin stays with the parent. */
static bool is_pinned(const struct mtlshm_host *host)
{
	assert(life_guarded());
	return host->burial && host->burial_process == life_process();
}

/* `life` holds the burial lock, or is NULL and the handle's pin does. */
static void set_state(struct mtlshm_host *host, const struct life *life, enum mtlshm_segment_state state)
{
	assert(life ? life_holds(life, MTLSHM_BURIAL_BYTE) : is_pinned(host));
	__atomic_store_n(&host->segment->header.state, state, __ATOMIC_SEQ_CST);
}

/* Somebody with a life lock, or somebody proxied. */
static int anyone_alive(const struct mtlshm_host *host, const struct life *life)
{
	for (uint32_t i = 0; i < MTLSHM_INSTANCES; i++)
		if (control_proxied(__atomic_load_n(&host->segment->instances[i].control, __ATOMIC_SEQ_CST)))
			return 1;
	return segment_lost(host) ? -EBADMSG : life_held(life, MTLSHM_LIFE_BASE, MTLSHM_INSTANCES);
}

int retire_bury(struct mtlshm_host *host)
{
	struct life life;
	bool taken;
	int rc = host_enter(&life, host, O_RDWR);

	if (rc)
		return rc == -ESTALE ? 0 : rc; /* replaced, or whatever else: the next look tells */
	rc = life_take(&life, MTLSHM_BURIAL_BYTE);
	taken = rc == LIFE_TAKEN;
	/* The holder before us may have taken the mark off, and others have registered since. */
	if (!rc && retire_named(host) && retire_marked(host)) {
		rc = anyone_alive(host, &life);
		/* The file may be another user's, in a sticky directory: then it stays, and is in use. */
		if (rc > 0 || (!rc && unlink(host->path)))
			set_state(host, &life, MTLSHM_IN_USE);
	}
	life_leave(&life);
	if (taken)
		nap(BURIAL_NAP_NS); /* the holder lives, and removes it */
	return rc < 0 ? rc : 0;
}

static int refuse_the_living(const struct mtlshm_host *host, const struct life *life)
{
	int rc = anyone_alive(host, life);

	return rc > 0 ? -EBUSY : rc;
}

int mtlshm_retire(struct mtlshm_host *host)
{
	struct life life;
	bool pinned;
	int rc;

	failure_forget();
	if (host->read_only)
		return -EROFS;
	life_guard(&life);
	pinned = is_pinned(host);
	life_leave(&life);
	if (pinned)
		return 0;
	rc = host_enter(&life, host, O_RDWR);
	if (rc)
		return rc;
	rc = life_take(&life, MTLSHM_BURIAL_BYTE);
	if (!rc && !retire_named(host)) /* the holder before us may have removed it */
		rc = -ESTALE;
	if (!rc) /* before the mark, which would turn newcomers away for nothing */
		rc = refuse_the_living(host, &life);
	if (!rc) {
		set_state(host, &life, MTLSHM_RETIRED);
		rc = refuse_the_living(host, &life);
		if (!rc)
			rc = life_pin(&life, &host->burial);
		if (rc)
			set_state(host, &life, MTLSHM_IN_USE);
		else
			host->burial_process = life_adopt();
	}
	life_leave(&life);
	return rc == LIFE_TAKEN ? -EBUSY : rc;
}

void retire_undo(struct mtlshm_host *host)
{
	if (!is_pinned(host))
		return;
	if (retire_named(host)) /* the caller could not remove it, or did not */
		set_state(host, NULL, MTLSHM_IN_USE);
	life_unpin(host->burial);
}
