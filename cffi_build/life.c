/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The life lock: how anyone can know that a process is dead.
 *
 * An instance lives as long as an open-file-description (OFD) write lock on its byte of the segment file.
 * Such a lock ends when the last reference to its description goes. References are file descriptors and
 * mappings; ours shall be exactly one mapping, of one page, PROT_NONE, not inherited by fork:
 *
 *   - no descriptor, so closefrom() and a hunt for leaked descriptors cannot end it, and exec'd children
 *     cannot keep it;
 *   - MADV_DONTFORK, so forked children cannot keep it;
 *   - the kernel drops a mapping when the address space goes: at exit, SIGKILL, exec, and not when the main
 *     thread ends while others run.
 *
 * The table is mapped through another open: a forked child does inherit that mapping, and with it that
 * description.
 *
 * Three dangers remain.
 *
 * A fork in another thread, between open() and close() here, would copy the descriptor into a child that
 * outlives us. So every visit runs under a mutex which a pthread_atfork() handler takes as well. A child
 * made by a bare clone() or _Fork() in that window escapes it: until that child execs or exits, its parent's
 * death goes unnoticed, which is the safe side.
 *
 * A forked child has a copy of the handle in its memory and could use its parent's identity. The epoch page
 * is wiped by the kernel on every fork, bare clone() included (MADV_WIPEONFORK, Linux 4.14; the atfork
 * handler does it for older kernels), so a handle's epoch no longer matches there.
 *
 * A thread cancelled inside would leave the mutex locked: cancellation waits until the visit is over.
 *
 * WHO TAKES WHAT. The owner holds a write lock. A collector takes a read lock: it is granted only if no
 * owner lives, it keeps newcomers out, and several collectors can have it, so none mistakes another for an
 * owner. A newcomer takes the read lock, collects what it finds, and only then converts it to a write lock;
 * the conversion is atomic and fails if another reader is there, in which case the newcomer goes elsewhere.
 * Hence nobody ever holds a write lock on the record of a dead instance, not for an instant, and LIFE_TAKEN
 * for a reader always means a living owner. With write locks all round, a newcomer stopped between lock and
 * look would make a dead owner seem alive for as long as it is stopped.
 */
#include "life.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "failure.h"
#include "segment.h"

static pthread_once_t once = PTHREAD_ONCE_INIT;
static pthread_mutex_t guard = PTHREAD_MUTEX_INITIALIZER;
static int init_error;
static uint64_t *epoch_page; /* one page, wiped in forked children */
static uint64_t last_epoch;  /* ordinary memory: a child counts on from its parent's */
const uint64_t *life_epoch = &last_epoch;

static void before_fork(void)
{
	pthread_mutex_lock(&guard);
}

static void after_fork_in_parent(void)
{
	pthread_mutex_unlock(&guard);
}

static void after_fork_in_child(void)
{
	*epoch_page = 0;
	pthread_mutex_unlock(&guard);
}

static void init(void)
{
	long page = sysconf(_SC_PAGESIZE);
	void *memory = mmap(NULL, (size_t)page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (memory == MAP_FAILED) {
		init_error = -errno;
		return;
	}
	madvise(memory, (size_t)page, MADV_WIPEONFORK);
	epoch_page = memory;
	*epoch_page = ++last_epoch;
	life_epoch = epoch_page;
	init_error = -pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
}

int life_init(void)
{
	pthread_once(&once, init);
	return init_error;
}

uint64_t life_adopt(void)
{
	if (!*epoch_page)
		__atomic_store_n(epoch_page, ++last_epoch, __ATOMIC_RELAXED);
	return *epoch_page;
}

void life_guard(struct life *life)
{
	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &life->cancel_state);
	pthread_mutex_lock(&guard);
	life->fd = -1;
}

int life_enter(struct life *life, const struct mtlshm_host *host, int mode)
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

void life_leave(struct life *life)
{
	if (life->fd >= 0)
		close(life->fd);
	pthread_mutex_unlock(&guard);
	pthread_setcancelstate(life->cancel_state, NULL);
}

/* fcntl_locking(2): l_pid must be 0 for OFD locks. */
static int lock(const struct life *life, int command, short type, off_t byte, off_t count, struct flock *lock)
{
	*lock = (struct flock){.l_type = type, .l_whence = SEEK_SET, .l_start = byte, .l_len = count};
	if (!fcntl(life->fd, command, lock))
		return 0;
	return errno == EAGAIN ? -EAGAIN : failure("lock bytes of the segment", "");
}

/* fcntl_locking(2): POSIX lets a conflict be EAGAIN or EACCES; Linux says EAGAIN. */
static int try_lock(const struct life *life, short type, off_t byte)
{
	struct flock unused;
	int rc = lock(life, F_OFD_SETLK, type, byte, 1, &unused);

	return rc == -EAGAIN ? LIFE_TAKEN : rc;
}

int life_share(const struct life *life, off_t byte)
{
	return try_lock(life, F_RDLCK, byte);
}

int life_take(const struct life *life, off_t byte)
{
	return try_lock(life, F_WRLCK, byte);
}

void life_drop(const struct life *life, off_t byte)
{
	struct flock unused;

	lock(life, F_OFD_SETLK, F_UNLCK, byte, 1, &unused);
}

/* Is there a lock that one of `type` would conflict with? */
static int in_the_way(const struct life *life, short type, off_t byte, off_t count)
{
	struct flock found;
	int rc = lock(life, F_OFD_GETLK, type, byte, count, &found);

	return rc ? rc : found.l_type != F_UNLCK;
}

int life_held(const struct life *life, off_t byte, off_t count)
{
	return in_the_way(life, F_RDLCK, byte, count);
}

int life_locked(const struct life *life)
{
	return in_the_way(life, F_WRLCK, 0, 0);
}

int life_pin(const struct life *life, void **pin)
{
	size_t page = (size_t)sysconf(_SC_PAGESIZE);
	void *memory = mmap(NULL, page, PROT_NONE, MAP_SHARED, life->fd, 0);
	int rc;

	if (memory == MAP_FAILED)
		return failure("map a page of the segment", "");
	if (madvise(memory, page, MADV_DONTFORK)) {
		rc = failure("keep a page of the segment from children", "");
		munmap(memory, page);
		return rc;
	}
	*pin = memory;
	return 0;
}

void life_unpin(void *pin)
{
	if (pin)
		munmap(pin, (size_t)sysconf(_SC_PAGESIZE));
}

off_t life_byte(uint64_t owner)
{
	return (off_t)MTLSHM_LIFE_BASE + owner_index(owner);
}
