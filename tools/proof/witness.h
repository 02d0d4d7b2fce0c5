/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The record of an independent observer: who may own what, by the word of those who were given it, never by the table's.
 *
 * It is a file of the tool's own that every process maps. Who has been granted something notes it here at once, and takes the
 * note off just before giving it back. So the record never says too much: whoever finds somebody's note where he puts
 * his own was given what another still has.
 *
 *     claim() == 0                     note: old = exchange(place, me)
 *                                      old is somebody's who has not come to his end: WRONG
 *     note off: place == me, else      release()
 *     WRONG
 *
 * The dead leave their notes behind, and theirs may be replaced. Who is dead is not asked of the table either: a process
 * comes to its end by a mark in `lives`, which is set before the signal is sent, or before it exits or execs by itself.
 * Between mark and death, some microseconds, a wrong grant goes unnoticed.
 *
 * A process is named by its incarnation, which is given out once, and its slot in `lives`.
 *
 * LEASES. What somebody holds for its tenants it notes in `lent`, at its level: 0 for a process or a reservation without a
 * parent, 1 for a tenant of that. All who have notes at one lcore must be one line of descent:
 *
 *     lent[lcore][0]  <-  lent[lcore][1]  <-  lcores[lcore]
 *
 * Whoever puts a note there looks at the other notes, and is wrong if somebody who has not come to its end is neither its
 * forebear nor its descendant. So while a lender lives, nobody outside its family is given the lcore: neither when a tenant
 * of it dies, nor when that one had tenants in turn. Families are told apart by the owners that the library says its
 * instances are. Notes are late, so a wrong grant may go unnoticed that comes before its lender's note; it is noticed when
 * that comes.
 *
 * A reservation has a slot of its own, and lives there from when its maker has seen it made until somebody is about to end
 * it. Of those whose maker or ender died meanwhile the record says nothing.
 */
#ifndef WITNESS_H
#define WITNESS_H

#include <stdint.h>

enum {
	WITNESS_LCORES = 128,
	WITNESS_SLOTS = 256,
	WITNESS_LEVELS = 2,         /* of those that lend */
	WITNESS_RESERVATIONS = 240, /* the first slot for them */
	WITNESS_WRONGS = 16,
	WITNESS_LINE = 200,
};

enum witness_kind {
	WITNESS_SHM,
	WITNESS_JANITOR,
	WITNESS_SOCKET,
	WITNESS_LEGACY,
	WITNESS_TREE,
	WITNESS_GUEST,
	WITNESS_STEWARD,
	WITNESS_GREEDY,
	WITNESS_REGULAR,
	WITNESS_KINDS
};

enum {
	/* How long to wait for the semaphore. Whoever holds it is never stopped for long; but many wait, on few CPUs. */
	WITNESS_PATIENCE_MS = 120000,
	/* So nice they are: whoever starts and kills them, and the daemon, shall have their turns. */
	WITNESS_NICENESS = 10,
};

/* The low bits of a life: has its end begun, by itself or by others? */
enum { WITNESS_ENDING = 1, WITNESS_KILLED = 2, WITNESS_LIFE_BITS = 2 };

struct witness {
	uint64_t incarnations; /* given out so far */
	uint32_t over;         /* everybody shall go */
	uint32_t wrongs;
	uint64_t semaphore;
	uint64_t semaphores; /* how often anybody had it */
	uint64_t granted[WITNESS_KINDS];
	uint64_t killed[WITNESS_KINDS];
	uint64_t ended[WITNESS_KINDS]; /* by themselves */
	uint64_t stopped[WITNESS_KINDS];
	uint64_t forked;
	uint64_t executed;
	uint64_t inherited; /* lcores granted whose last owner died with them */
	uint64_t lendings;  /* lcores that somebody began to hold for its tenants */
	uint64_t returns;   /* how often a restarted tenant was given all that is held for it */
	uint64_t orphaned;  /* tenants that lost a parent that had one itself */
	uint64_t lcores[WITNESS_LCORES];
	uint64_t lent[WITNESS_LCORES][WITNESS_LEVELS];
	uint64_t lives[WITNESS_SLOTS];
	uint64_t owners[WITNESS_SLOTS];                /* that the one in the slot is, */
	uint64_t lines[WITNESS_SLOTS][WITNESS_LEVELS]; /* and from which it descends; 0: from none at this level */
	char wrong[WITNESS_WRONGS][WITNESS_LINE];
};

/* Map the record; NULL if it cannot be. */
struct witness *witness_open(const char *path);

/* For whoever starts and kills: nobody is in the slot now; whoever is there is about to be killed. */
void witness_vacate(uint32_t slot);
void witness_condemn(uint32_t slot);

/* For one that is about to have a child: returns whether the slot was empty. It is not from now on. */
int witness_books(uint32_t slot);

/* Begin to live in the slot; waits for the end if that was decided meanwhile. witness_end() begins the end of that life. */
void witness_begin(uint32_t slot, uint32_t kind);
void witness_end(void);

/* This process is this owner, and a tenant of the last of line[WITNESS_LEVELS] that is not 0. */
void witness_descends(uint64_t owner, const uint64_t *line);

/* This process, so far from the first of its line, holds an lcore for its tenants; is about to do so no more. */
void witness_lends(uint32_t lcore, uint32_t level);
void witness_takes_back(uint32_t lcore, uint32_t level);

/* A reservation has been made, and is not about to be ended; is about to be, if that was told. */
void witness_reserved(uint32_t slot, uint64_t owner, const uint16_t *lcores, uint32_t count);
void witness_ends(uint32_t slot, uint64_t owner);

/* The owner that holds the lcore for its tenants and has none above it, or 0. */
uint64_t witness_lender(uint32_t lcore);

/* This process was granted an lcore; is about to give it back; is in, and about to leave, what the semaphore protects. */
void witness_got(uint32_t lcore);
void witness_gives(uint32_t lcore);
void witness_entered(void);
void witness_leaves(void);

/* Something is wrong that this process saw. It does not return. */
_Noreturn void witness_wrong(const char *what, long value);

/* The same for who watches, and returns. */
void witness_report(const char *line);

void witness_count(uint64_t *counter);

#endif
