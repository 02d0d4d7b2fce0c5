/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A segment with any content, and everything that can be done with it: libFuzzer decides which.
 *
 *     MTLSHM_FUZZ=FILE fuzz_segment [OPTIONS OF LIBFUZZER]
 *
 * The input is a list of changes to a good segment, 11 bytes each: where (a 64-bit word), how, and what. That is nearer
 * to what matters than raw bytes, of which the check of the header would refuse nearly all. What is
 * changed before the segment is opened and what while it is in use is part of the input; so is the file's length.
 *
 * The sanitizers and -timeout find crashes and endless loops. What else may not be is said by MUST().
 */
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "mtlshm.h"

#define MUST(what)                                                                 \
	do {                                                                       \
		if (!(what)) {                                                     \
			fprintf(stderr, "line %d: not so: %s\n", __LINE__, #what); \
			abort();                                                   \
		}                                                                  \
	} while (0)

enum { DAY = 86400, CHANGE = 11, WORDS = sizeof(struct mtlshm_segment) / 8 };

static const char *path;
static struct mtlshm_segment good;
static struct mtlshm_snapshot snapshot;
static struct mtlshm_event events[MTLSHM_EVENTS];

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	struct mtlshm_host *host;
	struct mtlshm_instance *dead;
	int fd;

	(void)argc;
	(void)argv;
	path = getenv("MTLSHM_FUZZ");
	MUST(path);
	unlink(path);
	MUST(!mtlshm_open(&host, path, MTLSHM_CREATE, NULL));
	MUST(!mtlshm_register(&dead, host, NULL));
	MUST(!mtlshm_claim(dead, 0, MTLSHM_LCORE_APP));
	fd = open(path, O_RDONLY | O_CLOEXEC);
	MUST(read(fd, &good, sizeof(good)) == sizeof(good)); /* with one dead instance that has an lcore */
	close(fd);
	mtlshm_instance_free(dead);
	mtlshm_close(host);
	unlink(path);
	return 0;
}

/* One change to a table. Words where states, tokens and the semaphore are come as often as all others together. */
static void change(struct mtlshm_segment *table, const uint8_t *input)
{
	uint64_t value, index = input[0] | (uint64_t)input[1] << 8, *word = NULL;
	uint32_t *half = NULL;

	memcpy(&value, input + 3, sizeof(value));
	switch (input[2] % 8) {
	case 0: word = (uint64_t *)table + index % WORDS; break;
	case 1: half = (uint32_t *)&table->header + index % (sizeof(table->header) / sizeof(*half)); break;
	case 2:
	case 3: word = &table->instances[index % MTLSHM_INSTANCES].control; break;
	case 4:
		word = (uint64_t *)&table->instances[index % 4] + 1;
		word += (index >> 2) % (sizeof(struct mtlshm_record) / 8 - 4);
		break; /* and the two after it, as texts take some */
	case 5:
	case 6: word = &table->lcores[index % MTLSHM_LCORES].owner; break;
	default:
		word = index % 4 == 1   ? &table->header.events
		       : index % 4 == 2 ? (uint64_t *)&table->events[0] + (index >> 2) % (sizeof(*events) / 8)
					: &table->header.semaphore;
	}
	switch (input[2] / 8 % 4) {
	case 0: break;
	case 1: /* a token of a record that may be there */
		value = (value >> 20 & 3) << 20 | (value & 0x1ff) << 8 | (value >> 9 & 7);
		break;
	case 2: /* a control word */ value = (value & 3) << 8 | (value >> 8 & 3); break;
	default: value = value & 1 ? ~UINT64_C(0) : 0;
	}
	if (half)
		__atomic_store_n(half, (uint32_t)value, __ATOMIC_RELAXED);
	else
		for (int i = 0; i < (input[2] % 8 == 4 ? 3 : 1); i++)
			__atomic_store_n(word + i, value, __ATOMIC_RELAXED);
}

static void write_file(const struct mtlshm_segment *table, size_t length)
{
	int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	MUST(fd >= 0 && write(fd, table, length) == (ssize_t)length);
	close(fd);
}

/* Whatever lies in the ring, only what somebody wrote there is told, all of it: nobody here writes of interfaces, and nobody
 * wrote yesterday or will tomorrow. */
static bool told_by_us(const struct mtlshm_event *event)
{
	int64_t ago = (int64_t)time(NULL) - (int64_t)(event->when_ns / 1000000000);

	return ago < DAY && ago > -DAY && event->kind != MTLSHM_EVENT_XDP && event->kind != MTLSHM_EVENT_NIC;
}

