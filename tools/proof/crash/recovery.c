/* SPDX-License-Identifier: BSD-3-Clause */
#include "recovery.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#include "report.h"
#include "table.h"
#include "world.h"

/* The semaphore can be had at once, and whoever gets it is told that its holder died. */
static void try_semaphore(void)
{
	uint64_t holder = owner_in(segment->header.semaphore);
	int rc;

	if (world.bystander.semaphore) {
		EXPECT(holder == world.bystander.owner, "the semaphore was taken from a living holder");
		rc = mtlshm_unlock(world.bystander.instance);
		EXPECT(rc == 0, "unlock by the holder: %d", rc);
		world.bystander.semaphore = false;
		holder = 0;
	}
	rc = mtlshm_lock(world.bystander.instance, 200);
	EXPECT(rc == (holder != 0), "lock: %d, with %#lx in it", rc, (unsigned long)holder);
	if (rc >= 0)
		EXPECT(mtlshm_unlock(world.bystander.instance) == 0, "unlock failed");
	EXPECT(segment->header.semaphore == 0, "something is left in the semaphore: %#lx",
	       (unsigned long)segment->header.semaphore);
}

/* All that nobody alive has can be claimed. */
static void try_claims(void)
{
	for (uint32_t i = 0; i < LCORES; i++) {
		uint64_t word = segment->lcores[i].owner;
		bool alive = word && known(owner_in(word)) && state_of(index_in(word)) == MTLSHM_PROXIED;
		int rc = mtlshm_claim(world.bystander.instance, i, MTLSHM_LCORE_TAP);

		if (world.bystander.has[i] || lent(i))
			EXPECT(rc == -EALREADY, "claim of my own lcore %u: %d", i, rc);
		else
			EXPECT(rc == (alive ? -EBUSY : 0), "claim of lcore %u, where %#lx was: %d", i,
			       (unsigned long)word, rc);
		if (!rc)
			EXPECT(mtlshm_release(world.bystander.instance, i) == 0, "release of lcore %u failed", i);
	}
}

enum { NEWCOMERS = 6 }; /* as many as records may be free before the victim's */

/* Records can be had again, and come empty. */
static void try_records(void)
{
	struct mind newcomers[NEWCOMERS] = {0};
	bool reused = !world.victim->owner || known(world.victim->owner);

	for (int i = 0; i < NEWCOMERS; i++) {
		struct mind *one = &newcomers[i];

		enter(one);
		EXPECT(!one->rc, "register: %d", one->rc);
		EXPECT(!lcores_of(one->owner), "a newcomer has %u lcores that it never claimed", lcores_of(one->owner));
		EXPECT(!one->owner || known(one->owner), "the table does not know a newcomer");
		reused |= one->owner && index_in(one->owner) == index_in(world.victim->owner);
		if (world.kind & ALMOST_FULL && i == 1)
			break;
	}
	for (int i = 0; i < NEWCOMERS; i++)
		mtlshm_instance_free(newcomers[i].instance);
	EXPECT(reused, "record %u is not used again", index_in(world.victim->owner));
}

static void try_collect(void)
{
	uint64_t owners[4] = {world.dead, world.victim->owner, world.middle, world.leaf};
	bool kept;

	for (int i = 0; i < 4; i++) {
		bool was_known = known(owners[i]) && state_of(index_in(owners[i])) == MTLSHM_LIVE;
		int held = (int)lcores_of(owners[i]), rc;

		if (!was_known)
			continue;
		rc = mtlshm_collect(world.host, owners[i]);
		kept = has_tenants(owners[i]);
		EXPECT(rc == held, "collect of the dead, who had %d lcores: %d", held, rc);
		EXPECT(!lcores_of(owners[i]) && known(owners[i]) == kept, "collected, but not gone");
	}
}

/* What was told before is told still; of what was told since, at most the one is lost that the victim was about to write, and
 * none is half there. The next is told as well. */
static void try_events(void)
{
	static struct mtlshm_event events[MTLSHM_EVENTS];
	uint64_t before = world.before.header.events;
	int count = mtlshm_events(world.host, 0, events), lost = 0;

	EXPECT(count >= 0, "events: %d", count);
	for (int i = 0; i < count; i++) {
		const struct mtlshm_event *event = &events[i];

		EXPECT(event->number >= before || event->kind != MTLSHM_EVENT_LOST, "event %lu was lost",
		       (unsigned long)event->number);
		lost += event->kind == MTLSHM_EVENT_LOST;
		if (event->kind == MTLSHM_EVENT_LOST || event->instance_kind > MTLSHM_KIND_DAEMON)
			continue;
		EXPECT(event->when_ns && event->owner && event->pid && event->comm[0] && event->hostname[0] &&
			       event->label[0],
		       "event %lu is half there", (unsigned long)event->number);
	}
	EXPECT(lost <= 1, "%d events were lost", lost);
	EXPECT(!mtlshm_tell(world.host, MTLSHM_EVENT_NIC, "eth0", "tried"), "no event can be told");
	EXPECT(mtlshm_events(world.host, segment->header.events - 1, events) == 1 &&
		       events[0].kind == MTLSHM_EVENT_NIC && !strcmp(events[0].text, "tried"),
	       "an event was told, and is not there");
	segment->header.events--; /* others have to be told of those that were there before */
}

