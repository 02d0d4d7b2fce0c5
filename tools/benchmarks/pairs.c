/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What one process does alone, in ns: claim and release, register and unregister, against simpler or older ways.
 *
 *     pairs DIRECTORY SYSFS FIGURE TURNS
 */
#include <pthread.h>
#include <sys/file.h>

#include "bench.h"

enum { LCORE = 5, LENT = 6 };

static struct mtlshm_instance *me, *tenant;
static struct mtlshm_host *host;
static char segment[256], lock_path[256], socket_path[256];
static struct mtlshm_segment *table;
static uint64_t token;
static pthread_mutex_t *mutex;
static int server;

static void claim(int n)
{
	while (n--)
		CHECK(mtlshm_claim(me, LCORE, MTLSHM_LCORE_APP) == 0 && mtlshm_release(me, LCORE) == 0);
}

/* From a parent, and back to it. */
static void claim_from_parent(int n)
{
	while (n--)
		CHECK(mtlshm_claim(tenant, LENT, MTLSHM_LCORE_APP) == 0 && mtlshm_release(tenant, LENT) == 0);
}

static void bare(int n)
{
	uint64_t *word = &table->lcores[LCORE].owner;

	while (n--)
		CHECK(bare_claim(word, token) && bare_release(word, token));
}

static void robust_mutex(int n)
{
	while (n--)
		CHECK(pthread_mutex_lock(mutex) == 0 && pthread_mutex_unlock(mutex) == 0);
}

/* As libmtl does without a manager: a lock file, opened anew for each claim. */
static void file_lock(int n)
{
	while (n--) {
		int fd = open(lock_path, O_RDWR | O_CLOEXEC);

		CHECK(fd >= 0 && flock(fd, LOCK_EX) == 0 && close(fd) == 0);
	}
}

static void over_socket(int n)
{
	while (n--)
		CHECK(server_claim(server, LCORE) == 0 && server_release(server, LCORE) == 0);
}

/* The instance has its CPUs given, since this machine has not 64. One that has not looks up its affinity mask in
 * every such claim, so that system call is made here, to count. */
static void claim8(int n)
{
	struct mtlshm_want want = {
		.count = 8, .numa_node = MTLSHM_ANY_NODE, .smt = MTLSHM_SMT_AVOID, .type = MTLSHM_LCORE_APP};
	struct mtlshm_cpuset mask;
	uint16_t lcores[8];

	while (n--) {
		CHECK(mtlshm_affinity(&mask) == 0 && mtlshm_claim_many(me, &want, lcores) >= 0);
		for (int i = 0; i < 8; i++)
			CHECK(mtlshm_release(me, lcores[i]) == 0);
	}
}

static void bare8(int n)
{
	while (n--) {
		for (int i = 0; i < 8; i++)
			CHECK(bare_claim(&table->lcores[i].owner, token));
		for (int i = 0; i < 8; i++)
			CHECK(bare_release(&table->lcores[i].owner, token));
	}
}

static void enroll(int n)
{
	struct mtlshm_cpuset cpus = {{1}};
	struct mtlshm_identity identity = {.cpus = &cpus};

	while (n--) {
		struct mtlshm_instance *other;

		CHECK(mtlshm_register(&other, host, &identity) == 0 && mtlshm_unregister(other) == 0);
		mtlshm_instance_free(other);
	}
}

/* The least that makes a lock which dies with the address space: the same lock, bare. */
static void bare_life_lock(int n)
{
	while (n--) {
		struct flock life = {.l_type = F_WRLCK, .l_start = MTLSHM_LIFE_BASE + 255, .l_len = 1};
		int fd = open(segment, O_RDWR | O_CLOEXEC);
		void *page;

		CHECK(fd >= 0 && fcntl(fd, F_OFD_SETLK, &life) == 0);
		page = mmap(NULL, 4096, PROT_NONE, MAP_SHARED, fd, 0);
		CHECK(page != MAP_FAILED && close(fd) == 0 && munmap(page, 4096) == 0);
	}
}

static const struct figure {
	const char *name;
	void (*subject)(int n), (*baseline)(int n);
	int subject_n,
		baseline_n; /* for about 10 ms a turn: several scheduler ticks, short against what disturbs a machine */
} figures[] = {
	{"claim_c", claim, bare, 400000, 600000},
	{"claim_c_vs_robust_mutex", claim, robust_mutex, 400000, 400000},
	{"claim_c_vs_flock", claim, file_lock, 400000, 10000},
	{"claim_c_vs_socket", claim, over_socket, 400000, 1000},
	{"claim_tenant_c", claim_from_parent, claim, 400000, 400000},
	{"claim8_c", claim8, bare8, 10000, 60000},
	{"register_c", enroll, bare_life_lock, 1500, 3000},
};

static void become_tenant(void)
{
	struct mtlshm_identity identity = {.cpus = &(struct mtlshm_cpuset){{~UINT64_C(0)}}, .parent = MTLSHM_NO_PARENT};
	struct mtlshm_instance *parent;

	CHECK(mtlshm_register(&parent, host, &identity) == 0);
	CHECK(mtlshm_claim(parent, LENT, MTLSHM_LCORE_LEASE) == 0);
	identity.parent = mtlshm_owner(parent);
	CHECK(mtlshm_register(&tenant, host, &identity) == 0);
}

static double measure(void (*run)(int n), int n)
{
	int64_t start;

	run(n / 10); /* the other one has had the caches */
	start = now_ns();
	run(n);
	return (double)(now_ns() - start) / n;
}

int main(int argc, char **argv)
{
	const struct figure *figure = figures;
	pthread_mutexattr_t attributes;

	CHECK(argc == 5);
	snprintf(segment, sizeof segment, "%s/segment", argv[1]);
	snprintf(lock_path, sizeof lock_path, "%s/lock", argv[1]);
	snprintf(socket_path, sizeof socket_path, "%s/socket", argv[1]);
	while (strcmp(figure->name, argv[3]))
		CHECK(++figure < figures + sizeof figures / sizeof *figures);

	/* Server and client on one CPU: here the quickest for both, since the reply is there when the client gets to run. */
	int cpu = nth_cpu(0);
	server_start(socket_path, cpu);
	server = server_connect(socket_path);
	pin(cpu);

	close(open(lock_path, O_RDWR | O_CREAT | O_CLOEXEC, 0600));

	mutex = mmap(NULL, sizeof *mutex, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(mutex != MAP_FAILED);
	pthread_mutexattr_init(&attributes);
	pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
	pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
	CHECK(pthread_mutex_init(mutex, &attributes) == 0);

	me = join(segment, argv[2]);
	CHECK(mtlshm_open(&host, segment, 0, argv[2]) == 0);
	if (figure->subject == claim_from_parent)
		become_tenant();
	table = map_table(segment);
	token = mtlshm_owner(me) | MTLSHM_LCORE_APP;

	for (int turn = atoi(argv[4]); turn > 0; turn--) {
		double subject = measure(figure->subject, figure->subject_n);

		printf("%.2f %.2f\n", subject, measure(figure->baseline, figure->baseline_n));
	}
	mtlshm_instance_free(me);
	mtlshm_close(host);
	return 0;
}
