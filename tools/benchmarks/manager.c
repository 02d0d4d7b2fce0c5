/* SPDX-License-Identifier: BSD-3-Clause
 *
 * libmtl's way to an lcore: over the manager socket of a running daemon, against the same number of bytes to and from
 * the server of server.c.
 *
 *     manager DIRECTORY SYSFS round_trip CLIENTS TURNS   ns, a line for each of some round trips of all clients
 *     manager DIRECTORY SYSFS throughput CLIENTS TURNS   requests/s of all clients together
 *     manager DIRECTORY SYSFS hot CLIENTS TURNS          the same as round_trip while others register
 *     manager DIRECTORY SYSFS register 1 TURNS           ns from nothing to a client that may ask for lcores
 *
 * The clients are processes, for the daemon tells them apart by process. Each has an lcore of its own, which it gets
 * and gives back without end. Where they run is up to the caller's affinity mask.
 */
#include <stdbool.h>
#include <sys/wait.h>

#include "bench.h"

enum {
	MAX_CLIENTS = 16,
	LCORE_OF_VISITORS = MAX_CLIENTS,
	SAMPLES = 3200, /* a turn, of all clients: the last of each */
	TURN_US = 300000,
	VISITS = 300, /* a second, of those who register */
	REST_US =
		20000, /* until all have seen that the turn is over; and what the one server has to do the other does not pay */
};

static char manager_path[256], server_path[256];

/* Even: rest; 1 + 4n: the subject's turn; 3 + 4n: the baseline's. */
struct control {
	int ready;
	int phase;
	struct {
		_Alignas(64) uint64_t requests;
		uint32_t ns[2][SAMPLES]; /* subject's, baseline's */
	} client[MAX_CLIENTS];
};

static void work(struct control *control, int number, int samples)
{
	int manager = manager_connect(manager_path), server = server_connect(server_path);

	__atomic_add_fetch(&control->ready, 1, __ATOMIC_SEQ_CST);
	for (;;) {
		int phase = __atomic_load_n(&control->phase, __ATOMIC_ACQUIRE), baseline = phase % 4 == 3;
		uint64_t n = 0;

		if (phase % 2 == 0) {
			usleep(1000);
			continue;
		}
		/* Even at the end: the lcore is given back. */
		while (n % 2 || __atomic_load_n(&control->phase, __ATOMIC_RELAXED) == phase) {
			int64_t start = now_ns();

			if (baseline)
				CHECK((n % 2 ? server_release(server, number) : server_claim(server, number)) == 0);
			else if (n % 2)
				manager_put(manager, number);
			else
				manager_get(manager, number);
			control->client[number].ns[baseline][n++ % samples] = now_ns() - start;
			__atomic_store_n(&control->client[number].requests, n, __ATOMIC_RELAXED);
		}
	}
}

static int64_t enroll(void)
{
	int64_t start = now_ns(), end;
	int fd = manager_connect(manager_path);

	end = now_ns();
	close(fd);
	return end - start;
}

/* The least that is needed: connect, and one request. */
static int64_t enroll_at_server(void)
{
	int64_t start = now_ns(), end;
	int fd = server_connect(server_path);

	CHECK(server_claim(fd, LCORE_OF_VISITORS) == 0);
	end = now_ns();
	close(fd);
	return end - start;
}

/* Come and go at whoever has the turn. Where that is slower than VISITS, as often as it goes. */
static void visit(struct control *control)
{
	const int64_t pause = INT64_C(1000000000) / VISITS;

	for (int64_t next = now_ns() + pause;; next += pause) {
		int phase = __atomic_load_n(&control->phase, __ATOMIC_ACQUIRE);
		int64_t late;

		if (phase % 4 == 1)
			enroll();
		else if (phase % 4 == 3)
			enroll_at_server();
		late = now_ns() - next;
		if (late < 0)
			usleep((useconds_t)(-late / 1000));
		else
			next += late;
	}
}

static bool all_have(struct control *control, int clients, int samples)
{
	for (int i = 0; i < clients; i++)
		if (__atomic_load_n(&control->client[i].requests, __ATOMIC_RELAXED) < (uint64_t)samples)
			return false;
	return true;
}

/* Requests per second of one turn; `samples` is how many are wanted of each client at least. */
static double turn(struct control *control, int clients, int phase, int samples)
{
	int64_t start = now_ns();
	uint64_t requests = 0;

	for (int i = 0; i < clients; i++)
		control->client[i].requests = 0;
	__atomic_store_n(&control->phase, phase, __ATOMIC_RELEASE);
	do { /* on a machine that does something else as well, one more time */
		usleep(TURN_US);
		CHECK(waitpid(-1, NULL, WNOHANG) == 0);
	} while (!all_have(control, clients, samples));
	for (int i = 0; i < clients; i++)
		requests += __atomic_load_n(&control->client[i].requests, __ATOMIC_RELAXED);
	double seconds = (now_ns() - start) / 1e9;

	__atomic_store_n(&control->phase, phase + 1, __ATOMIC_RELEASE);
	usleep(REST_US);
	return requests / seconds;
}

static void measure_clients(int clients, int turns, bool round_trips, bool visitors)
{
	struct control *control =
		mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	int samples = SAMPLES / clients;

	CHECK(control != MAP_FAILED && clients <= MAX_CLIENTS);
	for (int i = 0; i < clients; i++)
		if (fork_bound() == 0)
			work(control, i, samples);
	if (visitors && fork_bound() == 0)
		visit(control);
	while (__atomic_load_n(&control->ready, __ATOMIC_SEQ_CST) < clients) {
		CHECK(waitpid(-1, NULL, WNOHANG) == 0); /* one that was refused has said so and ended */
		usleep(1000);
	}
	for (int n = 0; n < turns; n++) {
		double subject = turn(control, clients, 4 * n + 1, samples);
		double baseline = turn(control, clients, 4 * n + 3, samples);

		if (!round_trips)
			printf("%.0f %.0f\n", subject, baseline);
		for (int i = 0; round_trips && i < clients; i++)
			for (int k = 0; k < samples; k++)
				printf("%u %u\n", control->client[i].ns[0][k], control->client[i].ns[1][k]);
	}
}

int main(int argc, char **argv)
{
	CHECK(argc == 6);
	snprintf(manager_path, sizeof manager_path, "%s/manager.sock", argv[1]);
	snprintf(server_path, sizeof server_path, "%s/socket", argv[1]);
	int clients = atoi(argv[4]), turns = atoi(argv[5]);

	server_start(server_path, -1);
	if (strcmp(argv[3], "register")) {
		measure_clients(clients, turns, strcmp(argv[3], "throughput"), !strcmp(argv[3], "hot"));
		return 0; /* the clients go with us */
	}
	for (int n = 0; n < turns; n++) {
		int64_t subject = enroll(), baseline;

		usleep(REST_US / 10);
		baseline = enroll_at_server();
		usleep(REST_US / 10);
		printf("%ld %ld\n", (long)subject, (long)baseline);
	}
	return 0;
}
