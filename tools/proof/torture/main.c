/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A client of one of several kinds, which does at random what it may until somebody kills it, and notes what it was given in
 * the observer's record (witness.h).
 *
 *     torture KIND SLOT SEED WITNESS LCORES SEGMENT SYSFS SOCKET KEY LOCKFILE
 *
 * KIND is shm, janitor, socket or legacy, of which keepers start many and expect nothing; or anchor, a legacy process that
 * only stays attached; or, when all others are gone, newcomer or drain: a client in shared memory and a legacy one that say
 * which lcores they can have.
 *
 * Its slot is 2n, and 2n + 1 is for a child of its own.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <pwd.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "mtlshm.h"
#include "../witness.h"

/* How long to wait for the semaphore. Whoever holds it is never stopped for long; but many wait, on few CPUs. */
#define PATIENCE_MS 20000
#define SOME 6 /* lcores that are claimed at once, at most */

static char **arguments;
static struct witness *witness;
static uint32_t lcores, slot, kind;
static uint64_t dice;

static uint32_t held[WITNESS_LCORES], held_count;

static uint32_t throw_dice(uint32_t sides)
{
	dice ^= dice << 13;
	dice ^= dice >> 7;
	dice ^= dice << 17;
	return (uint32_t)((dice >> 16) % sides);
}

static void nap(uint32_t most_us)
{
	const struct timespec duration = {.tv_nsec = throw_dice(most_us) * 1000};

	nanosleep(&duration, NULL);
}

static bool is_held(uint32_t lcore)
{
	for (uint32_t i = 0; i < held_count; i++)
		if (held[i] == lcore)
			return true;
	return false;
}

static void got(uint32_t lcore)
{
	witness_got(lcore);
	held[held_count++] = lcore;
}

static uint32_t gives(uint32_t position)
{
	uint32_t lcore = held[position];

	witness_gives(lcore);
	held[position] = held[--held_count];
	return lcore;
}

static void give_all(void)
{
	while (held_count)
		gives(0);
}

static void begin(uint32_t where)
{
	slot = where;
	held_count = 0;
	witness_begin(slot, kind);
}

/* Without giving anything back. */
static _Noreturn void end(void)
{
	witness_end();
	_exit(0);
}

static _Noreturn void become_another(void)
{
	static char seed[24];

	snprintf(seed, sizeof(seed), "%llu", (unsigned long long)dice);
	arguments[3] = seed;
	witness_count(&witness->executed);
	witness_end();
	execv("/proc/self/exe", arguments);
	_exit(1);
}

/* Returns 0 in a child, which lives in the other slot. Once in a life, as it may still be there. */
static int fork_once(void)
{
	if (slot % 2 || __atomic_load_n(&witness->lives[slot + 1], __ATOMIC_SEQ_CST))
		return -1;
	witness_count(&witness->forked);
	return fork();
}

/* --- clients in shared memory ------------------------------------------------------------------------- */

static struct mtlshm_host *host;
static struct mtlshm_instance *me;

static void become_instance(void)
{
	struct mtlshm_cpuset all;
	const struct mtlshm_identity identity = {.label = kind == WITNESS_JANITOR ? "janitor" : "torture", .cpus = &all};
	int rc;

	memset(&all, 0xff, sizeof(all));
	rc = mtlshm_register(&me, host, &identity);
	if (rc)
		witness_wrong("could not register:", rc);
}

static void open_segment(void)
{
	int rc = mtlshm_open(&host, arguments[6], MTLSHM_CREATE, arguments[7]);

	if (rc)
		witness_wrong("could not open the segment:", rc);
}

/* Others had it meanwhile, or it is not to be had at all. */
static void not_had_since(uint64_t before)
{
	if (__atomic_load_n(&witness->semaphores, __ATOMIC_SEQ_CST) == before)
		witness_wrong("nobody could have the semaphore for so many ms:", PATIENCE_MS);
}

static void claim_one(void)
{
	uint32_t lcore = throw_dice(lcores);
	int rc;

	if (is_held(lcore))
		return;
	rc = mtlshm_claim(me, lcore, throw_dice(MTLSHM_LCORE_TYPES));
	if (!rc)
		got(lcore);
	else if (rc != -EBUSY)
		witness_wrong("claim said", rc);
}

/* So quickly that whoever takes turns on a CPU is likely to be in the middle of a claim. */
static void claim_and_release(uint32_t times)
{
	while (times--) {
		uint32_t before = held_count;

		claim_one();
		if (held_count > before && mtlshm_release(me, gives(before)))
			witness_wrong("could not release what it had just been given: lcore", held[before]);
	}
}

