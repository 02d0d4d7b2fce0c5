/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A file that is cut short under processes that have it mapped.
 *
 * Any process that may write the segment may truncate it. From then on each access to the part cut off is a SIGBUS, which
 * kills. To look before each access helps nothing: the file can be cut between look and access, and a look is a
 * system call, ten times a claim. Readers can read copies (examine.c does); a claim has to be
 * made in the page that all share. tmpfs has no seals for files with a name.
 *
 * So the signal is caught. The handler puts private memory in place of the whole table, in one step (mremap(2)
 * replaces what is there under the kernel's lock of the address space), and returns; the access is done again,
 * and succeeds. That memory is filled with ones, which is what keeps the hot path free of any question: no word
 * of it says "free" and none is a token that anybody could have, so each single compare-and-swap of a claim, a
 * release or the semaphore fails there, and the path of a failure asks segment_lost(). All ones is no
 * state of a segment either, so nobody registers; nor a state of a record, so nobody is seen alive or dead. Nobody sees
 * what is written to that memory all the same. So after a fault every question to this
 * handle is answered with -EBADMSG, or with nothing where nothing can fail. The process goes on; what it held is unknown
 * from then on, since only the table said so.
 *
 * A LIBRARY IS NOT TO INSTALL SIGNAL HANDLERS LIGHTLY. This one is installed if SIGBUS would kill the process
 * when mtlshm_open() is called, and then does nothing but the above: of a SIGBUS that is not ours it puts back the
 * default action and lets it happen. A process that has a handler of its own keeps it, and may call
 * mtlshm_fault() from there. One that installs a handler later without calling ours, or blocks SIGBUS (the kernel
 * kills then), is killed by a truncation as it would be without us. Children inherit handler and mapping;
 * exec() drops both.
 *
 * A page that fails in hardware (SIGBUS as well) is treated alike. Bytes that are overwritten raise no signal: what they say
 * is checked where it is used.
 *
 * THE LIST of watched tables is read by the handler at any moment, and changed under the guard of life.h. It protects the
 * address range of each table: what the handler finds there is ours to replace. So an entry goes before the munmap(), never
 * after: once the range is unmapped, another thread may map something else there, whose SIGBUS would be swallowed. An
 * earlier version had the two the other way round; unmap() asserts the order.
 */
#include "fault.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "assertion.h"
#include "failure.h"
#include "life.h"
#include "mtlshm.h"

static struct watched *first; /* atomic; the list only grows; changed under the guard */

/* In a signal handler: system calls and atomics only. Two threads may do it at once; the later wins. */
int mtlshm_fault(const void *address)
{
	const size_t size = sizeof(struct mtlshm_segment);
	struct watched *watched = __atomic_load_n(&first, __ATOMIC_ACQUIRE);
	int saved = errno;
	void *ones;

	for (; watched; watched = watched->next) {
		char *memory = __atomic_load_n(&watched->memory, __ATOMIC_ACQUIRE);

		if (!memory || (const char *)address < memory || (const char *)address >= memory + size)
			continue;
		ones = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (ones == MAP_FAILED)
			break;
		memset(ones, 0xff, size);
		__atomic_store_n(&watched->lost, 1, __ATOMIC_SEQ_CST); /* before anyone can see a one */
		if (mremap(ones, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, memory) == MAP_FAILED)
			break;
		errno = saved;
		return 1;
	}
	errno = saved;
	return 0;
}

static void on_sigbus(int number, siginfo_t *info, void *unused)
{
	const struct sigaction deadly = {.sa_handler = SIG_DFL};
	bool access = info->si_code > 0 && info->si_code != BUS_MCEERR_AO;

	(void)unused;
	if (access && mtlshm_fault(info->si_addr))
		return;
	/* Not ours: an access happens again as soon as we return; what was sent has to be sent again. */
	sigaction(number, &deadly, NULL);
	if (!access)
		raise(number);
}

static void install(void)
{
	struct sigaction handler = {.sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART};
	struct sigaction now;

	if (sigaction(SIGBUS, NULL, &now) || now.sa_flags & SA_SIGINFO || now.sa_handler != SIG_DFL)
		return;
	sigemptyset(&handler.sa_mask);
	sigaction(SIGBUS, &handler, NULL);
}

/* The caller has mapped `memory`, which nobody uses yet. NULL: out of memory. */
static struct watched *watch(void *memory)
{
	struct watched *watched = __atomic_load_n(&first, __ATOMIC_RELAXED);

	assert(life_guarded());
	install();
	while (watched && __atomic_load_n(&watched->memory, __ATOMIC_RELAXED))
		watched = watched->next;
	if (!watched) {
		watched = calloc(1, sizeof(*watched));
		if (!watched)
			return NULL;
		watched->next = __atomic_load_n(&first, __ATOMIC_RELAXED);
		__atomic_store_n(&first, watched, __ATOMIC_RELEASE);
	}
	__atomic_store_n(&watched->lost, 0, __ATOMIC_RELAXED);
	__atomic_store_n(&watched->memory, memory, __ATOMIC_RELEASE);
	return watched;
}

static bool is_watched(const void *memory)
{
	struct watched *watched = __atomic_load_n(&first, __ATOMIC_RELAXED);

	while (watched && __atomic_load_n(&watched->memory, __ATOMIC_RELAXED) != memory)
		watched = watched->next;
	return watched;
}

/* The next mapping at this address may be anybody's, and its SIGBUS is none of ours. */
static void unmap(void *memory)
{
	assert(life_guarded());
	assert(!is_watched(memory));
	munmap(memory, sizeof(struct mtlshm_segment));
}

int fault_map(struct watched **watched, int fd, int protection, const char *path)
{
	void *memory = mmap(NULL, sizeof(struct mtlshm_segment), protection, MAP_SHARED, fd, 0);

	if (memory == MAP_FAILED)
		return failure("map", path);
	*watched = watch(memory);
	if (*watched)
		return 0;
	unmap(memory);
	return -ENOMEM;
}

void fault_unmap(struct watched *watched)
{
	void *memory = watched->memory;

	assert(life_guarded());
	__atomic_store_n(&watched->memory, NULL, __ATOMIC_RELEASE);
	unmap(memory);
}
