/* SPDX-License-Identifier: BSD-3-Clause */
#include "client.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

struct client self;
static char **arguments;
static uint64_t dice;

enum { SEED = 3 }; /* which argument */

void set_dice(char **words)
{
	arguments = words;
	dice = strtoull(arguments[SEED], NULL, 0) | 1;
}

uint32_t throw_dice(uint32_t sides)
{
	dice ^= dice << 13;
	dice ^= dice >> 7;
	dice ^= dice << 17;
	return (uint32_t)((dice >> 16) % sides);
}

void doze(uint32_t most_us)
{
	const struct timespec duration = {.tv_nsec = throw_dice(most_us) * 1000};

	nanosleep(&duration, NULL);
}

bool is_held(uint32_t lcore)
{
	for (uint32_t i = 0; i < self.held_count; i++)
		if (self.held[i] == lcore)
			return true;
	return false;
}

void got(uint32_t lcore)
{
	witness_got(lcore);
	self.held[self.held_count++] = lcore;
}

uint32_t gives(uint32_t position)
{
	uint32_t lcore = self.held[position];

	witness_gives(lcore);
	self.held[position] = self.held[--self.held_count];
	return lcore;
}

void give_all(void)
{
	while (self.held_count)
		gives(0);
}

void begin(uint32_t slot)
{
	self.slot = slot;
	self.held_count = 0;
	witness_begin(slot, self.kind);
}

_Noreturn void end(void)
{
	witness_end();
	_exit(0);
}

_Noreturn void become_another(void)
{
	static char seed[24];

	snprintf(seed, sizeof(seed), "%llu", (unsigned long long)dice);
	arguments[SEED] = seed;
	witness_count(&self.witness->executed);
	witness_end();
	execv("/proc/self/exe", arguments);
	_exit(1);
}

int fork_once(void)
{
	if (self.slot % 2 || !witness_books(self.slot + 1))
		return -1;
	witness_count(&self.witness->forked);
	return fork();
}

void begin_as_child_at(uint32_t slot)
{
	dice = (dice ^ (uint64_t)getpid() << 32) | 1; /* or it would do what its parent does */
	begin(slot);
}

void begin_as_child(void)
{
	begin_as_child_at(self.slot + 1);
}