static void claim_some(void)
{
	const struct mtlshm_want want = {
		.count = 1 + throw_dice(SOME), .numa_node = MTLSHM_ANY_NODE, .timeout_ms = PATIENCE_MS};
	uint64_t before = __atomic_load_n(&witness->semaphores, __ATOMIC_SEQ_CST);
	uint16_t given[SOME];
	int rc = mtlshm_claim_many(me, &want, given);

	if (rc == -ETIMEDOUT)
		not_had_since(before);
	else
		witness_count(&witness->semaphores);
	if (rc && rc != -EBUSY && rc != -ETIMEDOUT)
		witness_wrong("claim of several said", rc);
	for (uint32_t i = 0; !rc && i < want.count; i++)
		got(given[i]);
}

static void release_one(void)
{
	int rc;

	if (!held_count)
		return;
	rc = mtlshm_release(me, gives(throw_dice(held_count)));
	if (rc)
		witness_wrong("could not release what it had:", rc);
}

static void release_everything(void)
{
	int expected = (int)held_count, rc;

	give_all();
	rc = mtlshm_release_all(me);
	if (rc != expected)
		witness_wrong("released another number of lcores than it had:", rc - expected);
}

static void use_semaphore(void)
{
	uint64_t before = __atomic_load_n(&witness->semaphores, __ATOMIC_SEQ_CST);
	int rc = mtlshm_lock(me, PATIENCE_MS);

	if (rc == -ETIMEDOUT) {
		not_had_since(before);
		return;
	}
	if (rc < 0)
		witness_wrong("could not take the semaphore:", rc);
	witness_entered();
	if (!throw_dice(4))
		nap(200);
	witness_leaves();
	rc = mtlshm_unlock(me);
	if (rc)
		witness_wrong("could not give back the semaphore:", rc);
}

static void sweep(void)
{
	int rc = mtlshm_sweep(host);

	if (rc < 0)
		witness_wrong("sweep said", rc);
}

static void leave(void)
{
	int rc;

	give_all();
	rc = mtlshm_unregister(me);
	if (rc)
		witness_wrong("could not unregister:", rc);
	mtlshm_instance_free(me);
	me = NULL;
}

/* A child is nobody until it registers; what it inherited can do nothing. */
static void go_on_as_child(void)
{
	int rc = mtlshm_claim(me, throw_dice(lcores), MTLSHM_LCORE_APP);

	dice = ~dice; /* or it would do what its parent does */
	begin(slot + 1);
	if (rc != -ECHILD)
		witness_wrong("a child's claim in its parent's name said", rc);
	rc = held_count ? mtlshm_release(me, held[0]) : mtlshm_release_all(me);
	if (rc != -ECHILD)
		witness_wrong("a child's release in its parent's name said", rc);
	mtlshm_instance_free(me);
	become_instance();
}

static void live_in_shared_memory(void)
{
	static const uint32_t sweeps[] = {[WITNESS_SHM] = 2, [WITNESS_JANITOR] = 30};

	open_segment();
	for (;;) {
		become_instance();
		for (uint32_t n = throw_dice(60); n; n--) {
			uint32_t what = throw_dice(100);

			if (what < sweeps[kind])
				sweep();
			else if (what < 40)
				claim_one();
			else if (what < 60)
				release_one();
			else if (what < 70)
				claim_some();
			else if (what < 75)
				release_everything();
			else if (what < 80)
				use_semaphore();
			else if (what < 82)
				claim_and_release(throw_dice(5000));
			else if (what < 99)
				nap(300);
			else if (throw_dice(3))
				break;
			else if (throw_dice(2))
				become_another();
			else if (!fork_once())
				go_on_as_child();
		}
		if (!throw_dice(20))
			end();
		leave();
		if (!throw_dice(10)) {
			mtlshm_close(host);
			open_segment();
		}
	}
}