static void look(struct mtlshm_host *host, uint64_t input_number)
{
	uint64_t owners[MTLSHM_INSTANCES], owner;
	uint32_t tag;
	int count;

	if (!mtlshm_snapshot(host, &snapshot)) {
		MUST(snapshot.instance_count <= MTLSHM_INSTANCES);
		MUST(snapshot.lcore_count >= MTLSHM_LCORES_MIN && snapshot.lcore_count <= MTLSHM_LCORES);
		for (uint32_t i = 0; i < snapshot.instance_count; i++) {
			const struct mtlshm_process *process = &snapshot.instances[i].process;
			struct mtlshm_instance_info info;

			MUST(memchr(process->comm, 0, sizeof(process->comm)));
			MUST(memchr(process->hostname, 0, sizeof(process->hostname)));
			MUST(memchr(process->label, 0, sizeof(process->label)));
			mtlshm_inspect(host, snapshot.instances[i].owner, &info);
		}
		for (uint32_t i = 0; i < snapshot.lcore_count; i++) {
			const struct mtlshm_lcore_info *lcore = &snapshot.lcores[i];

			MUST(lcore->instance < (int32_t)snapshot.instance_count);
			MUST(lcore->instance < 0 || snapshot.instances[lcore->instance].owner == lcore->owner);
		}
	}
	count = mtlshm_events(host, input_number, events);
	MUST(count <= MTLSHM_EVENTS);
	for (int i = 0; i < count; i++) {
		MUST(events[i].kind < MTLSHM_EVENT_KINDS && (!i || events[i].number == events[i - 1].number + 1));
		MUST(memchr(events[i].comm, 0, sizeof(events[i].comm)));
		MUST(memchr(events[i].hostname, 0, sizeof(events[i].hostname)));
		MUST(memchr(events[i].label, 0, sizeof(events[i].label)));
		MUST(memchr(events[i].text, 0, sizeof(events[i].text)));
		MUST(events[i].kind == MTLSHM_EVENT_LOST || told_by_us(&events[i]));
	}
	count = mtlshm_owners(host, owners);
	MUST(count <= MTLSHM_INSTANCES);
	count = mtlshm_proxies(host, owners);
	MUST(count <= MTLSHM_INSTANCES);
	for (uint32_t i = 0; i < 16; i++)
		mtlshm_holder(host, i, &owner, &tag);
}

static void use(struct mtlshm_host *host, const uint8_t *input)
{
	const struct mtlshm_want want = {.count = 2, .numa_node = MTLSHM_ANY_NODE, .timeout_ms = 1};
	const struct mtlshm_process process = {.pid = 1};
	struct mtlshm_cpuset all;
	const struct mtlshm_identity identity = {.cpus = &all};
	struct mtlshm_instance *me, *proxy;
	uint16_t lcores[2];
	uint64_t owner;
	uint32_t tag;

	memset(&all, 0xff, sizeof(all));
	if (mtlshm_register(&me, host, &identity))
		return;
	for (uint32_t i = 0; i < 8; i++) {
		if (!mtlshm_claim(me, i, MTLSHM_LCORE_APP)) {
			MUST(!mtlshm_holder(host, i, &owner, &tag) && owner == mtlshm_owner(me));
			mtlshm_tag(host, i, owner, 1);
			mtlshm_evict(host, i + 1, owner);
		}
	}
	mtlshm_claim_many(me, &want, lcores);
	mtlshm_lock(me, 1);
	MUST(mtlshm_lock(me, 1) < 0);
	if (!mtlshm_register_proxy(&proxy, host, MTLSHM_KIND_SOCKET, &process, 0)) {
		mtlshm_take(proxy, 3, mtlshm_owner(me), MTLSHM_LCORE_SCH);
		mtlshm_lock(proxy, 1);
		if (input[1] & 1)
			mtlshm_unregister(proxy);
		mtlshm_instance_free(proxy);
	}
	mtlshm_unlock(me);
	mtlshm_release(me, 3);
	mtlshm_release_all(me);
	mtlshm_instance_free(me);
}

/* What is found can be put right or is said to be not; what was put right is not found again. */
static void doctor(void)
{
	static struct mtlshm_damage damages[MTLSHM_DAMAGES], again[MTLSHM_DAMAGES];
	int count = mtlshm_examine(path, damages), left;

	MUST(count <= MTLSHM_DAMAGES);
	for (int i = 0; i < count && i < 32; i++) {
		if (mtlshm_mend(path, &damages[i]))
			continue;
		left = mtlshm_examine(path, again);
		for (int n = 0; n < left; n++)
			MUST(memcmp(&again[n], &damages[i], sizeof(again[n])));
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct mtlshm_segment table = good, *live;
	struct mtlshm_host *host;
	size_t changes, before, length = sizeof(table);
	int fd;

	if (size < 4)
		return 0;
	changes = (size - 4) / CHANGE;
	before = data[0] % (changes + 1);
	for (size_t i = 0; i < before; i++)
		change(&table, data + 4 + i * CHANGE);
	if (data[2] % 16 == 1)
		length = (data[2] << 8 | data[3]) % (sizeof(table) + 1);
	write_file(&table, length);
	mtlshm_examine(path, (struct mtlshm_damage[MTLSHM_DAMAGES]){{0}});
	if (!mtlshm_open(&host, path, data[1] & 2 ? MTLSHM_READ_ONLY : 0, NULL)) {
		look(host, data[3]);
		fd = open(path, O_RDWR | O_CLOEXEC);
		live = mmap(NULL, sizeof(*live), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		MUST(live != MAP_FAILED);
		for (size_t i = before; i < changes; i++)
			change(live, data + 4 + i * CHANGE);
		munmap(live, sizeof(*live));
		if (data[2] % 16 == 2)
			MUST(!ftruncate(fd, (data[2] << 8 | data[3]) % sizeof(table)));
		close(fd);
		look(host, data[3]);
		if (data[1] & 4)
			doctor();
		use(host, data);
		mtlshm_sweep(host);
		look(host, data[3]);
		mtlshm_close(host);
	}
	doctor();
	unlink(path);
	return 0;
}
