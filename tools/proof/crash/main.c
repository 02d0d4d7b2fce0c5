/* SPDX-License-Identifier: BSD-3-Clause
 *
 * One call of the core, its caller killed or stopped at every instruction.
 *
 *     crash SCENARIO SEGMENT SYSFS CPU SEED HOW
 *
 * A VICTIM, forked and traced, comes as far as the call (`before`) and makes it (`call`) under our eyes. HOW
 * is `every`, or `changes`: only around every change of the segment and every system call, and at some other
 * instructions chosen by SEED. At each of those positions it is
 *
 *   killed   then somebody recovers, and nothing may be lost, left, owned twice or unusable;
 *   stopped  while a rival does what it likes, then goes on to the end of the call: what each of them was
 *            told must agree with what the table says, and no two may think they own the same.
 *
 * And while it is stepped through the call for the first time, the table is looked at after each change.
 *
 * GETTING THERE. Stepping costs up to 60 microseconds an instruction, so a later position is reached by a
 * breakpoint: at the address which, in the first pass, came last before it and had not come often. All
 * victims are forks of one process, so they do the same; where one does not (it has another PID to read from
 * /proc, or the clock had moved on), its instruction pointer tells, and it is done again. In the end it is
 * killed where it is, and counted as `astray`.
 *
 * WHAT IS TRUE is what we ourselves read in the segment, by the layout in mtlshm.h, and what each process
 * was told; the core is believed in nothing. The world around the victim, made by real processes:
 *
 *   bystander  record 0, ourselves: has lcores 0 and 1, and lives
 *   dead       record 1: had lcores 2 and 3, was killed; nobody has collected it
 *   proxied    record 2: has lcore 4
 *   dead, too  record 3: had lcores 6 and 7
 *
 * It is restored from a copy before each victim.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#include "mtlshm.h"

#ifndef __x86_64__
#error "knows the breakpoints of x86-64 only"
#endif

enum {
	LCORES = 16,          /* the machine's; the table has 128 */
	TARGET = 8,           /* what the victim deals in: 8, 9, 10 */
	LONGEST_TRACE = 1 << 20,
	LONGEST_WALK = 4000,  /* instructions stepped from a breakpoint on */
	ATTEMPTS = 4,         /* for one position */
	SHORT = 700,          /* calls with `every`, whatever is asked for */
	VARIATIONS = 4,       /* of what a rival does, around changes */
	SAMPLES = 24,         /* other positions, with `changes` */
	FAILURES = 5,         /* then give up */
};

