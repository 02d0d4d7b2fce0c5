/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The end of a segment: marked as retired, then removed.
 *
 * A file without a name lives on for those who have it mapped, and they would share out the same
 * cores as the users of a new file. So a segment is first marked retired, which is refused while any life
 * lock is held; an instance that registers at that moment either is seen here or sees the mark itself (both
 * sides store, then load, sequentially consistent). Only then is the name removed. If two did that, the
 * slower could remove the name of the new segment; so whoever removes the name holds the burial lock of the
 * inode that the name points to, and has looked again under it.
 * The mark too is set and taken off only under that lock, so that who has it can rely on the mark.
 *   One who dies between mark and removal leaves a retired segment with a name. The next to create one
 * buries it; or, if a living instance shows that the mark was premature, takes the mark off.
 */
#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "failure.h"
#include "life.h"
#include "nap.h"
#include "segment.h"

/* How long to sleep when it is somebody else's turn to remove the file. */
#define BURIAL_NAP_NS 1000000

bool segment_named(const struct mtlshm_host *host)
{
	struct stat st;

	return !lstat(host->path, &st) && st.st_dev == host->file.device && st.st_ino == host->file.inode;
}

bool segment_retired(const struct mtlshm_host *host)
{
	return __atomic_load_n(&host->segment->header.state, __ATOMIC_SEQ_CST) == MTLSHM_RETIRED;
}

static void set_state(struct mtlshm_host *host, enum mtlshm_segment_state state)
{
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

/* Somebody retired this segment. Remove it if he died over it; or take the mark off if somebody lives, or if
 * we may not remove it (another user's file in a sticky directory). 0: see anew. */
int segment_bury(struct mtlshm_host *host)
{
	struct life life;
	bool taken;
	int rc = life_enter(&life, host, O_RDWR);

	if (rc)
		return rc == -ESTALE ? 0 : rc; /* replaced, or whatever else: the next look tells */
	rc = life_take(&life, MTLSHM_BURIAL_BYTE);
	taken = rc == LIFE_TAKEN;
	/* He may have taken the mark off before he let go of the lock, and others have registered since. */
	if (!rc && segment_named(host) && segment_retired(host)) {
		rc = anyone_alive(host, &life);
		if (rc > 0 || (!rc && unlink(host->path)))
			set_state(host, MTLSHM_IN_USE);
	}
	life_leave(&life);
	if (taken)
		nap(BURIAL_NAP_NS); /* he lives; it is his to remove */
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
	int rc;

	failure_forget();
	if (host->read_only)
		return -EROFS;
	if (host->burial && host->burial_process == life_process())
		return 0;
	rc = life_enter(&life, host, O_RDWR);
	if (rc)
		return rc;
	rc = life_take(&life, MTLSHM_BURIAL_BYTE);
	if (!rc && !segment_named(host)) /* he who had the lock before may have removed it */
		rc = -ESTALE;
	if (!rc) /* so as not to turn away newcomers for nothing */
		rc = refuse_the_living(host, &life);
	if (!rc) {
		set_state(host, MTLSHM_RETIRED);
		rc = refuse_the_living(host, &life);
		if (!rc)
			rc = life_pin(&life, &host->burial);
		if (rc)
			set_state(host, MTLSHM_IN_USE);
		else
			host->burial_process = life_adopt();
	}
	life_leave(&life);
	return rc == LIFE_TAKEN ? -EBUSY : rc;
}

void segment_unretire(struct mtlshm_host *host)
{
	if (!host->burial || host->burial_process != life_process()) /* a forked child has not the pin */
		return;
	if (segment_named(host)) /* could not be removed, or was not */
		set_state(host, MTLSHM_IN_USE);
	life_unpin(host->burial);
}
