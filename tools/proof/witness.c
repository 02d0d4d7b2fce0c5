/* SPDX-License-Identifier: BSD-3-Clause */
#include "witness.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define SLOT_BITS 8
_Static_assert(WITNESS_SLOTS == 1 << SLOT_BITS, "a slot fits a name");

static const char *const kinds[WITNESS_KINDS] = {
	[WITNESS_SHM] = "C client",
	[WITNESS_JANITOR] = "janitor",
	[WITNESS_SOCKET] = "socket client",
	[WITNESS_LEGACY] = "legacy client",
};
static struct witness *record;
static uint32_t my_slot, my_kind;
static uint64_t my_incarnation;

struct witness *witness_open(const char *path)
{
	int fd = open(path, O_RDWR | O_CLOEXEC);
	void *memory = mmap(NULL, sizeof(*record), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	close(fd);
	record = memory == MAP_FAILED ? NULL : memory;
	return record;
}

static uint64_t me(void)
{
	return my_incarnation << SLOT_BITS | my_slot;
}

static int lives(uint64_t name)
{
	uint64_t life = __atomic_load_n(&record->lives[name % WITNESS_SLOTS], __ATOMIC_SEQ_CST);

	return life == name >> SLOT_BITS << WITNESS_LIFE_BITS;
}

void witness_vacate(uint32_t slot)
{
	__atomic_store_n(&record->lives[slot], 0, __ATOMIC_SEQ_CST);
}

void witness_condemn(uint32_t slot)
{
	__atomic_fetch_or(&record->lives[slot], WITNESS_KILLED, __ATOMIC_SEQ_CST);
}

void witness_begin(uint32_t slot, uint32_t kind)
{
	uint64_t life = __atomic_load_n(&record->lives[slot], __ATOMIC_SEQ_CST);

	my_slot = slot;
	my_kind = kind;
	my_incarnation = __atomic_add_fetch(&record->incarnations, 1, __ATOMIC_SEQ_CST);
	while (life & WITNESS_KILLED ||
	       !__atomic_compare_exchange_n(&record->lives[slot], &life, my_incarnation << WITNESS_LIFE_BITS, 0,
					    __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
		if (life & WITNESS_KILLED)
			pause();
}

void witness_end(void)
{
	__atomic_fetch_or(&record->lives[my_slot], WITNESS_ENDING, __ATOMIC_SEQ_CST);
}

void witness_count(uint64_t *counter)
{
	__atomic_add_fetch(counter, 1, __ATOMIC_RELAXED);
}

void witness_report(const char *line)
{
	uint32_t n = __atomic_fetch_add(&record->wrongs, 1, __ATOMIC_SEQ_CST);

	if (n < WITNESS_WRONGS)
		strncpy(record->wrong[n], line, WITNESS_LINE - 1);
}

void witness_wrong(const char *what, long value)
{
	char line[WITNESS_LINE];

	snprintf(line, sizeof(line), "%s (slot %u, pid %d): %s %ld", kinds[my_kind], my_slot, getpid(), what, value);
	witness_report(line);
	_exit(0);
}

/* Returns whether the one before left it when he died. */
static int note(uint64_t *place, const char *what, long value)
{
	uint64_t before = __atomic_exchange_n(place, me(), __ATOMIC_SEQ_CST);
	char line[WITNESS_LINE];

	if (before && lives(before)) {
		snprintf(line, sizeof(line), "was given what slot %u has: %s", (unsigned int)(before % WITNESS_SLOTS),
			 what);
		witness_wrong(line, value);
	}
	return before != 0;
}

static void note_off(uint64_t *place, const char *what, long value)
{
	uint64_t mine = me();
	char line[WITNESS_LINE];

	if (!__atomic_compare_exchange_n(place, &mine, 0, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {
		snprintf(line, sizeof(line), "what it has was given to slot %u: %s",
			 (unsigned int)(mine % WITNESS_SLOTS), what);
		witness_wrong(line, value);
	}
}

void witness_got(uint32_t lcore)
{
	if (note(&record->lcores[lcore], "lcore", lcore))
		witness_count(&record->inherited);
	witness_count(&record->granted[my_kind]);
}

void witness_gives(uint32_t lcore)
{
	note_off(&record->lcores[lcore], "lcore", lcore);
}

void witness_entered(void)
{
	note(&record->semaphore, "the semaphore", 0);
	witness_count(&record->semaphores);
}

void witness_leaves(void)
{
	note_off(&record->semaphore, "the semaphore", 0);
}
