/* SPDX-License-Identifier: BSD-3-Clause */
#include "host.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>

#include "failure.h"

int host_enter(struct life *life, const struct mtlshm_host *host, int mode)
{
	struct stat st;
	int rc = 0;

	life_guard(life);
	life->fd = open(host->path, mode | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
	if (life->fd < 0 || fstat(life->fd, &st))
		rc = errno == ENOENT ? -ESTALE : failure("open", host->path);
	else if (st.st_dev != host->file.device || st.st_ino != host->file.inode)
		rc = -ESTALE;
	else if (segment_lost(host) || (uint64_t)st.st_size < sizeof(struct mtlshm_segment))
		rc = -EBADMSG;
	if (rc)
		life_leave(life);
	return rc;
}
