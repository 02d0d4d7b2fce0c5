/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Stewards, which make reservations and end them. Whoever notes in the record that one was made, or is about to be ended,
 * has a lock of the kernel's on its key, or the one could come after the other.
 */
#include "reservations.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#include "client.h"
#include "instance.h"
#include "kinds.h"

/* How often to look for all lcores of a reservation: those that change hands at the moment are missed. */
#define LOOKS 2000

static const char *key_of(uint32_t number)
{
	static char key[16];

	snprintf(key, sizeof(key), "torture-%u", number);
	return key;
}

static uint32_t count_of(uint32_t number)
{
	return 2 + number % 3;
}

static uint32_t slot_of(uint32_t number)
{
	return WITNESS_RESERVATIONS + number;
}

/* Until the descriptor is closed. */
static int lock_key(uint32_t number)
{
	struct flock lock = {.l_type = F_WRLCK, .l_start = number, .l_len = 1};
	int fd = open(self.record, O_RDWR | O_CLOEXEC);

	if (fd < 0 || fcntl(fd, F_OFD_SETLKW, &lock))
		witness_wrong("could not lock a reservation's key:", -errno);
	return fd;
}

/* Nobody ends it meanwhile. */
static void must_be_whole(uint32_t number, struct mtlshm_reserved *found)
{
	for (int look = 0; look < LOOKS && found->count != count_of(number); look++) {
		usleep(1000);
		if (mtlshm_reservation(host, key_of(number), found))
			witness_wrong("somebody ended a reservation that is not his: number", number);
	}
	if (found->count != count_of(number))
		witness_wrong("a reservation has another number of lcores than were reserved:", found->count);
}

/* Returns 0 if it is there, with what it has in *made. */
static int reserve(uint32_t number, struct mtlshm_reserved *made)
{
	const struct mtlshm_want want = {
		.count = count_of(number), .numa_node = MTLSHM_ANY_NODE, .timeout_ms = WITNESS_PATIENCE_MS};
	uint64_t before = __atomic_load_n(&self.witness->semaphores, __ATOMIC_SEQ_CST);
	struct mtlshm_reserved still;
	struct mtlshm_cpuset all;
	int rc, fd;

	for (size_t i = 0; i < sizeof(all.bits) / sizeof(all.bits[0]); i++)
		all.bits[i] = ~0ULL;
	rc = mtlshm_reserve(host, key_of(number), NULL, &want, &all, made);
	if (rc == -ETIMEDOUT)
		not_had_since(before);
	else if (rc >= 0)
		witness_count(&self.witness->semaphores);
	if (rc < 0 && rc != -EBUSY && rc != -ETIMEDOUT)
		witness_wrong("could not reserve:", rc);
	if (rc)
		return rc < 0 ? rc : 0;
	fd = lock_key(number);
	if (!mtlshm_reservation(host, key_of(number), &still) && still.owner == made->owner)
		witness_reserved(slot_of(number), made->owner, made->lcores, made->count);
	close(fd);
	return 0;
}

/* If it is there. */
static void end_it(uint32_t number)
{
	struct mtlshm_reserved found;
	int fd = lock_key(number);
	int rc = mtlshm_reservation(host, key_of(number), &found);

	if (!rc) {
		must_be_whole(number, &found);
		witness_ends(slot_of(number), found.owner);
		rc = mtlshm_end(host, found.owner);
	}
	if (rc && rc != -ESRCH)
		witness_wrong("could not end a reservation:", rc);
	close(fd);
}

bool find_reservation(struct mtlshm_reserved *found)
{
	int rc = mtlshm_reservation(host, key_of(throw_dice(LASTING)), found);

	if (rc && rc != -ESRCH)
		witness_wrong("could not look for a reservation:", rc);
	return !rc;
}

void reserve_lasting(struct mtlshm_reserved *made)
{
	int rc = reserve(LASTING, made);

	if (rc)
		witness_wrong("could not reserve what shall last:", rc);
}

void live_as_steward(void)
{
	static struct mtlshm_reserved made;

	open_segment();
	for (;;) {
		uint32_t what = throw_dice(100);

		if (what < 25)
			reserve(throw_dice(LASTING), &made);
		else if (what < 35)
			end_it(throw_dice(LASTING));
		else if (what < 37)
			sweep();
		else if (what < 99)
			doze(3000);
		else
			end();
	}
}

void end_all_reservations(void)
{
	struct mtlshm_reserved found;

	for (uint32_t number = 0; number < RESERVATIONS; number++) {
		int rc = mtlshm_reservation(host, key_of(number), &found);

		if (rc && number == LASTING)
			witness_wrong("at the end, what nobody ended is not reserved any more:", rc);
		for (uint32_t i = 0; !rc && i < found.count; i++) {
			uint64_t owner = 0;
			uint32_t tag;

			mtlshm_holder(host, found.lcores[i], &owner, &tag);
			if (owner != found.owner)
				witness_wrong("at the end, what is reserved is not home: lcore", found.lcores[i]);
		}
		end_it(number);
	}
}
