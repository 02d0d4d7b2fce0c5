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
 *
 * THE GUARD is that mutex. It protects, in this process:
 *
 *   here              every descriptor of the segment's file, from open() to close(); writes of the epoch
 *   fault.c           the list of mapped tables: changes of it, and the table's munmap()
 *   host.h            burial, burial_process, self, self_process
 *   topology_cache.c  changes of the list of topologies that were read
 *
 * THE BYTES. What each protects in the segment, against other processes:
 *
 *   life byte of a record, write lock   FREE -> LIVE and PROXIED (instance.c). Its owner keeps it for life, except a
 *                                       proxied one, which has none.
 *   life byte of a record, read lock    LIVE -> FREE by a collector, and the words of the dead (lease.c, mend.c)
 *   burial byte                         header.state, and the removal of the file's name (retire.c, mend.c, layout.c)
 *   daemon byte                         that one record at most is LIVE as a daemon's (instance.c)
 *
 * Each function that touches one of these asserts that it is held: life_guarded(), life_holds(). Twice something was
 * changed outside: a table was unmapped before its entry in the list was taken off, and taken off without the guard.
 */
#include "life.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include "assertion.h"
#include "failure.h"
#include "token.h"

static pthread_once_t once = PTHREAD_ONCE_INIT;
static pthread_mutex_t guard = PTHREAD_MUTEX_INITIALIZER;
static _Thread_local bool guarded; /* by this thread */
static int init_error;
static uint64_t *epoch_page; /* one page, wiped in forked children */
static uint64_t last_epoch;  /* ordinary memory: a child counts on from its parent's */
const uint64_t *life_epoch = &last_epoch;

static void take_guard(void)
{
	pthread_mutex_lock(&guard);
	guarded = true;
}

static void give_guard(void)
{
	guarded = false;
	pthread_mutex_unlock(&guard);
}

bool life_guarded(void)
{
	return guarded;
}

static void after_fork_in_child(void)
{
	*epoch_page = 0;
	give_guard();
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
	init_error = -pthread_atfork(take_guard, give_guard, after_fork_in_child);
}

int life_init(void)
{
	pthread_once(&once, init);
	return init_error;
}

uint64_t life_adopt(void)
{
	assert(life_guarded());
	if (!*epoch_page)
		__atomic_store_n(epoch_page, ++last_epoch, __ATOMIC_RELAXED);
	return *epoch_page;
}

void life_guard(struct life *life)
{
	assert(!life_guarded()); /* else we would wait for ourselves */
	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &life->cancel_state);
	take_guard();
	life->fd = -1;
	life->locks = 0;
}

void life_leave(struct life *life)
{
	assert(life_guarded());
	if (life->fd >= 0)
		close(life->fd);
	give_guard();
	pthread_setcancelstate(life->cancel_state, NULL);
}

/* fcntl_locking(2): l_pid must be 0 for OFD locks. */
static int lock(const struct life *life, int command, short type, off_t byte, off_t count, struct flock *lock)
{
	assert(life_guarded());
	*lock = (struct flock){.l_type = type, .l_whence = SEEK_SET, .l_start = byte, .l_len = count};
	if (!fcntl(life->fd, command, lock))
		return 0;
	return errno == EAGAIN ? -EAGAIN : failure("lock bytes of the segment", "");
}

static int find_lock(const struct life *life, off_t byte)
{
	int i = 0;

	while (i < life->locks && life->locked[i] != byte)
		i++;
	return i;
}

bool life_holds(const struct life *life, off_t byte)
{
	return find_lock(life, byte) < life->locks;
}

/* fcntl_locking(2): POSIX lets a conflict be EAGAIN or EACCES; Linux says EAGAIN. */
static int try_lock(struct life *life, short type, off_t byte)
{
	struct flock unused;
	int rc = lock(life, F_OFD_SETLK, type, byte, 1, &unused);

	if (!rc && !life_holds(life, byte)) {
		assert(life->locks < LIFE_LOCKS);
		life->locked[life->locks++] = byte;
	}
	return rc == -EAGAIN ? LIFE_TAKEN : rc;
}

int life_share(struct life *life, off_t byte)
{
	return try_lock(life, F_RDLCK, byte);
}

int life_take(struct life *life, off_t byte)
{
	return try_lock(life, F_WRLCK, byte);
}

void life_drop(struct life *life, off_t byte)
{
	struct flock unused;

	assert(life_holds(life, byte));
	life->locked[find_lock(life, byte)] = life->locked[life->locks - 1];
	life->locks--;
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

	assert(life_guarded());
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
