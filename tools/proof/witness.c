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
	[WITNESS_SHM] = "C client",         [WITNESS_JANITOR] = "janitor",       [WITNESS_SOCKET] = "socket client",
	[WITNESS_LEGACY] = "legacy client", [WITNESS_TREE] = "member of a tree", [WITNESS_GUEST] = "guest",
	[WITNESS_STEWARD] = "steward",      [WITNESS_GREEDY] = "greedy client",  [WITNESS_REGULAR] = "regular",
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

int witness_books(uint32_t slot)
{
	uint64_t nobody = 0;

	return __atomic_compare_exchange_n(&record->lives[slot], &nobody, WITNESS_ENDING, 0, __ATOMIC_SEQ_CST,
					   __ATOMIC_SEQ_CST);
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
	witness_descends(0, (const uint64_t[WITNESS_LEVELS]){0});
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

static uint32_t slot_of(uint64_t name)
{
	return (uint32_t)(name % WITNESS_SLOTS);
}

/* Returns whether the one before left it when he died. */
static int note_as(uint64_t *place, uint64_t name, const char *what, long value)
{
	uint64_t before = __atomic_exchange_n(place, name, __ATOMIC_SEQ_CST);
	char line[WITNESS_LINE];

	if (before && lives(before)) {
		snprintf(line, sizeof(line), "was given what slot %u has: %s", slot_of(before), what);
		witness_wrong(line, value);
	}
	return before != 0;
}

static int note(uint64_t *place, const char *what, long value)
{
	return note_as(place, me(), what, value);
}

static void note_off(uint64_t *place, const char *what, long value)
{
	uint64_t mine = me();
	char line[WITNESS_LINE];

	if (!__atomic_compare_exchange_n(place, &mine, 0, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {
		snprintf(line, sizeof(line), "what it has was given to slot %u: %s", slot_of(mine), what);
		witness_wrong(line, value);
	}
}

void witness_descends(uint64_t owner, const uint64_t *line)
{
	__atomic_store_n(&record->owners[my_slot], owner, __ATOMIC_SEQ_CST);
	for (int i = 0; i < WITNESS_LEVELS; i++)
		__atomic_store_n(&record->lines[my_slot][i], line[i], __ATOMIC_SEQ_CST);
}

/* Does the one descend from the other, who lends at this level? */
static int descends(uint32_t slot, uint32_t level, uint32_t lender)
{
	uint64_t owner = __atomic_load_n(&record->owners[lender], __ATOMIC_SEQ_CST);

	return owner && __atomic_load_n(&record->lines[slot][level], __ATOMIC_SEQ_CST) == owner;
}

/* Notes are taken off before whoever put them there becomes another owner: so a note that is still there after the
 * question was asked tells that the answer is about its owner. */
static void look_at_line(uint32_t lcore, uint32_t slot, uint32_t level)
{
	for (uint32_t i = 0; i <= WITNESS_LEVELS; i++) {
		uint64_t *place = i < WITNESS_LEVELS ? &record->lent[lcore][i] : &record->lcores[lcore];
		uint64_t other = __atomic_load_n(place, __ATOMIC_SEQ_CST);
		char what[WITNESS_LINE];

		if (i == level || !other ||
		    (i < level ? descends(slot, i, slot_of(other)) : descends(slot_of(other), level, slot)))
			continue;
		if (__atomic_load_n(place, __ATOMIC_SEQ_CST) != other || !lives(other))
			continue;
		snprintf(what, sizeof(what), "was given what slot %u %s, which is not of its family: lcore",
			 slot_of(other), i < WITNESS_LEVELS ? "lends" : "has");
		witness_wrong(what, lcore);
	}
}

static void lend_as(uint64_t name, uint32_t lcore, uint32_t level)
{
	note_as(&record->lent[lcore][level], name, "to lend, lcore", lcore);
	look_at_line(lcore, slot_of(name), level);
	witness_count(&record->lendings);
}

void witness_lends(uint32_t lcore, uint32_t level)
{
	lend_as(me(), lcore, level);
	witness_count(&record->granted[my_kind]);
}

void witness_takes_back(uint32_t lcore, uint32_t level)
{
	note_off(&record->lent[lcore][level], "to lend, lcore", lcore);
}

void witness_reserved(uint32_t slot, uint64_t owner, const uint16_t *lcores, uint32_t count)
{
	uint64_t life = __atomic_add_fetch(&record->incarnations, 1, __ATOMIC_SEQ_CST);

	__atomic_store_n(&record->owners[slot], owner, __ATOMIC_SEQ_CST);
	__atomic_store_n(&record->lives[slot], life << WITNESS_LIFE_BITS, __ATOMIC_SEQ_CST);
	for (uint32_t i = 0; i < count; i++) {
		lend_as(life << SLOT_BITS | slot, lcores[i], 0);
		witness_count(&record->granted[my_kind]);
	}
}

void witness_ends(uint32_t slot, uint64_t owner)
{
	if (__atomic_load_n(&record->owners[slot], __ATOMIC_SEQ_CST) == owner)
		__atomic_fetch_or(&record->lives[slot], WITNESS_ENDING, __ATOMIC_SEQ_CST);
}

uint64_t witness_lender(uint32_t lcore)
{
	uint64_t name = __atomic_load_n(&record->lent[lcore][0], __ATOMIC_SEQ_CST);

	return name && lives(name) ? __atomic_load_n(&record->owners[slot_of(name)], __ATOMIC_SEQ_CST) : 0;
}

void witness_got(uint32_t lcore)
{
	if (note(&record->lcores[lcore], "lcore", lcore))
		witness_count(&record->inherited);
	look_at_line(lcore, my_slot, WITNESS_LEVELS);
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
