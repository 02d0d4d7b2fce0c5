/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The segment: made, found, checked. How it is removed is said in retire.c.
 *
 * MAKING. Fifty processes may find no segment at the same moment, and each may be killed at any line. So
 * the file is filled while it has no name (O_TMPFILE) and then linked to it; link is atomic and fails if
 * the name is taken, in which case the winner's file is opened like any other. Killed before the link, the
 * file vanishes with its last reference. Nobody ever sees a segment that is not complete, so one that is
 * not was damaged later, and is refused.
 *
 * O_CREAT is never used: with fs.protected_regular (proc_sys_fs(5), Linux 4.19) it fails on another user's
 * existing file in a sticky directory such as /dev/shm, for root too.
 *
 * READING. The header is checked with pread(), not in the mapping: a truncated file would answer with SIGBUS. What
 * becomes of a file that is truncated later is said in fault.c.
 *
 * OTHER BOOTS. A file on a disk can be left over from before the last boot; its boot id says so. But the id that a process
 * reads may be its container's own (systemd-nspawn, LXC), so alone it proves nothing: a process that holds a lock on the file is
 * of this boot, whatever the ids say, and nothing on a tmpfs outlives a boot. The id in the header never changes.
 */
#include "segment.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/magic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <time.h>
#include <unistd.h>

#include "failure.h"
#include "fault.h"
#include "host.h"
#include "layout.h"
#include "life.h"
#include "retire.h"
#include "topology.h"
#include "topology_cache.h"

#define GROUP "mtl"
#define MODE 0660
#define BOOT_ID "/proc/sys/kernel/random/boot_id"
#define BOOT_ID_LENGTH 36

/* How often to start over when the name appears and disappears under us. */
#define OPEN_TRIES 1000

/* What attach() and create() say, and go on from; no errno, since a system call may fail with any of those. */
enum { NO_FILE = 1, NAME_TAKEN = 1 };

/* Little-endian: the futex is the lower half of the semaphore. Lock-free: the table is shared by processes.
 * */
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "mtlshm needs a little-endian machine");
_Static_assert(__GCC_ATOMIC_LLONG_LOCK_FREE == 2, "mtlshm needs lock-free 64-bit atomics");
_Static_assert(sizeof(struct mtlshm_header) == 256, "whole cache lines");
_Static_assert(sizeof(struct mtlshm_record) == 320, "whole cache lines");
_Static_assert(sizeof(struct mtlshm_lcore) == 16, "four to a cache line");
_Static_assert(offsetof(struct mtlshm_header, semaphore) % 64 == 0, "on a line of its own");
_Static_assert(MTLSHM_INSTANCES <= 1 << MTLSHM_INDEX_BITS, "an index fits a token");
_Static_assert(MTLSHM_LCORE_TYPES <= 1 << MTLSHM_TYPE_BITS, "a type fits a token");

/* boot_id[] is left empty where /proc cannot say. */
static void read_boot_id(char boot_id[40])
{
	int fd = open(BOOT_ID, O_RDONLY | O_CLOEXEC);

	memset(boot_id, 0, 40);
	if (fd < 0)
		return;
	if (read(fd, boot_id, BOOT_ID_LENGTH) != BOOT_ID_LENGTH)
		memset(boot_id, 0, 40);
	close(fd);
}

static bool outlives_boots(const struct statfs *system)
{
	return (uint32_t)system->f_type != TMPFS_MAGIC && (uint32_t)system->f_type != RAMFS_MAGIC;
}

int segment_stale(const struct life *life, const struct mtlshm_header *header)
{
	struct statfs system;
	char boot_id[40];
	int held;

	read_boot_id(boot_id);
	if (!boot_id[0] || !header->boot_id[0] || !memcmp(boot_id, header->boot_id, sizeof(boot_id)))
		return 0;
	if (fstatfs(life->fd, &system))
		return -errno;
	held = outlives_boots(&system) ? life_held(life, 0, 0) : 1;
	return held < 0 ? held : !held;
}

int segment_lcores(const char *sysfs, uint32_t *lcores)
{
	int rc = topology_possible(sysfs, lcores);

	if (!rc && *lcores < MTLSHM_LCORES_MIN)
		*lcores = MTLSHM_LCORES_MIN;
	return rc;
}

