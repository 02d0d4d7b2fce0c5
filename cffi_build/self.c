/* SPDX-License-Identifier: BSD-3-Clause */
#include "self.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "assertion.h"
#include "host.h"
#include "life.h"

/* Pid, comm and start time from proc(5) stat: "pid (comm) state ..."; comm may hold spaces and parentheses.
 * A process without /proc is shown without them. */
static void read_self(struct mtlshm_process *self)
{
	char stat_line[1024], *open_paren, *close_paren, *field;
	struct stat st;
	ssize_t length = 0;
	int fd;

	*self = (struct mtlshm_process){.pid = getpid()};
	fd = (int)syscall(SYS_pidfd_open, getpid(), 0);
	if (fd >= 0) {
		if (!fstat(fd, &st))
			self->pidfd_inode = st.st_ino;
		close(fd);
	}
	if (!stat("/proc/self/ns/pid", &st))
		self->pid_namespace = st.st_ino;
	fd = open("/proc/self/stat", O_RDONLY | O_CLOEXEC);
	if (fd >= 0) {
		length = read(fd, stat_line, sizeof(stat_line) - 1);
		close(fd);
	}
	stat_line[length > 0 ? length : 0] = '\0';
	open_paren = strchr(stat_line, '(');
	close_paren = strrchr(stat_line, ')');
	if (!open_paren || !close_paren || close_paren < open_paren)
		return;
	*close_paren = '\0';
	strncpy(self->comm, open_paren + 1, sizeof(self->comm) - 1);
	field = close_paren + 1; /* the space before the third field */
	for (int n = 3; field && n < 22; n++)
		field = strchr(field + 1, ' ');
	if (field)
		self->start_ticks = strtoull(field, NULL, 10);
}

const struct mtlshm_process *self_describe(struct mtlshm_host *host, const char *label)
{
	struct mtlshm_process *self = &host->self;

	assert(life_guarded());
	if (host->self_process != life_adopt()) {
		read_self(self);
		host->self_process = life_adopt();
	}
	self->uid = geteuid();
	memset(self->hostname, 0, sizeof(self->hostname));
	gethostname(self->hostname, sizeof(self->hostname) - 1);
	memset(self->label, 0, sizeof(self->label));
	strncpy(self->label, label ? label : self->comm, sizeof(self->label) - 1);
	return self;
}