/* When nobody else is there: says which lcores it can have, keeps them until its input ends, and has whatever else there is. */
static void have_everything(void)
{
	struct mtlshm_want want = {.numa_node = MTLSHM_ANY_NODE, .timeout_ms = PATIENCE_MS};
	uint16_t given[WITNESS_LCORES];
	int rc;

	open_segment();
	become_instance();
	for (uint32_t i = 0; i < lcores; i++) {
		rc = mtlshm_claim(me, i, MTLSHM_LCORE_APP);
		if (!rc)
			dprintf(STDOUT_FILENO, "%u ", i);
		else if (rc != -EBUSY)
			witness_wrong("at the end, a claim said", rc);
		want.count += !rc;
	}
	dprintf(STDOUT_FILENO, "\n");
	while (getchar() != EOF)
		;
	rc = mtlshm_release_all(me);
	if (rc != (int)want.count)
		witness_wrong("at the end, it could not release all lcores:", rc);
	rc = mtlshm_lock(me, PATIENCE_MS);
	if (rc < 0 || mtlshm_unlock(me))
		witness_wrong("at the end, the semaphore cannot be had:", rc);
	rc = mtlshm_claim_many(me, &want, given);
	if (rc)
		witness_wrong("at the end, a claim of all lcores said", rc);
	/* All records but the daemon's and that of what is lent; soon, as the daemon has yet to hear that drain is gone. */
	for (int i = 1, tries = PATIENCE_MS / 10; i < MTLSHM_INSTANCES - 2; i++) {
		for (rc = mtlshm_register(&me, host, NULL); rc == -EUSERS && tries; tries--) {
			usleep(10000);
			rc = mtlshm_register(&me, host, NULL);
		}
		if (rc)
			witness_wrong("at the end, a record cannot be had:", rc);
	}
}

/* --- clients of the manager's socket ------------------------------------------------------------------- */

enum { SIZE = 118, MAGIC = 0x494d544c, REGISTER = 101, GET_LCORE = 103, PUT_LCORE = 104, RESPONSE = 201 };

static int server = -1;

/* What the daemon says, or -EPIPE if the connection is gone. */
static int ask(uint32_t type, uint32_t lcore)
{
	uint32_t header[4] = {htonl(MAGIC), htonl(type)}; /* and the response */
	uint16_t body = htons((uint16_t)lcore);
	char bytes[SIZE] = {0};

	memcpy(bytes, header, 12);
	if (type != REGISTER)
		memcpy(bytes + 12, &body, sizeof(body));
	if (send(server, bytes, SIZE, MSG_NOSIGNAL) != SIZE || recv(server, bytes, SIZE, MSG_WAITALL) != SIZE)
		return -EPIPE;
	memcpy(header, bytes, sizeof(header));
	if (header[0] != htonl(MAGIC) || header[1] != htonl(RESPONSE))
		witness_wrong("the daemon answered with a record of type", ntohl(header[1]));
	return (int)ntohl(header[3]);
}

static bool connect_to_daemon(void)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int rc = -EPIPE;

	strncpy(address.sun_path, arguments[8], sizeof(address.sun_path) - 1);
	server = socket(AF_UNIX, SOCK_STREAM, 0);
	if (!connect(server, (struct sockaddr *)&address, sizeof(address)))
		rc = ask(REGISTER, 0);
	if (!rc)
		return true;
	if (rc != -EPIPE)
		witness_wrong("the daemon refused to register it:", rc);
	close(server);
	nap(10000);
	return false;
}

/* The connection is gone and the client, as libmtl, has no other. What it has it keeps until it dies. */
static _Noreturn void live_without_daemon(void)
{
	nap(200000);
	end();
}

static void claim_from_daemon(void)
{
	uint32_t lcore = throw_dice(lcores);
	int rc;

	if (is_held(lcore))
		return;
	rc = ask(GET_LCORE, lcore);
	if (rc == -EPIPE)
		live_without_daemon();
	else if (!rc)
		got(lcore);
	else if (rc != -EBUSY)
		witness_wrong("the daemon answered GET_LCORE with", rc);
}

static void release_to_daemon(void)
{
	int rc = ask(PUT_LCORE, gives(throw_dice(held_count)));

	if (rc == -EPIPE)
		live_without_daemon();
	else if (rc)
		witness_wrong("the daemon answered PUT_LCORE with", rc);
}

static void live_on_socket(void)
{
	for (;;) {
		while (!connect_to_daemon())
			;
		for (uint32_t n = throw_dice(60); n; n--) {
			uint32_t what = throw_dice(100);

			if (what < 45)
				claim_from_daemon();
			else if (what < 85 && held_count)
				release_to_daemon();
			else if (what < 99)
				nap(2000);
			else if (!fork_once()) {
				begin(slot + 1); /* does nothing but hold the socket, also when its parent is dead */
				pause();
			}
		}
		if (!throw_dice(4))
			end();
		give_all();
		close(server);
	}
}

/* --- clients that know no manager ---------------------------------------------------------------------- */

struct entry {
	char hostname[64];
	char user[32];
	char comm[64];
	int unused_pid;
	int pid;
	int type;
	bool active;
};

struct table {
	int used;
	struct entry entries[128];
};

_Static_assert(sizeof(struct table) == 22532, "as in every libmtl");

