/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A real process that does what a test tells it, so that tests can say what happens and in which order.
 *
 *     puppet SEGMENT [SYSFS]
 *
 * It reads commands from standard input, one a line, and answers each on standard output with a number: what the library's
 * function of that name returned, unless its comment here says otherwise. It has one segment open and any number of
 * instances, the last of which is the one that acts. See class Puppet in tests/processes.py.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/futex.h>
#include <linux/seccomp.h>
#include <grp.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "mtlshm.h"

/* Seconds after which a puppet ends by itself, should the test be gone. */
#define LIFETIME 600
/* Churning is about the first so many lcores. */
#define LCORES 64

extern char **environ;

static const char *path, *sysfs;
static struct mtlshm_host *host;
static struct mtlshm_instance *mine[2 * MTLSHM_INSTANCES], *me;
static int count; /* of mine[] */
static struct mtlshm_snapshot snapshot;

static long number(const char *word)
{
	return word ? strtol(word, NULL, 0) : 0;
}

static void answer(long long value)
{
	char line[32];
	int length = snprintf(line, sizeof(line), "%lld\n", value);

	if (write(STDOUT_FILENO, line, (size_t)length) != length)
		_exit(1);
}

#define EXPECT(what)                                                                              \
	do {                                                                                      \
		if (!(what)) {                                                                    \
			fprintf(stderr, "puppet %d, line %d: not so: %s\n", getpid(), __LINE__, #what); \
			abort();                                                                  \
		}                                                                                 \
	} while (0)

/* Until the test opens the FIFO for writing, and until it closes it. */
static void await_open(const char *fifo)
{
	close(open(fifo, O_RDONLY | O_CLOEXEC));
}

static void await_close(const char *fifo)
{
	int fd = open(fifo, O_RDONLY | O_CLOEXEC);
	char byte;

	while (read(fd, &byte, 1) > 0)
		;
	close(fd);
}

/* --- the library ------------------------------------------------------------------------------------ */

static long do_open(char **words)
{
	return mtlshm_open(&host, path, (uint32_t)number(words[1]), sysfs);
}

static long do_close(char **words)
{
	(void)words;
	return mtlshm_close(host);
}

static long do_retire(char **words)
{
	(void)words;
	return mtlshm_retire(host);
}

static int become_instance(const char *label, uint32_t kind, const struct mtlshm_cpuset *cpus)
{
	const struct mtlshm_identity identity = {.label = label, .kind = kind, .cpus = cpus};
	int rc = mtlshm_register(&me, host, &identity);

	if (!rc)
		mine[count++] = me;
	return rc;
}

/* [KIND]: as an instance that may claim any lcore. */
static long do_register(char **words)
{
	struct mtlshm_cpuset all;

	memset(&all, 0xff, sizeof(all));
	return become_instance(NULL, (uint32_t)number(words[1]), &all);
}

/* As one that may claim what the affinity mask allows. */
static long do_register_masked(char **words)
{
	(void)words;
	return become_instance(NULL, MTLSHM_KIND_SHM, NULL);
}

/* N: that often; returns how often it worked. */
static long do_register_many(char **words)
{
	long n = number(words[1]), done = 0;

	while (done < n && !do_register((char *[]){NULL, NULL}))
		done++;
	return done;
}

static long do_unregister(char **words)
{
	(void)words;
	return mtlshm_unregister(me);
}

static long do_owner(char **words)
{
	(void)words;
	return (long)mtlshm_owner(me);
}

static long do_alive(char **words)
{
	return mtlshm_alive(host, (uint64_t)number(words[1]));
}

static long do_collect(char **words)
{
	return mtlshm_collect(host, (uint64_t)number(words[1]));
}

static long do_sweep(char **words)
{
	(void)words;
	return mtlshm_sweep(host);
}

/* LCORE [TYPE] */
static long do_claim(char **words)
{
	return mtlshm_claim(me, (uint32_t)number(words[1]), (uint32_t)number(words[2]));
}

/* COUNT [TIMEOUT_MS] */
static long do_claim_many(char **words)
{
	const struct mtlshm_want want = {
		.count = (uint32_t)number(words[1]),
		.numa_node = MTLSHM_ANY_NODE,
		.timeout_ms = (uint32_t)number(words[2]),
	};
	uint16_t lcores[MTLSHM_LCORES];

	return mtlshm_claim_many(me, &want, lcores);
}

static long do_release(char **words)
{
	return mtlshm_release(me, (uint32_t)number(words[1]));
}

static long do_release_all(char **words)
{
	(void)words;
	return mtlshm_release_all(me);
}

/* LCORE OWNER */
static long do_evict(char **words)
{
	return mtlshm_evict(host, (uint32_t)number(words[1]), (uint64_t)number(words[2]));
}

static long do_lock(char **words)
{
	return mtlshm_lock(me, (uint32_t)number(words[1]));
}

static long do_unlock(char **words)
{
	(void)words;
	return mtlshm_unlock(me);
}

/* How many instances it sees. */
static long do_snapshot(char **words)
{
	int rc = mtlshm_snapshot(host, &snapshot);

	(void)words;
	return rc ? rc : (long)snapshot.instance_count;
}

/* --- the process ------------------------------------------------------------------------------------ */

/* UID GID [GROUP] */
static long do_become(char **words)
{
	gid_t group = (gid_t)number(words[3]);

	if (setgroups(words[3] ? 1 : 0, &group) || setgid((gid_t)number(words[2])) ||
	    setuid((uid_t)number(words[1])))
		return -errno;
	return 0;
}

static long do_chdir(char **words)
{
	return chdir(words[1]) ? -errno : 0;
}

static long do_umask(char **words)
{
	return (long)umask((mode_t)number(words[1]));
}

/* MASK */
static long do_affinity(char **words)
{
	unsigned long mask = (unsigned long)number(words[1]);

	return syscall(SYS_sched_setaffinity, 0, sizeof(mask), &mask) < 0 ? -errno : 0;
}

static long do_limit_descriptors(char **words)
{
	struct rlimit limit;

	getrlimit(RLIMIT_NOFILE, &limit);
	limit.rlim_cur = (rlim_t)number(words[1]);
	return setrlimit(RLIMIT_NOFILE, &limit) ? -errno : 0;
}

static long do_closefrom(char **words)
{
	closefrom((int)number(words[1]));
	return 0;
}

static long do_setsid(char **words)
{
	(void)words;
	return setsid();
}

/* FIFO: go on when the test opens it, at the same moment as others that wait there. */
static long do_gate(char **words)
{
	await_open(words[1]);
	return 0;
}

/* PID: the next process in this PID namespace shall have it. */
static long do_next_pid(char **words)
{
	int fd = open("/proc/sys/kernel/ns_last_pid", O_WRONLY | O_CLOEXEC);
	int rc = dprintf(fd, "%ld", number(words[1]) - 1) < 0 ? -errno : 0;

	close(fd);
	return rc;
}

/* COMMANDS ANSWERS: fork. The parent answers with the child's pid; the child is a puppet too, on these two FIFOs, and has
 * answered once already. */
static long do_fork(char **words)
{
	pid_t pid = fork();

	if (pid)
		return pid;
	alarm(LIFETIME);
	if (dup2(open(words[1], O_RDONLY), STDIN_FILENO) < 0 || dup2(open(words[2], O_WRONLY), STDOUT_FILENO) < 0)
		_exit(1);
	return 0;
}

/* FIFO: a child made by vfork() waits there; it shares our memory, and we are stopped meanwhile. */
static long do_vfork(char **words)
{
	if (!vfork()) {
		await_close(words[1]);
		_exit(0);
	}
	return 0;
}

/* FIFO: start a program that waits there. */
static long do_spawn(char **words)
{
	char *const arguments[] = {"cat", words[1], NULL};
	pid_t pid;

	return -posix_spawn(&pid, "/bin/cat", NULL, NULL, arguments, environ);
}

/* A real fault: as PID 1 of a namespace it could not be killed by a SIGSEGV that is sent. */
static long do_fault(char **words)
{
	(void)words;
	*(volatile int *)NULL = 0;
	return 0;
}

/* Without unregistering. */
static long do_exit(char **words)
{
	exit((int)number(words[1]));
}

/* FIFO: become a program that waits there. */
static long do_exec(char **words)
{
	execl("/bin/cat", "cat", words[1], NULL);
	return -errno;
}

static void *obey(void *unused);

/* Go on in another thread, and end the main thread. */
static long do_leave_main(char **words)
{
	pthread_t thread;

	(void)words;
	answer(0);
	pthread_create(&thread, NULL, obey, NULL);
	pthread_exit(NULL);
}

struct storm {
	int forks;
	int over;
};

static void *fork_on(void *data)
{
	struct storm *storm = data;
	struct pollfd test = {.fd = STDIN_FILENO}; /* POLLHUP, when the test is over */

	for (int i = 0; i < storm->forks; i++) {
		if (!fork()) {
			alarm(LIFETIME);
			poll(&test, 1, -1);
			_exit(0);
		}
	}
	__atomic_store_n(&storm->over, 1, __ATOMIC_RELAXED);
	return NULL;
}

/* FORKS: register and unregister while another thread forks; the children live until the test is over. Returns how many
 * instances there are in the end. */
static long do_fork_storm(char **words)
{
	struct storm storm = {(int)number(words[1]), 0};
	const int keep = 100;
	pthread_t thread;

	EXPECT(!pthread_create(&thread, NULL, fork_on, &storm));
	for (int i = 0; !__atomic_load_n(&storm.over, __ATOMIC_RELAXED) || i < keep; i++) {
		struct mtlshm_instance *old = mine[i % keep];

		EXPECT(!mtlshm_register(&mine[i % keep], host, NULL));
		mtlshm_instance_free(old);
	}
	pthread_join(thread, NULL);
	return keep;
}

/* From now on the kernel knows no open-file-description locks, as before Linux 3.15. */
static long do_forget_ofd_locks(char **words)
{
#define ARGUMENT(n) offsetof(struct seccomp_data, args[n]) /* its lower half */
	struct sock_filter filter[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_fcntl, 0, 4),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, ARGUMENT(1)),
		BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, F_OFD_GETLK, 0, 2),
		BPF_JUMP(BPF_JMP | BPF_JGT | BPF_K, F_OFD_SETLKW, 1, 0),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EINVAL),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	const struct sock_fprog program = {sizeof(filter) / sizeof(filter[0]), filter};

	(void)words;
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program))
		return -errno;
	return 0;
}