static int write_header(int fd, const char *sysfs)
{
	struct mtlshm_header header = {
		.version = MTLSHM_LAYOUT_VERSION,
		.fingerprint = layout_fingerprint(),
		.size = sizeof(struct mtlshm_segment),
		.state = MTLSHM_IN_USE,
		.records_at = offsetof(struct mtlshm_segment, instances),
		.record_size = sizeof(struct mtlshm_record),
		.records = MTLSHM_INSTANCES,
		.kind_at = offsetof(struct mtlshm_record, kind),
	};
	struct timespec now;
	ssize_t written;
	int rc = segment_lcores(sysfs, &header.lcores);

	if (rc)
		return rc;
	memcpy(header.magic, layout_magic, sizeof(layout_magic));
	read_boot_id(header.boot_id);
	clock_gettime(CLOCK_REALTIME, &now);
	header.created_ns = (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
	written = pwrite(fd, &header, sizeof(header), 0);
	if (written >= 0)
		errno = EIO;
	return written == sizeof(header) ? 0 : failure("write the header of a new segment", "");
}

/* By reading group(5): getgrnam(3) loads modules, which crash a static program, and may ask the network. */
static bool find_group(gid_t *gid)
{
	FILE *file = fopen("/etc/group", "re");
	char *line = NULL, *number;
	size_t size = 0;
	bool found = false;

	while (file && !found && getline(&line, &size, file) > 0) {
		if (strncmp(line, GROUP ":", strlen(GROUP ":")))
			continue;
		number = strchr(line + strlen(GROUP ":"), ':');
		found = number && sscanf(number + 1, "%u:", gid) == 1;
	}
	free(line);
	if (file)
		fclose(file);
	return found;
}

/* Group and mode. A caller that may not give files to the group, or in whose user namespace that group has no number
 * (EINVAL), keeps the segment to its own. */
static int set_access(int fd)
{
	gid_t group;

	if (find_group(&group) && fchown(fd, (uid_t)-1, group) && errno != EPERM && errno != EINVAL)
		return failure("give a new segment to the group " GROUP, "");
	return fchmod(fd, MODE) ? failure("set the mode of a new segment", "") : 0;
}

/* The locks that everything rests on: F_OFD_GETLK is EINVAL to a kernel that does not know them. */
static int try_locks(const struct life *life)
{
	int rc = life_held(life, MTLSHM_LIFE_BASE, 1);

	return rc == -EINVAL ? -EOPNOTSUPP : rc < 0 ? rc : 0;
}

/* Make the file and give it its name. NAME_TAKEN: somebody else was faster. */
static int create(const char *path, const char *sysfs)
{
	char directory[PATH_MAX], self[64];
	struct life query = {0};
	int fd, rc;

	snprintf(directory, sizeof(directory), "%.*s", (int)(strrchr(path, '/') - path) + 1, path);
	fd = open(directory, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	if (fd < 0 && errno == ENOENT)
		return failure_is(-ENOENT, directory,
				  "does not exist, so no segment can be made there: make the directory "
				  "(mkdir -p), or name another path");
	if (fd < 0) /* EISDIR: open(2) on a kernel or file system that does not know O_TMPFILE */
		return errno == EISDIR || errno == EOPNOTSUPP ? -EOPNOTSUPP : failure("make a file in", directory);
	query.fd = fd;
	rc = try_locks(&query);
	if (rc)
		goto out;
	/* Every page is allocated now, so that no access can fail for lack of room (SIGBUS) later. */
	do
		errno = posix_fallocate(fd, 0, sizeof(struct mtlshm_segment));
	while (errno == EINTR); /* tmpfs may give up for any signal */
	rc = errno ? failure("allocate a segment in", directory) : 0;
	if (!rc)
		rc = write_header(fd, sysfs);
	if (!rc)
		rc = set_access(fd);
	if (rc)
		goto out;
	/* By the way of /proc, since AT_EMPTY_PATH needs CAP_DAC_READ_SEARCH before Linux 6.10; that for a
	 * chroot without /proc. */
	snprintf(self, sizeof(self), "/proc/self/fd/%d", fd);
	if (linkat(AT_FDCWD, self, AT_FDCWD, path, AT_SYMLINK_FOLLOW) &&
	    (errno != ENOENT || linkat(fd, "", AT_FDCWD, path, AT_EMPTY_PATH)))
		rc = errno == EEXIST ? NAME_TAKEN : failure("give a new segment the name", path);
out:
	close(fd);
	return rc;
}

int segment_no_file(const char *path, int mode)
{
	static const struct {
		mode_t type;
		const char *words;
	} kinds[] = {
		{S_IFDIR, "is a directory, no mtlshm segment: name another path"},
		{S_IFLNK, "is a symbolic link, which is not followed: name what it leads to"},
		{S_IFSOCK, "is a socket, no mtlshm segment: name another path"},
		{S_IFIFO, "is a FIFO, no mtlshm segment: name another path"},
		{S_IFCHR, "is a device, no mtlshm segment: name another path"},
		{S_IFBLK, "is a device, no mtlshm segment: name another path"},
	};
	int error = errno;
	struct stat st;
	bool found = !lstat(path, &st);

	for (size_t i = 0; found && i < sizeof(kinds) / sizeof(kinds[0]); i++)
		if ((st.st_mode & S_IFMT) == kinds[i].type)
			return failure_is(-EBADMSG, path, kinds[i].words);
	errno = error;
	return failure(mode == O_RDONLY ? "open" : "open for reading and writing", path);
}

/* Is this file a segment that we understand? Everything but its state. */
static int check(const char *path, int fd, uint32_t *lcores)
{
	struct mtlshm_header header;
	struct life query = {.fd = fd};
	struct stat st;
	ssize_t length;
	int rc;

	if (fstat(fd, &st))
		return failure("look at", path);
	errno = EBADMSG;
	if (!S_ISREG(st.st_mode))
		return segment_no_file(path, O_RDONLY);
	length = pread(fd, &header, sizeof(header), 0);
	if (length < 0)
		return failure("read", path);
	if (length != sizeof(header))
		return -EBADMSG;
	if (memcmp(header.magic, layout_magic, sizeof(layout_magic)))
		return -EBADMSG;
	if (!layout_is_ours(&header))
		return -EPROTO;
	if ((uint64_t)st.st_size < header.size || header.lcores < MTLSHM_LCORES_MIN || header.lcores > MTLSHM_LCORES)
		return -EBADMSG;
	rc = try_locks(&query);
	if (!rc)
		rc = segment_stale(&query, &header);
	if (rc)
		return rc > 0 ? -ESTALE : rc;
	*lcores = header.lcores;
	return 0;
}

/* One attempt, under the guard. NO_FILE: there is none of that name. */
static int attach(struct mtlshm_host *host)
{
	int mode = host->read_only ? O_RDONLY : O_RDWR;
	int fd = open(host->path, mode | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
	struct stat st;
	int rc;

	if (fd < 0 && errno == ENOENT)
		return NO_FILE;
	if (fd < 0)
		return segment_no_file(host->path, mode);
	rc = check(host->path, fd, &host->lcores);
	if (rc)
		goto out;
	if (fstat(fd, &st)) {
		rc = failure("look at", host->path);
		goto out;
	}
	rc = fault_map(&host->watched, fd, host->read_only ? PROT_READ : PROT_READ | PROT_WRITE, host->path);
	if (rc)
		goto out;
	host->segment = fault_table(host->watched);
	host->file = (struct mtlshm_file){
		.device = st.st_dev, .inode = st.st_ino, .uid = st.st_uid, .gid = st.st_gid, .mode = st.st_mode};
out:
	close(fd);
	return rc;
}

/* Under the guard. */
static void detach(struct mtlshm_host *host)
{
	if (host->segment)
		fault_unmap(host->watched);
	host->segment = NULL;
}

static int attach_or_create(struct mtlshm_host *host, bool may_create)
{
	for (int i = 0; i < OPEN_TRIES; i++) {
		struct life guard;
		bool missing;
		int rc;

		life_guard(&guard);
		rc = attach(host);
		missing = rc == NO_FILE;
		if (missing)
			rc = may_create ? create(host->path, host->sysfs) : -ENOENT;
		life_leave(&guard);
		if (rc == -EPROTO && may_create) {
			uint32_t version;

			rc = layout_replace(host->path, &version);
			if (rc)
				return rc < 0 ? rc : -EPROTO;
			if (version)
				host->replaced = version;
			continue;
		}
		if (rc < 0)
			return rc;
		if (missing) /* attach to it, whether we made it or another */
			continue;
		if (!retire_marked(host) && retire_named(host))
			return 0;
		if (retire_marked(host))
			rc = may_create ? retire_bury(host) : -ESTALE;
		life_guard(&guard);
		detach(host);
		life_leave(&guard);
		if (rc)
			return rc;
	}
	return -ESTALE;
}

uint32_t mtlshm_replaced(const struct mtlshm_host *host)
{
	return host->replaced;
}

/* The process may change its directory later. */
static char *absolute(const char *path)
{
	char directory[PATH_MAX], *result;

	if (path[0] == '/')
		return strdup(path);
	if (!getcwd(directory, sizeof(directory)) || asprintf(&result, "%s/%s", directory, path) < 0)
		return NULL;
	return result;
}

static void host_free(struct mtlshm_host *host)
{
	struct life guard;

	life_guard(&guard);
	retire_undo(host);
	host_forget(host);
	detach(host);
	topology_forget(host);
	life_leave(&guard);
	free(host->sysfs);
	free(host->path);
	free(host);
}

int mtlshm_open(struct mtlshm_host **result, const char *path, uint32_t flags, const char *sysfs)
{
	bool may_create = flags & MTLSHM_CREATE;
	struct mtlshm_host *host;
	int rc = life_init();

	failure_forget();
	if (rc)
		return rc;
	if (!path)
		path = mtlshm_default_path();
	if (!path)
		return -errno;
	if (flags & ~(uint32_t)(MTLSHM_CREATE | MTLSHM_READ_ONLY) || strlen(path) >= PATH_MAX)
		return -EINVAL;
	host = calloc(1, sizeof(*host));
	if (!host)
		return -ENOMEM;
	host->read_only = flags & MTLSHM_READ_ONLY;
	host->entry = -1;
	host->path = absolute(path);
	if (!host->path || (sysfs && !(host->sysfs = absolute(sysfs))))
		rc = failure("find the current directory, in which is", path);
	else
		rc = attach_or_create(host, may_create);
	if (rc)
		host_free(host);
	else
		*result = host;
	return rc;
}

int mtlshm_close(struct mtlshm_host *host)
{
	if (__atomic_load_n(&host->instances, __ATOMIC_ACQUIRE))
		return -EBUSY;
	host_free(host);
	return 0;
}

void mtlshm_file(const struct mtlshm_host *host, struct mtlshm_file *file)
{
	*file = host->file;
}