static struct table *table;
static struct entry myself;
static int table_id;

static int lock_table(void)
{
	int fd = open(arguments[10], O_RDWR | O_CREAT | O_CLOEXEC, 0666);

	if (fd < 0 || flock(fd, LOCK_EX))
		witness_wrong("could not lock the legacy table:", -errno);
	return fd;
}

static void attach_table(void)
{
	int fd = lock_table();
	struct shmid_ds status;

	table_id = shmget((key_t)strtol(arguments[9], NULL, 0), sizeof(struct table), IPC_CREAT | 0666);
	table = table_id < 0 ? (void *)-1 : shmat(table_id, NULL, 0);
	if (table == (void *)-1 || shmctl(table_id, IPC_STAT, &status))
		witness_wrong("could not attach to the legacy table:", -errno);
	if (status.shm_nattch == 1)
		memset(table, 0, sizeof(*table));
	close(fd);
	gethostname(myself.hostname, sizeof(myself.hostname) - 1);
	strcpy(myself.user, "root");
	strcpy(myself.comm, "torture");
	myself.pid = getpid();
}

static void detach_table(void)
{
	int fd = lock_table();
	struct shmid_ds status;

	if (shmdt(table) || shmctl(table_id, IPC_STAT, &status))
		witness_wrong("could not detach from the legacy table:", -errno);
	if (status.shm_nattch == 0)
		shmctl(table_id, IPC_RMID, NULL);
	close(fd);
}

/* The first that is not active from there on, which may be none. */
static bool claim_from_table(uint32_t first)
{
	int fd = lock_table();
	bool granted = false;

	for (uint32_t i = first; i < lcores && !granted; i++) {
		struct entry *entry = &table->entries[i];

		if (entry->active && !strcmp(entry->hostname, myself.hostname) && !strcmp(entry->user, myself.user) &&
		    kill(entry->pid, 0))
			entry->active = false;
		if (entry->active)
			continue;
		*entry = myself;
		entry->active = granted = true;
		table->used++;
		got(i);
	}
	close(fd);
	return granted;
}

static void release_to_table(void)
{
	int fd = lock_table();
	struct entry *entry = &table->entries[gives(throw_dice(held_count))];

	if (!entry->active || entry->pid != myself.pid)
		witness_wrong("its entry in the legacy table is no longer its own, but of pid", entry->pid);
	entry->active = false;
	table->used--;
	close(fd);
}

static void live_on_table(void)
{
	for (;;) {
		attach_table();
		for (uint32_t n = throw_dice(30); n; n--) {
			uint32_t what = throw_dice(100);

			if (what < 30)
				claim_from_table(throw_dice(lcores));
			else if (what < 50 && held_count)
				release_to_table();
			else
				nap(3000);
		}
		if (!throw_dice(4))
			end();
		while (held_count)
			release_to_table();
		detach_table();
	}
}

static void drain_table(void)
{
	attach_table();
	while (claim_from_table(0))
		dprintf(STDOUT_FILENO, "%u ", held[held_count - 1]);
	while (held_count)
		release_to_table();
	detach_table();
}

int main(int argc, char **argv)
{
	static const char *const names[] = {
		[WITNESS_SHM] = "shm",
		[WITNESS_PYTHON] = "python",
		[WITNESS_JANITOR] = "janitor",
		[WITNESS_SOCKET] = "socket",
		[WITNESS_LEGACY] = "legacy",
	};

	if (argc != 11)
		return 2;
	setpriority(PRIO_PROCESS, 0, 10); /* whoever starts and kills them, and the daemon, shall have their turns */
	arguments = argv;
	witness = witness_open(argv[4]);
	if (!witness)
		return 2;
	dice = strtoull(argv[3], NULL, 0) | 1;
	lcores = (uint32_t)strtoul(argv[5], NULL, 0);
	for (kind = 0; kind < WITNESS_KINDS && strcmp(argv[1], names[kind]); kind++)
		;
	if (kind == WITNESS_KINDS)
		kind = strcmp(argv[1], "newcomer") ? WITNESS_LEGACY : WITNESS_SHM;
	begin((uint32_t)strtoul(argv[2], NULL, 0));
	if (!strcmp(argv[1], "anchor")) {
		attach_table();
		for (;;)
			pause();
	}
	if (!strcmp(argv[1], "newcomer"))
		have_everything();
	else if (!strcmp(argv[1], "drain"))
		drain_table();
	else if (kind == WITNESS_SOCKET)
		live_on_socket();
	else if (kind == WITNESS_LEGACY)
		live_on_table();
	else
		live_in_shared_memory();
	return 0;
}
