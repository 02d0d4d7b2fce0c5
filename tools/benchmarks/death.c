/* SPDX-License-Identifier: BSD-3-Clause
 *
 * How soon after a SIGKILL an lcore is free (a daemon runs), or in the hands of a client that keeps asking (none runs);
 * ns a kill, from just before kill() to what the observer sees.
 *
 *     death DIRECTORY SYSFS free INSTANCES KILLS
 *     death DIRECTORY SYSFS socket 1 KILLS      the same, of a client of the daemon's socket
 *     death DIRECTORY SYSFS grant 1 KILLS
 *
 * The baseline is a C process that has the victim's pidfd in its epoll set: what it takes the kernel to end a process and
 * to wake up another. That of `free` is the floor: the victim is an instance as well, in a segment that no daemon serves. That of `grant` is the server of server.c, which learns of the death from the closed socket.
 *
 * Observing without delay means spinning, so the observer has a CPU to itself, and all others share the next one. Still
 * it loses its CPU now and then, to a kernel thread or to the host of a virtual machine, and then cannot say when the
 * lcore became free; left in, that would be most of the tail. So a kill that it was not there to see is not counted but
 * done again. (A real-time priority is no way: it keeps away those who hold a lock that the dying process needs.)
 *
 * The victims are made by a process of its own, the nursery, which has nothing mapped: they are small, and what
 * the observer holds is not in them.
 */
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "bench.h"

enum { LCORES = 64, VICTIM_LCORE = 0, SETTLE_US = 5000, AWAY_NS = 100000, PATIENCE_S = 60 };

static char segment[256], unserved[256], socket_path[256], manager_path[256];
static const char *sysfs;

enum kind { INSTANCE, UNSERVED_INSTANCE, MANAGER_CLIENT, SERVER_CLIENT, PLAIN };
struct order {
	enum kind kind;
	int lcore; /* to claim, or -1 */
};

static void live(int report, struct order order)
{
	pid_t pid = getpid();

	if (order.kind == INSTANCE || order.kind == UNSERVED_INSTANCE) {
		struct mtlshm_instance *me = join(order.kind == INSTANCE ? segment : unserved, sysfs);

		CHECK(order.lcore < 0 || mtlshm_claim(me, order.lcore, MTLSHM_LCORE_APP) == 0);
	} else if (order.kind == MANAGER_CLIENT) {
		manager_get(manager_connect(manager_path), order.lcore);
	} else if (order.kind == SERVER_CLIENT) {
		CHECK(server_claim(server_connect(socket_path), order.lcore) == 0);
	}
	CHECK(write(report, &pid, sizeof pid) == sizeof pid);
	for (;;)
		pause();
}

static int start_nursery(int cpu)
{
	struct order order;
	int ends[2];

	CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) == 0);
	if (fork_bound())
		return close(ends[1]), ends[0];
	close(ends[0]);
	pin(cpu);
	/* The dead may stay zombies until the next is wanted: so no pid is killed that has become another's. */
	while (read(ends[1], &order, sizeof order) == sizeof order) {
		while (waitpid(-1, NULL, WNOHANG) > 0)
			;
		if (fork_bound() == 0)
			live(ends[1], order);
	}
	_exit(0);
}

static pid_t make(int nursery, enum kind kind, int lcore)
{
	struct order order = {kind, lcore};
	pid_t pid;

	CHECK(write(nursery, &order, sizeof order) == sizeof order && read(nursery, &pid, sizeof pid) == sizeof pid);
	return pid;
}

/* Tells by *dead that the process whose pid it was sent has died. */
static int start_watcher(int cpu, int *dead)
{
	struct epoll_event event = {.events = EPOLLIN};
	int ends[2], poll;
	pid_t pid;

	CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) == 0);
	if (fork_bound())
		return close(ends[1]), ends[0];
	close(ends[0]);
	pin(cpu);
	poll = epoll_create1(EPOLL_CLOEXEC);
	CHECK(poll >= 0);
	while (read(ends[1], &pid, sizeof pid) == sizeof pid) {
		int pidfd = syscall(SYS_pidfd_open, pid, 0);

		CHECK(pidfd >= 0 && epoll_ctl(poll, EPOLL_CTL_ADD, pidfd, &event) == 0);
		CHECK(write(ends[1], &pid, sizeof pid) == sizeof pid);
		CHECK(epoll_wait(poll, &event, 1, -1) == 1);
		__atomic_store_n(dead, 1, __ATOMIC_RELEASE);
		close(pidfd);
	}
	_exit(0);
}

static void watch(int watcher, pid_t pid)
{
	CHECK(write(watcher, &pid, sizeof pid) == sizeof pid && read(watcher, &pid, sizeof pid) == sizeof pid);
}