/* --- loops ------------------------------------------------------------------------------------------ */

/* FILE N: add 1 to the number in the file N times, each time under the semaphore. */
static long do_count(char **words)
{
	volatile long *total;
	int fd = open(words[1], O_RDWR | O_CREAT, 0600);

	EXPECT(!ftruncate(fd, sizeof(*total)));
	total = mmap(NULL, sizeof(*total), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	EXPECT(total != MAP_FAILED);
	close(fd);
	for (long i = 0; i < number(words[2]); i++) {
		int rc = mtlshm_lock(me, 1000 * LIFETIME);
		long value = *total;

		if (rc < 0)
			return rc;
		if (i % 64 == 0)
			sched_yield();
		*total = value + 1;
		mtlshm_unlock(me);
	}
	return 0;
}

/* Sleep in the kernel until someone gives the semaphore back, without looking by ourselves. Begins when somebody else waits
 * already. 0: woken. */
static long do_sleep_on_semaphore(char **words)
{
	const struct timespec limit = {.tv_sec = LIFETIME};
	int fd = open(path, O_RDONLY);
	const struct mtlshm_segment *segment = mmap(NULL, sizeof(*segment), PROT_READ, MAP_SHARED, fd, 0);
	uint64_t word;

	(void)words;
	EXPECT(segment != MAP_FAILED);
	do
		word = __atomic_load_n(&segment->header.semaphore, __ATOMIC_RELAXED);
	while (!(word & 1));
	answer(0);
	return syscall(SYS_futex, &segment->header.semaphore, FUTEX_WAIT, (uint32_t)word, &limit, NULL, 0) ? -errno : 0;
}

static uint64_t *witness; /* by lcore: who thinks it is his, in a file of the test's own */
static uint32_t held[LCORES], held_count;

static void got(uint32_t lcore)
{
	uint64_t before = __atomic_load_n(&witness[lcore], __ATOMIC_SEQ_CST);

	EXPECT(before == 0 || mtlshm_alive(host, before) == 0);
	EXPECT(__atomic_compare_exchange_n(&witness[lcore], &before, mtlshm_owner(me), 0, __ATOMIC_SEQ_CST,
					   __ATOMIC_SEQ_CST));
	held[held_count++] = lcore;
}

static void lose(uint32_t position)
{
	uint64_t mine_still = mtlshm_owner(me);

	EXPECT(__atomic_compare_exchange_n(&witness[held[position]], &mine_still, 0, 0, __ATOMIC_SEQ_CST,
					   __ATOMIC_SEQ_CST));
	held[position] = held[--held_count];
}

static void claim_one(void)
{
	uint32_t lcore = (uint32_t)rand() % LCORES;
	int rc = mtlshm_claim(me, lcore, MTLSHM_LCORE_APP);

	EXPECT(rc == 0 || rc == -EBUSY || rc == -EALREADY);
	if (!rc)
		got(lcore);
}

static void claim_some(void)
{
	const struct mtlshm_want want = {
		.count = 1 + (uint32_t)rand() % 8, .numa_node = MTLSHM_ANY_NODE, .timeout_ms = 1000 * LIFETIME};
	uint16_t lcores[8];
	int rc = mtlshm_claim_many(me, &want, lcores);

	EXPECT(rc == 0 || rc == -EBUSY);
	for (uint32_t i = 0; !rc && i < want.count; i++)
		got(lcores[i]);
}

static void release_one(void)
{
	uint32_t position, lcore;

	if (!held_count)
		return;
	position = (uint32_t)rand() % held_count;
	lcore = held[position];
	lose(position);
	EXPECT(mtlshm_release(me, lcore) == 0);
}

static void release_everything(void)
{
	uint32_t expected = held_count;

	while (held_count)
		lose(0);
	EXPECT(mtlshm_release_all(me) == (int)expected);
}

/* WITNESS SEED: register, claim, release and unregister without end, in the company of others that do the same. Dies
 * with SIGABRT if an lcore it was given is somebody else's too, or anything else is wrong. */
static long do_churn(char **words)
{
	int fd = open(words[1], O_RDWR | O_CREAT, 0600);
	struct mtlshm_cpuset all;
	char label[64];

	EXPECT(!ftruncate(fd, sizeof(*witness) * LCORES));
	witness = mmap(NULL, sizeof(*witness) * LCORES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	EXPECT(witness != MAP_FAILED);
	close(fd);
	memset(&all, 0xff, sizeof(all));
	snprintf(label, sizeof(label), "%063d", getpid());
	srand((unsigned int)number(words[2]));
	answer(0);
	for (;;) {
		EXPECT(!become_instance(label, MTLSHM_KIND_SHM, &all));
		for (int i = rand() % 50; i; i--) {
			switch (rand() % 10) {
			case 0:
			case 1:
			case 2:
			case 3:
				claim_one();
				break;
			case 4:
			case 5:
				release_one();
				break;
			case 6:
			case 7:
				claim_some();
				break;
			case 8:
				release_everything();
				break;
			case 9:
				EXPECT(mtlshm_sweep(host) >= 0);
				break;
			}
		}
		while (held_count)
			lose(0);
		mtlshm_instance_free(mine[--count]);
	}
}

/* N: look N times at others churning. Returns in how many snapshots something did not fit. */
static long do_watch(char **words)
{
	static struct mtlshm_instance_info seen[MTLSHM_INSTANCES]; /* by index: what its last owner was shown as */
	long wrong = 0;

	for (long i = 0; i < number(words[1]); i++) {
		uint32_t lcores[MTLSHM_INSTANCES] = {0};
		int fits = mtlshm_snapshot(host, &snapshot) == 0;

		for (uint32_t j = 0; j < snapshot.lcore_count; j++) {
			const struct mtlshm_lcore_info *lcore = &snapshot.lcores[j];

			if (!lcore->owner)
				continue;
			fits &= lcore->instance >= 0 && (uint32_t)lcore->instance < snapshot.instance_count &&
				snapshot.instances[lcore->instance].owner == lcore->owner;
			lcores[lcore->instance & (MTLSHM_INSTANCES - 1)]++;
		}
		for (uint32_t j = 0; j < snapshot.instance_count; j++) {
			const struct mtlshm_instance_info *info = &snapshot.instances[j];
			struct mtlshm_instance_info *before = &seen[info->owner >> MTLSHM_TYPE_BITS & (MTLSHM_INSTANCES - 1)];

			fits &= info->lcores == lcores[j];
			if (info->process.label[0] == '0') /* one of those that churn: each has a name that tells its pid */
				fits &= strlen(info->process.label) == 63 &&
					strtol(info->process.label, NULL, 10) == info->process.pid;
			if (before->owner == info->owner)
				fits &= before->registered_ns == info->registered_ns;
			*before = *info;
		}
		wrong += !fits;
	}
	return wrong;
}

/* SEED: open, register, unregister and remove the segment without end, in the company of others that do the same. Dies with
 * SIGABRT if an instance finds that its segment is not the one that others find. */
static long do_replace(char **words)
{
	srand((unsigned int)number(words[1]));
	answer(0);
	for (;;) {
		int rc;

		EXPECT(!mtlshm_open(&host, path, MTLSHM_CREATE, sysfs));
		rc = mtlshm_register(&me, host, NULL);
		EXPECT(rc == 0 || rc == -ESTALE);
		for (int i = rand() % 4; !rc && i; i--) {
			EXPECT(mtlshm_alive(host, mtlshm_owner(me)) == 1); /* opens the path: -ESTALE if it is another file */
			sched_yield();
		}
		if (!rc)
			mtlshm_instance_free(me);
		if (rand() % 2) {
			rc = mtlshm_retire(host);
			EXPECT(rc == 0 || rc == -EBUSY || rc == -ESTALE);
			if (!rc)
				EXPECT(!unlink(path));
		}
		EXPECT(!mtlshm_close(host));
	}
}

/* --- a table that is taken away or overwritten ------------------------------------------------------- */

static int times_handled;

/* A result that no call may have, whatever is done to the segment's bytes. */
static int is_nonsense(int rc)
{
	static const int sensible[] = {EBUSY, EALREADY, EPERM, ETIMEDOUT, ESRCH, EUSERS, ERANGE, ESTALE};

	for (size_t i = 0; i < sizeof(sensible) / sizeof(sensible[0]); i++)
		if (rc == -sensible[i])
			return 0;
	return rc < 0;
}

/* Do everything, over and over, until something gives another error than there may be: that is the answer. With an
 * argument: so many rounds at most, then 0. */
static long do_storm(char **words)
{
	const struct mtlshm_want want = {.count = 3, .numa_node = MTLSHM_ANY_NODE, .timeout_ms = 1};
	static struct mtlshm_instance *other;
	long rounds = words[1] ? number(words[1]) : -1;
	uint16_t lcores[3];
	int rc = 0;

	srand((unsigned int)getpid());
	while (rounds--) {
		switch (rand() % 8) {
		case 0: rc = mtlshm_claim(me, (uint32_t)rand() % LCORES, MTLSHM_LCORE_APP); break;
		case 1: rc = mtlshm_release(me, (uint32_t)rand() % LCORES); break;
		case 2: rc = mtlshm_claim_many(me, &want, lcores); break;
		case 3: rc = mtlshm_release_all(me); break;
		case 4: rc = mtlshm_snapshot(host, &snapshot); break;
		case 5: rc = mtlshm_sweep(host); break;
		case 6: rc = mtlshm_alive(host, mtlshm_owner(me)); break;
		case 7:
			rc = mtlshm_register(&other, host, NULL);
			if (!rc)
				mtlshm_instance_free(other);
			break;
		}
		if (is_nonsense(rc))
			return rc;
	}
	return 0;
}

/* FILE: die of it, as a process does whose mapped file is cut short. */
static long do_touch_truncated(char **words)
{
	int fd = open(words[1], O_RDWR);
	volatile char *memory = mmap(NULL, 1, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	EXPECT(!ftruncate(fd, 0));
	return *memory;
}

static long do_die(char **words)
{
	return raise((int)number(words[1]));
}

static void handle(int number, siginfo_t *info, void *unused)
{
	(void)number;
	(void)unused;
	times_handled++;
	if (!mtlshm_fault(info->si_addr))
		_exit(1);
}

/* What an application may do about SIGBUS before it opens a segment. */
static long do_own_handler(char **words)
{
	struct sigaction action = {.sa_sigaction = handle, .sa_flags = SA_SIGINFO};

	(void)words;
	return sigaction(SIGBUS, &action, NULL);
}

static long do_times_handled(char **words)
{
	(void)words;
	return times_handled;
}

/* ---------------------------------------------------------------------------------------------------- */

static const struct {
	const char *name;
	long (*function)(char **words); /* words[0] is the command; after the last there are NULLs */
} commands[] = {
	{"affinity", do_affinity},
	{"alive", do_alive},
	{"become", do_become},
	{"chdir", do_chdir},
	{"churn", do_churn},
	{"claim", do_claim},
	{"claim_many", do_claim_many},
	{"close", do_close},
	{"closefrom", do_closefrom},
	{"collect", do_collect},
	{"count", do_count},
	{"die", do_die},
	{"evict", do_evict},
	{"exec", do_exec},
	{"exit", do_exit},
	{"fault", do_fault},
	{"forget_ofd_locks", do_forget_ofd_locks},
	{"fork", do_fork},
	{"fork_storm", do_fork_storm},
	{"gate", do_gate},
	{"leave_main", do_leave_main},
	{"limit_descriptors", do_limit_descriptors},
	{"lock", do_lock},
	{"next_pid", do_next_pid},
	{"own_handler", do_own_handler},
	{"open", do_open},
	{"owner", do_owner},
	{"register", do_register},
	{"register_many", do_register_many},
	{"register_masked", do_register_masked},
	{"release", do_release},
	{"release_all", do_release_all},
	{"replace", do_replace},
	{"retire", do_retire},
	{"setsid", do_setsid},
	{"sleep_on_semaphore", do_sleep_on_semaphore},
	{"snapshot", do_snapshot},
	{"spawn", do_spawn},
	{"storm", do_storm},
	{"sweep", do_sweep},
	{"times_handled", do_times_handled},
	{"touch_truncated", do_touch_truncated},
	{"umask", do_umask},
	{"unlock", do_unlock},
	{"unregister", do_unregister},
	{"vfork", do_vfork},
	{"watch", do_watch},
};

/* Byte by byte, so that what was not read yet is still there after a fork or in another thread. */
static int read_line(char *line, size_t size)
{
	for (size_t i = 0; i < size; i++) {
		if (read(STDIN_FILENO, &line[i], 1) <= 0)
			return 0;
		if (line[i] == '\n') {
			line[i] = '\0';
			return 1;
		}
	}
	return 0;
}

static void *obey(void *unused)
{
	char line[1024];

	while (read_line(line, sizeof(line))) {
		char *words[8] = {0}, *rest = line;
		size_t i = 0;

		for (int n = 0; n < 7 && (words[n] = strtok_r(rest, " ", &rest)); n++)
			;
		while (i < sizeof(commands) / sizeof(commands[0]) && (!words[0] || strcmp(commands[i].name, words[0])))
			i++;
		EXPECT(i < sizeof(commands) / sizeof(commands[0]));
		answer(commands[i].function(words));
	}
	exit(0);
	return unused;
}

int main(int argc, char **argv)
{
	if (argc < 2)
		return 2;
	path = argv[1];
	sysfs = argv[2];
	alarm(LIFETIME);
	obey(NULL);
	return 0;
}