#define NEEDED(what)                                                                                   \
	do {                                                                                           \
		if (!(what)) {                                                                         \
			fprintf(stderr, "crash: %s: line %d: not so: %s (errno: %s)\n", scenario->name, __LINE__, \
				#what, strerror(errno));                                               \
			exit(2);                                                                       \
		}                                                                                      \
	} while (0)

/* What a process has been told is its own. It stops believing so before it gives back. */
struct mind {
	int rc;
	uint64_t owner; /* 0: not registered */
	uint64_t proxy;
	bool semaphore;
	bool has[LCORES];
	bool had[LCORES];
	uint32_t refused; /* an lcore, the last that it was not given */
};

enum world {
	USUAL = 0,
	DEAD_HAS_SEMAPHORE = 1,
	BYSTANDER_HAS_SEMAPHORE = 2,
	ALMOST_FULL = 4,        /* all records proxied but those of the dead */
	NOBODY = 8,             /* an empty segment */
	NO_SEGMENT = 16,
	RETIRED = 32,           /* an empty segment, which somebody is about to remove */
};

struct scenario {
	const char *name;
	enum world world;
	void (*before)(void);
	void (*call)(void);
	int expected;  /* what it returns if nobody disturbs it */
	bool sleeps;   /* it would wait for ever: we look no further */
	void (*meddle)(unsigned int variant);
};

static const struct scenario *scenario;
static const char *path, *sysfs;
static int cpu;
static struct mtlshm_host *host;
static struct mtlshm_segment *segment, before_it, at_start, last_seen;
static struct mtlshm_instance *bystander, *rival, *me;
static struct mtlshm_cpuset all;
static struct mind *mind;          /* the victim's, shared with it */
static struct mind bystanders, rivals;
static uint64_t dead, proxied;

static struct {
	uint64_t ip;
	uint32_t nth; /* time that the address comes */
	bool changed; /* the instruction before changed the segment, or was a system call */
} trace[LONGEST_TRACE];
static uint32_t length, changes, calls;
static const char *doing;
static uint32_t position, killed, stopped, repeated, astray, failures;
static unsigned int variation;

static bool about_the_file(void)
{
	return scenario->world & (NOBODY | NO_SEGMENT | RETIRED);
}

/* --- what is wrong ------------------------------------------------------------------------------------ */

static __attribute__((format(printf, 1, 2))) void wrong(const char *format, ...)
{
	va_list arguments;

	printf("wrong\t%s\t%u\t%#lx\t%s\t", scenario->name, position, (unsigned long)trace[position].ip, doing);
	va_start(arguments, format);
	vprintf(format, arguments);
	va_end(arguments);
	printf(" (variation %u)\n", variation);
	failures++;
}

#define EXPECT(condition, ...)             \
	do {                               \
		if (!(condition))          \
			wrong(__VA_ARGS__); \
	} while (0)

/* --- the table, by the layout only -------------------------------------------------------------------- */

static uint64_t owner_in(uint64_t token)
{
	return token & ~UINT64_C(0xff);
}

static uint32_t index_in(uint64_t owner)
{
	return (uint32_t)(owner >> MTLSHM_TYPE_BITS & 0xfff);
}

static uint64_t generation_in(uint64_t owner)
{
	return owner >> (MTLSHM_TYPE_BITS + MTLSHM_INDEX_BITS);
}

static uint64_t control_of(uint32_t index)
{
	return segment->instances[index].control;
}

static uint64_t state_of(uint32_t index)
{
	return control_of(index) & 0xff;
}

/* Does the record of this owner say so? */
static bool known(uint64_t owner)
{
	return owner && index_in(owner) < MTLSHM_INSTANCES && control_of(index_in(owner)) >> 8 == generation_in(owner) &&
	       state_of(index_in(owner)) != MTLSHM_FREE;
}

static uint64_t owner_of_record(uint32_t index)
{
	return control_of(index) >> 8 << (MTLSHM_TYPE_BITS + MTLSHM_INDEX_BITS) | (uint64_t)index << MTLSHM_TYPE_BITS;
}

/* Is there a write lock, or (for a writer's eyes) any? */
static bool locked(uint32_t index, short against)
{
	struct flock lock = {.l_type = against, .l_start = (off_t)MTLSHM_LIFE_BASE + index, .l_len = 1};
	int fd = open(path, O_RDWR | O_CLOEXEC);

	NEEDED(fd >= 0 && !fcntl(fd, F_OFD_GETLK, &lock));
	close(fd);
	return lock.l_type != F_UNLCK;
}

static uint32_t lcores_of(uint64_t owner)
{
	uint32_t count = 0;

	for (uint32_t i = 0; i < MTLSHM_LCORES; i++)
		count += owner && owner_in(segment->lcores[i].owner) == owner;
	return count;
}

static bool header_is_whole(void)
{
	return !memcmp(&segment->header, &before_it.header, offsetof(struct mtlshm_header, state)) &&
	       segment->header.state == MTLSHM_IN_USE;
}

/* --- the world ---------------------------------------------------------------------------------------- */

static struct mtlshm_instance *enter(struct mind *whose)
{
	const struct mtlshm_identity identity = {.cpus = &all};
	struct mtlshm_instance *instance = NULL;

	whose->rc = mtlshm_register(&instance, host, &identity);
	whose->owner = whose->rc ? 0 : mtlshm_owner(instance);
	return instance;
}

static void take(struct mtlshm_instance *instance, struct mind *whose, uint32_t lcore)
{
	whose->rc = mtlshm_claim(instance, lcore, MTLSHM_LCORE_APP);
	if (whose->rc)
		whose->refused = lcore;
	else
		whose->has[lcore] = whose->had[lcore] = true;
}

static void await_death(pid_t pid)
{
	int status;

	NEEDED(waitpid(pid, &status, 0) == pid && WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
}

static void die_holding(uint32_t first, uint32_t second, bool semaphore)
{
	struct mind own = {0};
	pid_t pid = fork();

	if (!pid) {
		me = enter(&own);
		NEEDED(me && !mtlshm_claim(me, first, 0) && !mtlshm_claim(me, second, 1));
		NEEDED(!semaphore || !mtlshm_lock(me, 0));
		kill(getpid(), SIGKILL);
	}
	await_death(pid);
}

static uint64_t add_proxy(struct mtlshm_instance **result)
{
	const struct mtlshm_process nobody = {.pid = 1};

	NEEDED(!mtlshm_register_proxy(result, host, MTLSHM_KIND_SOCKET, &nobody));
	return mtlshm_owner(*result);
}

static void map(void)
{
	int fd = open(path, O_RDWR | O_CLOEXEC);

	NEEDED(fd >= 0);
	segment = mmap(NULL, sizeof(*segment), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	NEEDED(segment != MAP_FAILED);
	close(fd);
}

static void make_world(void)
{
	struct mtlshm_instance *proxy;

	memset(&all, 0xff, sizeof(all));
	mind = mmap(NULL, sizeof(*mind), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	NEEDED(mind != MAP_FAILED);
	NEEDED(!mtlshm_open(&host, path, MTLSHM_CREATE, sysfs));
	map();
	if (about_the_file()) {
		before_it = *segment;
		return;
	}
	bystander = enter(&bystanders);
	take(bystander, &bystanders, 0);
	take(bystander, &bystanders, 1);
	NEEDED(!bystanders.rc && index_in(bystanders.owner) == 0);
	die_holding(2, 3, scenario->world & DEAD_HAS_SEMAPHORE);
	dead = owner_of_record(1);
	proxied = add_proxy(&proxy);
	NEEDED(index_in(proxied) == 2 && !mtlshm_claim(proxy, 4, MTLSHM_LCORE_SCH));
	die_holding(6, 7, false);
	NEEDED(lcores_of(dead) == 2 && known(dead) && !locked(1, F_WRLCK) && lcores_of(owner_of_record(3)) == 2);
	if (scenario->world & ALMOST_FULL)
		for (uint32_t i = 4; i < MTLSHM_INSTANCES; i++)
			add_proxy(&proxy);
	if (scenario->world & BYSTANDER_HAS_SEMAPHORE) {
		NEEDED(!mtlshm_lock(bystander, 0));
		bystanders.semaphore = true;
	}
	before_it = *segment;
}

static void reopen(void)
{
	if (host)
		NEEDED(!mtlshm_close(host));
	NEEDED(!mtlshm_open(&host, path, MTLSHM_CREATE, sysfs));
	munmap(segment, sizeof(*segment));
	map();
}

/* As a victim finds it. */
static void restore_world(void)
{
	memset(mind, 0, sizeof(*mind));
	memset(&rivals, 0, sizeof(rivals));
	bystanders.semaphore = scenario->world & BYSTANDER_HAS_SEMAPHORE;
	if (scenario->world & NO_SEGMENT) {
		unlink(path);
		return;
	}
	if (about_the_file()) {
		reopen();
		if (scenario->world & RETIRED)
			NEEDED(!mtlshm_retire(host));
		before_it = *segment;
		return;
	}
	*segment = before_it;
}

/* --- the victim --------------------------------------------------------------------------------------- */

extern const char crash_end[];

/* What is traced lies between the two breakpoints. */
static __attribute__((noinline)) void act(void)
{
	__asm__ volatile("int3" ::: "memory");
	scenario->call();
	__asm__ volatile(".globl crash_end\ncrash_end: int3" ::: "memory");
}

static pid_t start_victim(void)
{
	int status;
	pid_t pid = fork();

	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (scenario->before)
			scenario->before();
		NEEDED(!ptrace(PTRACE_TRACEME, 0, NULL, NULL));
		act();
		for (;;)
			pause();
	}
	NEEDED(waitpid(pid, &status, 0) == pid && WIFSTOPPED(status) && WSTOPSIG(status) == SIGTRAP);
	return pid;
}

static uint64_t ip_of(pid_t pid)
{
	errno = 0;
	return (uint64_t)ptrace(PTRACE_PEEKUSER, pid, offsetof(struct user_regs_struct, rip), NULL);
}

/* False: it was killed, or ended. */
static bool go(pid_t pid, int request)
{
	int status;

	for (long signal = 0;; signal = WSTOPSIG(status)) {
		NEEDED(!ptrace(request, pid, NULL, signal));
		NEEDED(waitpid(pid, &status, 0) == pid);
		if (!WIFSTOPPED(status)) {
			wrong("it ended by itself: status %#x", (unsigned int)status);
			exit(1);
		}
		if (WSTOPSIG(status) == SIGTRAP)
			return true;
		if (WSTOPSIG(status) == SIGABRT || WSTOPSIG(status) == SIGSEGV || WSTOPSIG(status) == SIGBUS) {
			wrong("it was ended by signal %d", WSTOPSIG(status));
			kill(pid, SIGKILL);
			exit(1);
		}
	}
}

static long word_at(pid_t pid, uint64_t ip)
{
	return ptrace(PTRACE_PEEKTEXT, pid, ip, NULL);
}

enum { SYSCALL = 0x050f };

static bool at_end(uint64_t ip)
{
	return ip == (uint64_t)(uintptr_t)crash_end;
}

/* Is it about to wait for the semaphore, or for somebody to remove the segment? */
static bool about_to_sleep(pid_t pid, uint64_t ip)
{
	struct user_regs_struct registers;

	if ((word_at(pid, ip) & 0xffff) != SYSCALL || ptrace(PTRACE_GETREGS, pid, NULL, &registers))
		return false;
	return (registers.rax == SYS_futex && !(registers.rsi & 0x7f)) || registers.rax == SYS_clock_nanosleep;
}

/* The victim's code only: the vDSO takes no breakpoints. */
static bool ours(uint64_t ip)
{
	extern const char __executable_start[], etext[];

	return ip >= (uint64_t)(uintptr_t)__executable_start && ip < (uint64_t)(uintptr_t)etext;
}

static void set_register(pid_t pid, size_t offset, uint64_t value)
{
	NEEDED(!ptrace(PTRACE_POKEUSER, pid, offset, value));
}

/* Run until the address comes for the nth time. False: the call was over before. By a breakpoint of the
 * processor's, off which the kernel helps by itself (RF), so each time costs one stop. */
static bool run_to(pid_t pid, uint64_t ip, uint32_t nth)
{
	if (ip_of(pid) == ip)
		nth--;
	set_register(pid, offsetof(struct user, u_debugreg[0]), ip);
	set_register(pid, offsetof(struct user, u_debugreg[7]), 1);
	for (uint32_t n = 0; n < nth; n++) {
		go(pid, PTRACE_CONT);
		if (ip_of(pid) != ip)
			return false;
	}
	set_register(pid, offsetof(struct user, u_debugreg[7]), 0);
	return true;
}

/* A victim at that position of the trace; the world is as the victim left it. */
static pid_t victim_at(uint32_t wanted)
{
	uint32_t from = 0, best = UINT32_MAX;

	for (uint32_t i = wanted; i + LONGEST_WALK > wanted; i--) {
		uint32_t cost = trace[i].nth + (wanted - i);

		if (ours(trace[i].ip) && cost < best) {
			best = cost;
			from = i;
		}
		if (!i)
			break;
	}
	for (int attempt = 0; attempt < ATTEMPTS; attempt++) {
		pid_t pid;
		bool arrived, elsewhere;

		restore_world();
		pid = start_victim();
		arrived = run_to(pid, trace[from].ip, trace[from].nth);
		for (uint32_t i = from; arrived && i < wanted; i++)
			arrived = go(pid, PTRACE_SINGLESTEP) && !(at_end(ip_of(pid)) && i + 1 < wanted);
		elsewhere = !arrived || ip_of(pid) != trace[wanted].ip;
		if (!elsewhere || (attempt == ATTEMPTS - 1 && arrived)) {
			astray += elsewhere;
			return pid;
		}
		kill(pid, SIGKILL);
		await_death(pid);
		repeated++;
	}
	astray++;
	return 0;
}

/* --- after a death ------------------------------------------------------------------------------------ */

/* The semaphore can be had at once, and whoever gets it is told that its holder died. */
static void try_semaphore(void)
{
	uint64_t holder = owner_in(segment->header.semaphore);
	int rc;

	if (bystanders.semaphore) {
		EXPECT(holder == bystanders.owner, "the semaphore was taken from a living holder");
		rc = mtlshm_unlock(bystander);
		EXPECT(rc == 0, "unlock by the holder: %d", rc);
		bystanders.semaphore = false;
		holder = 0;
	}
	rc = mtlshm_lock(bystander, 200);
	EXPECT(rc == (holder != 0), "lock: %d, with %#lx in it", rc, (unsigned long)holder);
	if (rc >= 0)
		EXPECT(mtlshm_unlock(bystander) == 0, "unlock failed");
	EXPECT(segment->header.semaphore == 0, "something is left in the semaphore: %#lx",
	       (unsigned long)segment->header.semaphore);
}

/* All that nobody alive has can be claimed. */
static void try_claims(void)
{
	for (uint32_t i = 0; i < LCORES; i++) {
		uint64_t word = segment->lcores[i].owner;
		bool alive = word && known(owner_in(word)) && state_of(index_in(word)) == MTLSHM_PROXIED;
		int rc = mtlshm_claim(bystander, i, MTLSHM_LCORE_TAP);

		if (bystanders.has[i])
			EXPECT(rc == -EALREADY, "claim of my own lcore %u: %d", i, rc);
		else
			EXPECT(rc == (alive ? -EBUSY : 0), "claim of lcore %u, where %#lx was: %d", i,
			       (unsigned long)word, rc);
		if (!rc)
			EXPECT(mtlshm_release(bystander, i) == 0, "release of lcore %u failed", i);
	}
}

/* Records can be had again, and come empty. */
static void try_records(void)
{
	struct mtlshm_instance *newcomers[4];
	bool reused = !mind->owner || known(mind->owner);

	for (int i = 0; i < 4; i++) {
		struct mind one = {0};

		newcomers[i] = enter(&one);
		EXPECT(!one.rc, "register: %d", one.rc);
		EXPECT(!lcores_of(one.owner), "a newcomer has %u lcores that it never claimed", lcores_of(one.owner));
		EXPECT(!one.owner || known(one.owner), "the table does not know a newcomer");
		reused |= one.owner && index_in(one.owner) == index_in(mind->owner);
		if (scenario->world & ALMOST_FULL && i == 1) {
			newcomers[2] = newcomers[3] = NULL;
			break;
		}
	}
	for (int i = 0; i < 4; i++)
		mtlshm_instance_free(newcomers[i]);
	EXPECT(reused, "record %u is not used again", index_in(mind->owner));
}

static void try_collect(void)
{
	uint64_t owners[2] = {dead, mind->owner};

	for (int i = 0; i < 2; i++) {
		bool was_known = known(owners[i]) && state_of(index_in(owners[i])) == MTLSHM_LIVE;
		int held = (int)lcores_of(owners[i]), rc;

		if (!was_known)
			continue;
		rc = mtlshm_collect(host, owners[i]);
		EXPECT(rc == held, "collect of the dead, who had %d lcores: %d", held, rc);
		EXPECT(!lcores_of(owners[i]) && !known(owners[i]), "collected, but not gone");
	}
}

static void try_sweep(void)
{
	int rc = mtlshm_sweep(host);

	EXPECT(rc >= 0, "sweep: %d", rc);
}

/* What the next daemon does with a proxied instance that the victim made. */
static void serve_as_daemon(void)
{
	uint64_t owners[MTLSHM_INSTANCES];
	int count = mtlshm_proxies(host, owners);

	for (int i = 0; i < count; i++) {
		struct mtlshm_instance *proxy;
		uint32_t index = index_in(owners[i]);

		if (before_it.instances[index].control == control_of(index))
			continue;
		EXPECT(!mtlshm_adopt(&proxy, host, owners[i]), "a proxied instance cannot be adopted");
		EXPECT(!mtlshm_unregister(proxy), "nor ended");
		mtlshm_instance_free(proxy);
	}
}

/* As if none of the dead had ever been there; but their generations are used up. */
static void inspect_remains(void)
{
	EXPECT(header_is_whole(), "the header was changed");
	for (uint32_t i = 0; i < MTLSHM_LCORES; i++) {
		uint64_t owner = owner_in(segment->lcores[i].owner);
		uint64_t rightful = i < LCORES && bystanders.has[i] ? bystanders.owner : i == 4 ? proxied : 0;

		if (i == 4 && mind->proxy && !owner) /* handed over to a proxied instance that is ended */
			continue;
		EXPECT(owner == rightful, "lcore %u is left with %#lx", i, (unsigned long)segment->lcores[i].owner);
	}
	for (uint32_t i = 0; i < MTLSHM_INSTANCES; i++) {
		uint64_t was = before_it.instances[i].control;
		bool stays = i == 0 || (was & 0xff) == MTLSHM_PROXIED;

		EXPECT(stays ? control_of(i) == was : state_of(i) == MTLSHM_FREE && control_of(i) >> 8 >= was >> 8,
		       "record %u is left as %#lx, was %#lx", i, (unsigned long)control_of(i), (unsigned long)was);
	}
	if (mind->owner)
		EXPECT(control_of(index_in(mind->owner)) >> 8 > generation_in(mind->owner),
		       "the generation of record %u could come again", index_in(mind->owner));
	EXPECT(generation_in(dead) < control_of(1) >> 8, "the generation of record 1 could come again");
	EXPECT(!mind->owner || !locked(index_in(mind->owner), F_WRLCK), "the victim's life lock is still held");
}

/* Whoever comes first after a death, and by whatever he does, finds all in order. */
static void recover(void)
{
	static void (*const ways[])(void) = {try_claims, try_records, try_sweep, try_semaphore, try_collect};
	const unsigned int count = sizeof(ways) / sizeof(ways[0]);

	serve_as_daemon();
	for (unsigned int i = 0; i < count; i++)
		ways[(variation + i) % count]();
	inspect_remains();
}

static void recover_file(void)
{
	const struct mtlshm_identity identity = {.cpus = &all};
	struct mtlshm_instance *instance = NULL;
	struct mtlshm_host *again = NULL;
	char directory[4096];
	struct dirent *entry;
	DIR *files;
	int rc = mtlshm_open(&again, path, MTLSHM_CREATE, sysfs);

	EXPECT(!rc, "open: %d", rc);
	if (rc)
		return;
	rc = mtlshm_register(&instance, again, &identity);
	EXPECT(!rc, "register: %d", rc);
	EXPECT(rc || (!mtlshm_claim(instance, 0, 0) && !mtlshm_lock(instance, 0) && !mtlshm_unlock(instance)),
	       "the segment is not usable");
	mtlshm_instance_free(instance);
	rc = mtlshm_close(again);
	EXPECT(!rc, "close: %d", rc);
	snprintf(directory, sizeof(directory), "%.*s", (int)(strrchr(path, '/') - path), path);
	files = opendir(directory);
	NEEDED(files);
	while ((entry = readdir(files)))
		EXPECT(entry->d_name[0] == '.' || !strcmp(entry->d_name, strrchr(path, '/') + 1), "%s is left",
		       entry->d_name);
	closedir(files);
}

static void recover_world(void)
{
	if (about_the_file()) {
		reopen(); /* lets go of what we have retired */
		recover_file();
	} else {
		recover();
	}
}

/* --- while it is stopped ------------------------------------------------------------------------------ */

/* The rival comes, and bit by bit of the variant: sweeps (before, so that it gets a dead one's record, or
 * after); claims all there is, or a few, or none; gives half of it back; keeps the semaphore. */
static void meddle(unsigned int variant)
{
	if (variant & 16)
		try_sweep();
	rival = enter(&rivals);
	EXPECT(!rivals.rc, "the rival cannot register: %d", rivals.rc);
	if (rivals.rc)
		return;
	EXPECT(!lcores_of(rivals.owner), "a newcomer has %u lcores that it never claimed", lcores_of(rivals.owner));
	if (variant & 1)
		try_sweep();
	for (uint32_t i = 0; i < LCORES; i++)
		if (variant & 2 || (variant & 32 && (i == TARGET || i == 2)))
			take(rival, &rivals, i);
	for (uint32_t i = 0; variant & 4 && i < LCORES; i += 2) {
		if (!rivals.has[i])
			continue;
		rivals.has[i] = false;
		EXPECT(!mtlshm_release(rival, i), "the rival cannot release lcore %u", i);
	}
	rivals.rc = mtlshm_lock(rival, 0);
	EXPECT(rivals.rc >= 0 || rivals.rc == -ETIMEDOUT, "the rival's lock: %d", rivals.rc);
	rivals.semaphore = rivals.rc >= 0;
	if (rivals.semaphore && !(variant & 8)) {
		rivals.semaphore = false;
		EXPECT(!mtlshm_unlock(rival), "the rival cannot unlock");
	}
	if (bystanders.semaphore) { /* and the victim waits for it */
		bystanders.semaphore = false;
		EXPECT(!mtlshm_unlock(bystander), "the holder cannot unlock");
	}
}

static bool is_among_living(uint64_t owner)
{
	return owner && (owner == mind->owner || owner == rivals.owner || owner == bystanders.owner || owner == proxied ||
			 owner == mind->proxy);
}

/* What all were told must be what the table says. */
static void judge(void)
{
	struct mind *minds[] = {&bystanders, mind, &rivals};
	uint64_t holder = owner_in(segment->header.semaphore), rightful = 0;

	for (int n = 0; n < 3; n++) {
		uint64_t owner = minds[n]->owner;

		EXPECT(!owner || known(owner), "the table does not know a living instance, %#lx", (unsigned long)owner);
		EXPECT(!owner || locked(index_in(owner), F_RDLCK), "a living instance has no life lock");
		if (minds[n]->semaphore) {
			EXPECT(!rightful, "two have the semaphore");
			rightful = owner;
		}
	}
	EXPECT(!mind->refused || rivals.had[mind->refused],
	       "refused lcore %u, which nobody alive has had", mind->refused);
	EXPECT(!mind->owner || mind->owner != rivals.owner, "the rival and the victim are the same instance");
	EXPECT(holder == rightful || (!rightful && !is_among_living(holder)),
	       "%#lx has the semaphore, %#lx thinks so", (unsigned long)holder, (unsigned long)rightful);
	for (uint32_t i = 0; i < LCORES; i++) {
		uint64_t word = owner_in(segment->lcores[i].owner), owner = i == 4 ? proxied : 0;

		if (i == 4 && mind->has[4])
			owner = mind->proxy;
		else
			for (int n = 0; n < 3; n++) {
				if (!minds[n]->has[i])
					continue;
				EXPECT(!owner, "lcore %u is owned twice", i);
				owner = minds[n]->owner;
			}
		if (owner)
			EXPECT(word == owner, "lcore %u is %#lx's, but %#lx's in the table", i, (unsigned long)owner,
			       (unsigned long)word);
		else
			EXPECT(!is_among_living(word), "lcore %u is a living instance's, which does not know", i);
	}
}

/* --- the scenarios ------------------------------------------------------------------------------------ */

static void become(void)
{
	me = enter(mind);
}

static void must_become(void)
{
	become();
	NEEDED(me);
}

static void become_owner(void)
{
	must_become();
	for (uint32_t i = TARGET; i < TARGET + 3; i++)
		take(me, mind, i);
	NEEDED(!mind->rc);
}

static void become_holder(void)
{
	must_become();
	NEEDED(mtlshm_lock(me, 0) >= 0);
	mind->semaphore = true;
}

static void become_daemon(void)
{
	must_become();
	mind->proxy = add_proxy(&me);
	mind->has[4] = false;
}

static void claim_free(void)
{
	take(me, mind, TARGET);
}

static void claim_of_the_dead(void)
{
	take(me, mind, 2);
}

static void claim_of_the_living(void)
{
	take(me, mind, 0);
}

static void release_all(void)
{
	memset(mind->has, 0, sizeof(mind->has));
	mind->rc = mtlshm_release_all(me);
}

static void claim_many(uint32_t count)
{
	const struct mtlshm_want want = {.count = count, .numa_node = MTLSHM_ANY_NODE, .timeout_ms = 1};
	uint16_t lcores[LCORES];

	mind->rc = mtlshm_claim_many(me, &want, lcores);
	for (uint32_t i = 0; !mind->rc && i < count; i++)
		mind->has[lcores[i]] = true;
}

static void claim_four(void)
{
	claim_many(4);
}

/* Has claimed so before, hence knows the machine: reading of it takes 70,000 instructions. */
static void become_versed(void)
{
	must_become();
	claim_four();
	release_all();
	NEEDED(mind->rc == 4);
}

static void become_versed_behind_a_dead_holder(void)
{
	become_versed();
	die_holding(12, 13, true);
}

/* More than there are without those of the dead. */
static void claim_almost_all(void)
{
	claim_many(LCORES - 4);
}

static void release(void)
{
	mind->has[TARGET] = false;
	mind->rc = mtlshm_release(me, TARGET);
}

static void release_not_ours(void)
{
	mind->rc = mtlshm_release(me, 0);
}

static void leave(void)
{
	memset(mind->has, 0, sizeof(mind->has));
	mind->owner = 0;
	mind->rc = mtlshm_unregister(me);
}

static void collect(void)
{
	mind->rc = mtlshm_collect(host, dead);
}

static void sweep(void)
{
	mind->rc = mtlshm_sweep(host);
}

static void lock_for(uint32_t timeout_ms)
{
	mind->rc = mtlshm_lock(me, timeout_ms);
	mind->semaphore = mind->rc >= 0;
}

static void lock(void)
{
	lock_for(1);
}

static void lock_patiently(void)
{
	lock_for(60000);
}

static void unlock(void)
{
	mind->semaphore = false;
	mind->rc = mtlshm_unlock(me);
}

static void make_proxy(void)
{
	const struct mtlshm_process nobody = {.pid = 1};

	mind->rc = mtlshm_register_proxy(&me, host, MTLSHM_KIND_SOCKET, &nobody);
}

static void hand_over(void)
{
	mind->rc = mtlshm_take(me, 4, proxied, MTLSHM_LCORE_SCH);
	mind->has[4] = !mind->rc;
}

static void open_it(void)
{
	mind->rc = mtlshm_open(&host, path, MTLSHM_CREATE, sysfs);
}

static void remove_it(void)
{
	mind->rc = mtlshm_retire(host);
	if (!mind->rc)
		mind->rc = unlink(path) ? -errno : 0;
	mtlshm_close(host);
}

/* Somebody else makes it: both shall have the same. */
static void open_as_well(unsigned int variant)
{
	struct mtlshm_host *second = NULL;
	struct stat st;
	int rc = mtlshm_open(&second, path, MTLSHM_CREATE, sysfs);

	(void)variant;
	EXPECT(!rc && !stat(path, &st), "the rival cannot open: %d", rc);
	rivals.proxy = rc ? 0 : st.st_ino;
	if (second)
		mtlshm_close(second);
}

/* Either it is removed, or somebody registers; never both. */
static void register_meanwhile(unsigned int variant)
{
	(void)variant;
	rival = enter(&rivals);
	EXPECT(!rivals.rc || rivals.rc == -ESTALE, "the rival's register: %d", rivals.rc);
}

/* He who has retired it thinks better of it: then it stays. */
static void spare_meanwhile(unsigned int variant)
{
	struct stat st;

	(void)variant;
	NEEDED(!stat(path, &st) && !mtlshm_close(host));
	host = NULL;
	rivals.proxy = st.st_ino;
}

static void remove_meanwhile(unsigned int variant)
{
	(void)variant;
	rivals.rc = mtlshm_retire(host);
	if (!rivals.rc)
		NEEDED(!unlink(path));
	EXPECT(!rivals.rc || rivals.rc == -EBUSY, "the rival's retire: %d", rivals.rc);
}

static void judge_file(void)
{
	struct stat st;

	if (scenario->meddle == open_as_well || scenario->meddle == spare_meanwhile) {
		EXPECT(!mind->rc, "open: %d", mind->rc);
		EXPECT(!stat(path, &st) && st.st_ino == rivals.proxy, "two segments have come of one");
	} else {
		EXPECT(mind->rc == 0 || mind->rc == -EBUSY || mind->rc == -ESTALE, "it returned %d", mind->rc);
		EXPECT(mind->rc || rivals.rc, "somebody is registered in a segment that was removed");
	}
}

static const struct scenario scenarios[] = {
	{"register", USUAL, NULL, become, 0, false, meddle},
	{"register_after_the_dead", ALMOST_FULL, NULL, become, 0, false, meddle},
	{"claim", USUAL, must_become, claim_free, 0, false, meddle},
	{"claim_from_the_dead", USUAL, must_become, claim_of_the_dead, 0, false, meddle},
	{"claim_from_the_living", USUAL, must_become, claim_of_the_living, -EBUSY, false, meddle},
	{"claim_many", USUAL, become_versed, claim_four, 0, false, meddle},
	{"claim_many_from_the_dead", USUAL, become_versed, claim_almost_all, 0, false, meddle},
	{"claim_many_after_a_dead_holder", USUAL, become_versed_behind_a_dead_holder, claim_four, 0, false, meddle},
	{"release", USUAL, become_owner, release, 0, false, meddle},
	{"release_not_ours", USUAL, must_become, release_not_ours, -EPERM, false, meddle},
	{"release_all", USUAL, become_owner, release_all, 3, false, meddle},
	{"unregister", USUAL, become_owner, leave, 0, false, meddle},
	{"collect", USUAL, must_become, collect, 2, false, meddle},
	{"sweep", USUAL, must_become, sweep, 2, false, meddle},
	{"lock", USUAL, must_become, lock, 0, false, meddle},
	{"lock_from_the_dead", DEAD_HAS_SEMAPHORE, must_become, lock, 1, false, meddle},
	{"lock_from_the_living", BYSTANDER_HAS_SEMAPHORE, must_become, lock_patiently, 0, true, meddle},
	{"unlock", USUAL, become_holder, unlock, 0, false, meddle},
	{"register_proxy", USUAL, must_become, make_proxy, 0, false, meddle},
	{"take", USUAL, become_daemon, hand_over, 0, false, meddle},
	{"open", NO_SEGMENT, NULL, open_it, 0, false, open_as_well},
	{"open_the_retired", RETIRED, NULL, open_it, 0, true, spare_meanwhile},
	{"retire", NOBODY, NULL, remove_it, 0, false, register_meanwhile},
	{"register_in_the_retired", NOBODY, NULL, become, 0, false, remove_meanwhile},
	{"claim_many_at_first", USUAL, must_become, claim_four, 0, false, meddle},
};

/* --- the passes --------------------------------------------------------------------------------------- */

/* The victim lives, and no instruction of its own may harm anybody else, nor leave it looking dead. */
static void look_at_table(void)
{
	EXPECT(scenario->world & NO_SEGMENT || !memcmp(&segment->header, &at_start.header, offsetof(struct mtlshm_header, state)),
	       "the header was changed");
	for (uint32_t i = 0; i < LCORES; i++) {
		uint64_t owner = owner_in(segment->lcores[i].owner);

		EXPECT(!bystanders.has[i] || owner == bystanders.owner, "lcore %u was taken from the living", i);
		EXPECT(!owner || known(owner) || index_in(owner) < 4, "lcore %u is %#lx's, who is unknown", i,
		       (unsigned long)owner);
	}
	for (uint32_t i = 0; i < MTLSHM_INSTANCES; i++)
		if (control_of(i) != at_start.instances[i].control && state_of(i) == MTLSHM_LIVE)
			EXPECT(locked(i, F_RDLCK), "record %u says LIVE, and has no life lock", i);
}

static void record(void)
{
	pid_t pid;
	static uint32_t seen[LONGEST_TRACE]; /* by address in our code */
	extern const char __executable_start[];

	doing = "stepped";
	changes = calls = killed = stopped = repeated = astray = 0;
	memset(seen, 0, sizeof(seen));
	restore_world();
	pid = start_victim();
	at_start = last_seen = *segment;
	for (length = 0;; length++) {
		uint64_t ip = ip_of(pid);
		bool enters = (word_at(pid, ip) & 0xffff) == SYSCALL;

		NEEDED(length + 1 < LONGEST_TRACE);
		trace[length].ip = ip;
		trace[length].nth = 1;
		if (ours(ip)) {
			uint64_t offset = ip - (uint64_t)(uintptr_t)__executable_start;

			NEEDED(offset < LONGEST_TRACE);
			trace[length].nth = ++seen[offset];
		}
		position = length;
		if (!length || trace[length].changed)
			look_at_table();
		if (at_end(ip) || (scenario->sleeps && about_to_sleep(pid, ip)))
			break;
		go(pid, PTRACE_SINGLESTEP);
		trace[length + 1].changed = enters || memcmp(segment, &last_seen, sizeof(last_seen));
		changes += trace[length + 1].changed;
		calls += enters;
		last_seen = *segment;
	}
	if (!scenario->sleeps)
		EXPECT(mind->rc == scenario->expected, "it returned %d, not %d", mind->rc, scenario->expected);
	kill(pid, SIGKILL);
	await_death(pid);
}

static void kill_at(uint32_t where)
{
	pid_t pid;

	doing = "killed";
	position = where;
	pid = victim_at(where);
	if (!pid)
		return;
	killed++;
	kill(pid, SIGKILL);
	await_death(pid);
	recover_world();
}

static void stop_at(uint32_t where)
{
	pid_t pid;

	doing = "stopped";
	position = where;
	pid = victim_at(where);
	if (!pid)
		return;
	stopped++;
	scenario->meddle(variation);
	if (!at_end(ip_of(pid)))
		go(pid, PTRACE_CONT);
	if (about_the_file())
		judge_file();
	else
		judge();
	kill(pid, SIGKILL);
	await_death(pid);
	doing = "killed after it was stopped";
	mtlshm_instance_free(rival);
	rival = NULL;
	rivals = (struct mind){0};
	recover_world();
}

int main(int argc, char **argv)
{
	cpu_set_t one;
	bool every;

	if (argc == 2 && !strcmp(argv[1], "list")) {
		for (size_t i = 0; i < sizeof(scenarios) / sizeof(scenarios[0]); i++)
			puts(scenarios[i].name);
		return 0;
	}
	if (argc != 7)
		return 2;
	for (size_t i = 0; i < sizeof(scenarios) / sizeof(scenarios[0]); i++)
		if (!strcmp(argv[1], scenarios[i].name))
			scenario = &scenarios[i];
	if (!scenario)
		return 2;
	path = argv[2];
	sysfs = argv[3];
	cpu = atoi(argv[4]);
	srand((unsigned int)atoi(argv[5]));
	every = !strcmp(argv[6], "every");
	setvbuf(stdout, NULL, _IOLBF, 0);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	/* A process and who traces it take turns: on two CPUs each turn would be a wake-up of the other. */
	CPU_ZERO(&one);
	CPU_SET(cpu, &one);
	NEEDED(!sched_setaffinity(0, sizeof(one), &one));

	make_world();
	/* Once for nothing: the second time malloc() finds in our heap what it will find from then on. */
	record();
	kill_at(length);
	stop_at(length);
	record();
	for (uint32_t i = 0; i <= length && failures < FAILURES; i++) {
		bool near = i == 0 || i == length || trace[i].changed || trace[i + 1].changed;

		variation = (unsigned int)rand() / 7;
		if (!every && !near && length > SHORT && (uint32_t)rand() % (length + 1) >= SAMPLES)
			continue;
		kill_at(i);
		for (int n = 0; n < (near ? VARIATIONS : 1); n++) {
			stop_at(i);
			variation = (unsigned int)rand() / 7;
		}
	}
	printf("done\t%s\t%u\t%u\t%u\t%u\t%u\t%u\t%u\t%u\n", scenario->name, length, changes, calls, killed, stopped,
	       repeated, astray, failures);
	return failures != 0;
}
