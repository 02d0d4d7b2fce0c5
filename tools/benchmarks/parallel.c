/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Many processes at once claim and release random ones of 64 lcores: million claims per second, of all together. An lcore
 * that is held is left alone and another tried; only claims that succeed count.
 *
 *     parallel DIRECTORY SYSFS PROCESSES TURNS
 */
#include "bench.h"

enum { LCORES = 64, MAX_PROCESSES = 64, BATCH = 64 };

struct control {
	int ready;
	int phase; /* even: rest; 1 + 4n: the subject's turn; 3 + 4n: the baseline's */
	struct {
		_Alignas(64) uint64_t claims;
	} process[MAX_PROCESSES];
};

static uint32_t random_lcore(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state % LCORES;
}

static int through_library(struct mtlshm_instance *me, uint32_t lcore)
{
	int error = mtlshm_claim(me, lcore, MTLSHM_LCORE_APP);

	CHECK(error == 0 || error == -EBUSY);
	CHECK(error || mtlshm_release(me, lcore) == 0);
	return error == 0;
}

static int bare(struct mtlshm_segment *table, uint64_t token, uint32_t lcore)
{
	if (!bare_claim(&table->lcores[lcore].owner, token))
		return 0;
	CHECK(bare_release(&table->lcores[lcore].owner, token));
	return 1;
}

static void work(struct control *control, int number, const char *segment, const char *sysfs)
{
	struct mtlshm_instance *me = join(segment, sysfs);
	struct mtlshm_segment *table = map_table(segment);
	uint64_t token = mtlshm_owner(me) | MTLSHM_LCORE_APP, random = 88172645463325252ULL * (number + 1);

	__atomic_add_fetch(&control->ready, 1, __ATOMIC_SEQ_CST);
	for (;;) {
		int phase = __atomic_load_n(&control->phase, __ATOMIC_ACQUIRE);
		uint64_t claims = 0;

		if (phase % 2 == 0) {
			usleep(1000);
			continue;
		}
		do {
			for (int i = 0; i < BATCH; i++) {
				uint32_t lcore = random_lcore(&random);

				claims += phase % 4 == 1 ? through_library(me, lcore) : bare(table, token, lcore);
			}
			__atomic_store_n(&control->process[number].claims, claims, __ATOMIC_RELAXED);
		} while (__atomic_load_n(&control->phase, __ATOMIC_RELAXED) == phase);
	}
}

/* Million claims per second of one turn, of a second. */
static double turn(struct control *control, int processes, int phase)
{
	int64_t start = now_ns();
	uint64_t claims = 0;

	for (int i = 0; i < processes; i++)
		control->process[i].claims = 0;
	__atomic_store_n(&control->phase, phase, __ATOMIC_RELEASE);
	sleep(1);
	for (int i = 0; i < processes; i++)
		claims += __atomic_load_n(&control->process[i].claims, __ATOMIC_RELAXED);
	double seconds = (now_ns() - start) / 1e9;

	__atomic_store_n(&control->phase, phase + 1, __ATOMIC_RELEASE);
	usleep(100000); /* until all have seen it */
	return claims / seconds / 1e6;
}

int main(int argc, char **argv)
{
	struct control *control;
	char segment[256];

	CHECK(argc == 5 && atoi(argv[3]) <= MAX_PROCESSES);
	int processes = atoi(argv[3]);
	snprintf(segment, sizeof segment, "%s/segment", argv[1]);
	control = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(control != MAP_FAILED);

	for (int i = 0; i < processes; i++)
		if (fork_bound() == 0)
			work(control, i, segment, argv[2]);
	while (__atomic_load_n(&control->ready, __ATOMIC_SEQ_CST) < processes)
		usleep(1000);
	for (int i = 0; i < atoi(argv[4]); i++) {
		double subject = turn(control, processes, 4 * i + 1);

		printf("%.3f %.3f\n", subject, turn(control, processes, 4 * i + 3));
	}
	return 0; /* the workers go with us */
}
