/* SPDX-License-Identifier: BSD-3-Clause */
#include "host.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "assertion.h"
#include "failure.h"

static int open_file(const struct mtlshm_host *host, int mode)
{
	return open(host->path, mode | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
}

/* `failed`: there is no st. */
static int check_file(const struct mtlshm_host *host, const struct stat *st, bool failed)
{
	if (failed)
		return errno == ENOENT ? -ESTALE : failure("open", host->path);
	if (st->st_dev != host->file.device || st->st_ino != host->file.inode)
		return -ESTALE;
	if (segment_lost(host) || (uint64_t)st->st_size < sizeof(struct mtlshm_segment))
		return -EBADMSG;
	return 0;
}

int host_enter(struct life *life, const struct mtlshm_host *host, int mode)
{
	struct stat st;
	int rc;

	life_guard(life);
	life->fd = open_file(host, mode);
	rc = check_file(host, &st, life->fd < 0 || fstat(life->fd, &st));
	if (rc)
		life_leave(life);
	return rc;
}

/* A forked child has the descriptor too. Its locks would be its parent's, so it opens one of its own. */
static int keep_open(struct mtlshm_host *host)
{
	if (host->entry >= 0 && host->entry_process == life_adopt())
		return 0;
	host_forget(host);
	host->entry = open_file(host, O_RDWR);
	host->entry_process = life_adopt();
	return host->entry < 0 ? -1 : 0;
}

int host_reenter(struct life *life, struct mtlshm_host *host)
{
	struct stat st;
	int rc;

	life_guard(life);
	/* What is at the path is asked each time, and that it is the file that was opened: it is mapped, so its number is no other's. */
	rc = check_file(host, &st, keep_open(host) || lstat(host->path, &st));
	if (rc) {
		host_forget(host);
		life_leave(life);
		return rc;
	}
	life->fd = host->entry;
	return 0;
}

void host_releave(struct life *life)
{
	while (life->locks)
		life_drop(life, life->locked[0]);
	life->fd = -1;
	life_leave(life);
}

void host_forget(struct mtlshm_host *host)
{
	assert(life_guarded());
	if (host->entry >= 0)
		close(host->entry);
	host->entry = -1;
}