void try_sweep(void)
{
	int rc = mtlshm_sweep(world.host);

	EXPECT(rc >= 0, "sweep: %d", rc);
}

/* Made or not yet ended when the victim was killed: it is there, and whole. */
static void end_reservation(uint64_t owner)
{
	struct mtlshm_reserved found = {0};

	EXPECT(!mtlshm_reservation(world.host, RESERVED_KEY, &found) && found.owner == owner,
	       "a reservation is not found by its key");
	EXPECT(found.count == RESERVED_COUNT && lcores_of(owner) == RESERVED_COUNT, "a reservation has %u lcores",
	       lcores_of(owner));
	EXPECT(!mtlshm_end(world.host, owner), "a reservation cannot be ended");
}

/* What the next daemon does with a proxied instance that the victim made. */
static void serve_as_daemon(void)
{
	uint64_t owners[MTLSHM_INSTANCES];
	int count = mtlshm_proxies(world.host, owners);

	for (int i = 0; i < count; i++) {
		struct mtlshm_instance *proxy = NULL;
		uint32_t index = index_in(owners[i]);

		if (world.before.instances[index].control == control_of(index))
			continue;
		if (segment->instances[index].kind == MTLSHM_KIND_RESERVATION) {
			end_reservation(owners[i]);
			continue;
		}
		EXPECT(!mtlshm_adopt(&proxy, world.host, owners[i]), "a proxied instance cannot be adopted");
		EXPECT(!mtlshm_unregister(proxy), "nor ended");
		mtlshm_instance_free(proxy);
	}
}

/* As if none of the dead had ever been there; but their generations are used up. */
static void inspect_remains(void)
{
	uint64_t victim = world.victim->owner;

	EXPECT(header_is_still(&world.before.header) && segment->header.state == MTLSHM_IN_USE,
	       "the header was changed");
	for (uint32_t i = 0; i < MTLSHM_LCORES; i++) {
		uint64_t owner = owner_in(segment->lcores[i].owner);
		uint64_t rightful = i < LCORES && (world.bystander.has[i] || lent(i)) ? world.bystander.owner
				    : i == 4                                          ? world.proxied
										      : 0;

		EXPECT(!lent(i) || segment->lcores[i].owner == (owner | MTLSHM_LCORE_LEASE),
		       "lcore %u is left with %#lx, and not for tenants", i, (unsigned long)segment->lcores[i].owner);

		if (i == 4 && world.victim->proxy && !owner) /* handed over to a proxied instance that is ended */
			continue;
		EXPECT(owner == rightful, "lcore %u is left with %#lx", i, (unsigned long)segment->lcores[i].owner);
	}
	for (uint32_t i = 0; i < MTLSHM_INSTANCES; i++) {
		uint64_t was = world.before.instances[i].control;
		bool stays = i == 0 || (was & 0xff) == MTLSHM_PROXIED;

		EXPECT(stays ? control_of(i) == was : state_of(i) == MTLSHM_FREE && control_of(i) >> 8 >= was >> 8,
		       "record %u is left as %#lx, was %#lx", i, (unsigned long)control_of(i), (unsigned long)was);
	}
	EXPECT(generation_in(world.dead) < control_of(1) >> 8, "the generation of record 1 could come again");
	if (!victim)
		return;
	EXPECT(generation_in(victim) < control_of(index_in(victim)) >> 8,
	       "the generation of record %u could come again", index_in(victim));
	EXPECT(!locked(index_in(victim), F_WRLCK), "the victim's life lock is still held");
}

static void recover_table(unsigned int variation)
{
	static void (*const ways[])(void) = {try_claims,    try_records, try_sweep,
					     try_semaphore, try_collect, try_events};
	const unsigned int count = sizeof(ways) / sizeof(ways[0]);

	serve_as_daemon();
	for (unsigned int i = 0; i < count; i++)
		ways[(variation + i) % count]();
	inspect_remains();
}

/* A segment is there, or can be made, and is good; of others that were half made nothing is. */
static void recover_file(void)
{
	const struct mtlshm_identity identity = {.cpus = &world.all};
	struct mtlshm_instance *instance = NULL;
	struct mtlshm_host *again = NULL;
	char directory[4096];
	struct dirent *entry;
	DIR *files;
	int rc = mtlshm_open(&again, world.path, MTLSHM_CREATE, world.sysfs);

	EXPECT(!rc, "open: %d", rc);
	if (rc)
		return;
	rc = mtlshm_register(&instance, again, &identity);
	EXPECT(!rc, "register: %d", rc);
	EXPECT(rc || (!mtlshm_claim(instance, 0, 0) && !mtlshm_lock(instance, 0) && !mtlshm_unlock(instance)),
	       "the segment is not usable");
	mtlshm_instance_free(instance);
	rc = mtlshm_close(again);
	EXPECT(!rc, "close: %d", rc);
	snprintf(directory, sizeof(directory), "%.*s", (int)(strrchr(world.path, '/') - world.path), world.path);
	files = opendir(directory);
	NEEDED(files);
	while ((entry = readdir(files)))
		EXPECT(entry->d_name[0] == '.' || !strcmp(entry->d_name, strrchr(world.path, '/') + 1), "%s is left",
		       entry->d_name);
	closedir(files);
}

void recover(unsigned int variation)
{
	if (about_the_file()) {
		reopen(); /* lets go of what we have retired */
		recover_file();
	} else {
		recover_table(variation);
	}
}