/* Returns when. */
static int64_t kill_now(pid_t pid)
{
	int64_t start;

	usleep(SETTLE_US +
	       rand() % 1000); /* until whoever wants to know of the newcomer knows, and not in step with any clock */
	start = now_ns();
	CHECK(kill(pid, SIGKILL) == 0);
	return start;
}

static int unseen;

/* Were both seen? */
static int report(int64_t subject, int64_t baseline)
{
	if (subject < 0 || baseline < 0) {
		unseen++;
		return 0;
	}
	printf("%ld %ld\n", (long)subject, (long)baseline);
	return 1;
}

static int alone; /* on the observer's CPU */

/* Keeps looking until seen() says yes. Returns the ns since `start`, or -1 if it was away when that happened. */
static int64_t observe(int64_t start, int (*seen)(void *what), void *what)
{
	int64_t before = start, now;

	for (;; before = now) {
		int yes = seen(what);

		now = now_ns();
		if (yes)
			return now - before < AWAY_NS ? now - start : -1;
		CHECK(now - start < PATIENCE_S * INT64_C(1000000000)); /* on a machine that does much else */
		if (!alone)
			sched_yield();
	}
}

static int is_free(void *owner)
{
	return __atomic_load_n((uint64_t *)owner, __ATOMIC_ACQUIRE) == 0;
}

static int is_set(void *flag)
{
	return __atomic_load_n((int *)flag, __ATOMIC_ACQUIRE);
}

static int is_granted(void *instance)
{
	return mtlshm_claim(instance, VICTIM_LCORE, MTLSHM_LCORE_APP) == 0;
}

static int is_granted_by_server(void *server)
{
	return server_claim(*(int *)server, VICTIM_LCORE) == 0;
}

static void measure_free(enum kind kind, int instances, int kills, int nursery, int cpu)
{
	int *dead = mmap(NULL, sizeof *dead, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	struct mtlshm_segment *table = map_table(segment);
	int64_t start, subject, baseline;
	pid_t pid;

	CHECK(dead != MAP_FAILED);
	int watcher = start_watcher(cpu, dead);
	for (int i = 1; i < instances; i++)
		make(nursery, INSTANCE, i < LCORES ? i : -1);

	while (kills > 0) {
		pid = make(nursery, kind, VICTIM_LCORE);
		start = kill_now(pid);
		subject = observe(start, is_free, &table->lcores[VICTIM_LCORE].owner);

		*dead = 0;
		pid = kind == INSTANCE ? make(nursery, UNSERVED_INSTANCE, VICTIM_LCORE) : make(nursery, PLAIN, -1);
		watch(watcher, pid);
		start = kill_now(pid);
		baseline = observe(start, is_set, dead);
		kills -= report(subject, baseline);
	}
}

static void measure_grant(int kills, int nursery)
{
	struct mtlshm_instance *me = join(segment, sysfs);
	int server = server_connect(socket_path);
	int64_t start, subject, baseline;
	pid_t pid;

	while (kills > 0) {
		pid = make(nursery, INSTANCE, VICTIM_LCORE);
		CHECK(!is_granted(me));
		start = kill_now(pid);
		subject = observe(start, is_granted, me);
		CHECK(mtlshm_release(me, VICTIM_LCORE) == 0);

		pid = make(nursery, SERVER_CLIENT, VICTIM_LCORE);
		CHECK(!is_granted_by_server(&server));
		start = kill_now(pid);
		baseline = observe(start, is_granted_by_server, &server);
		CHECK(server_release(server, VICTIM_LCORE) == 0);
		kills -= report(subject, baseline);
	}
	mtlshm_instance_free(me);
}

int main(int argc, char **argv)
{
	int observer = nth_cpu(0), others = nth_cpu(1);

	CHECK(argc == 6);
	snprintf(segment, sizeof segment, "%s/segment", argv[1]);
	snprintf(unserved, sizeof unserved, "%s/unserved", argv[1]);
	snprintf(socket_path, sizeof socket_path, "%s/socket", argv[1]);
	snprintf(manager_path, sizeof manager_path, "%s/manager.sock", argv[1]);
	sysfs = argv[2];
	int instances = atoi(argv[4]), kills = atoi(argv[5]);
	alone = observer != others;

	int nursery = start_nursery(others);
	if (strcmp(argv[3], "grant")) {
		pin(observer);
		measure_free(strcmp(argv[3], "socket") ? INSTANCE : MANAGER_CLIENT, instances, kills, nursery, others);
	} else {
		server_start(socket_path, observer); /* better for it than the other CPU, as measured */
		pin(observer);
		measure_grant(kills, nursery);
	}
	unlink(unserved);
	if (unseen)
		fprintf(stderr, "%d of %d kills done again: the observer was away\n", unseen, kills + unseen);
	return 0;
}
