/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The ring of events: many write at once, each may be killed at any instruction, and nobody waits for anybody.
 *
 * AN ENTRY PROVES ITSELF. Its writer takes a number by one fetch-and-add, which is also its place, and stores the entry's words
 * there; one of them, the SEAL, is a hash of all the others, the number among them. A reader copies the words, and believes the
 * copy if the number is the one it looks for and the seal is right. Whatever else lies there is LOST: half an entry of a writer
 * that is at work or was killed, the entry of an earlier round, words of two writers mixed, zeros, bytes written by accident.
 *
 * WHY NO SEQUENCE LOCK. It says that nobody else has written meanwhile, if all writers keep to it. A writer that is stopped
 * between number and words for 256 events and then goes on writes into an entry that is another's by now. Under a sequence lock
 * it would have to be kept out, which is waiting, or its words would be believed. Here the mixture has no right seal; two
 * events are lost, and told as lost.
 *
 * MEMORY ORDER. None is needed, and all accesses are relaxed atomic words: a reader that sees some words new and some old sees
 * a wrong seal, and one that sees all of them new has the entry, in whatever order they came. By chance a mixture passes once in
 * 2^64. Only numbers order events: two writers may read the clock the other way round.
 *
 * TIME is CLOCK_REALTIME, which is the same in all time namespaces (CLOCK_MONOTONIC and CLOCK_BOOTTIME are not, and a reader may
 * be in another one than the writer) and what logs are compared with. If an administrator sets it, times of entries jump, and
 * their order stays.
 *
 * THE READER TRUSTS NOTHING: the counter says only where to begin, each entry is looked at once, in a copy, and texts end where
 * their array ends. A counter full of garbage costs the entries that are there, and the next events are seen again. The seal
 * keeps accidents out, no attacker; who may write the segment may write events.
 *
 * WHAT IT COSTS: the clock, a hash and 50 stores, beside the system calls of a registration or the search of a claim by policy.
 * A single claim, a release and all that only read write nothing here.
 */
#include "event.h"

#include <errno.h>
#include <string.h>
#include <time.h>

#include "failure.h"
#include "host.h"
#include "self.h"
#include "tenancy.h"

enum {
	WORDS = sizeof(struct mtlshm_event) / sizeof(uint64_t),
	LANES = 4, /* of the hash: a chain of 50 multiplications would take longer than all the rest */
};

union entry {
	struct mtlshm_event event;
	uint64_t words[WORDS];
};

_Static_assert(sizeof(union entry) == WORDS * sizeof(uint64_t), "nothing but words");
_Static_assert((MTLSHM_EVENTS & (MTLSHM_EVENTS - 1)) == 0, "numbers may wrap");

/* Of all words, the seal's place being 0. Each step can be undone, so one word that differs is always seen. */
static uint64_t seal(const union entry *entry)
{
	uint64_t hash[LANES] = {1, 2, 3, 4}, whole = 0;

	for (int i = 0; i < WORDS; i++) {
		hash[i % LANES] = (hash[i % LANES] ^ entry->words[i]) * UINT64_C(0x9e3779b97f4a7c15);
		hash[i % LANES] ^= hash[i % LANES] >> 29;
	}
	for (int i = 0; i < LANES; i++)
		whole = (whole ^ hash[i]) * UINT64_C(0xd6e8feb86659fd93);
	return whole;
}

static uint64_t *place(const struct mtlshm_host *host, uint64_t number)
{
	return (uint64_t *)&host->segment->events[number % MTLSHM_EVENTS];
}

struct mtlshm_event event_about(const struct mtlshm_host *host, enum mtlshm_event_kind kind, uint64_t owner)
{
	const struct mtlshm_record *record = segment_record(host, owner);
	struct mtlshm_event event = {.kind = kind, .owner = owner_of(owner)};

	if (!record || !segment_knows(host, owner))
		return event;
	event.parent = tenancy_parent(host, owner);
	event.pid_namespace = record->process.pid_namespace;
	event.pid = record->process.pid;
	event.uid = record->process.uid;
	event.instance_kind = record->kind;
	memcpy(event.comm, record->process.comm, sizeof(event.comm));
	memcpy(event.hostname, record->process.hostname, sizeof(event.hostname));
	memcpy(event.label, record->process.label, sizeof(event.label));
	memcpy(event.text, record->key, sizeof(event.text));
	__atomic_thread_fence(__ATOMIC_ACQUIRE); /* constant as long as the owner is known */
	return segment_knows(host, owner) ? event : (struct mtlshm_event){.kind = kind, .owner = owner_of(owner)};
}

void event_write(struct mtlshm_host *host, struct mtlshm_event *event)
{
	union entry entry;
	struct timespec now;
	uint64_t *words;

	event->number = __atomic_fetch_add(&host->segment->header.events, 1, __ATOMIC_RELAXED);
	clock_gettime(CLOCK_REALTIME, &now);
	event->when_ns = (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
	event->seal = 0;
	entry.event = *event;
	entry.event.seal = seal(&entry);
	words = place(host, event->number);
	for (int i = 0; i < WORDS; i++)
		__atomic_store_n(&words[i], entry.words[i], __ATOMIC_RELAXED);
}

static struct mtlshm_event read_entry(const struct mtlshm_host *host, uint64_t number)
{
	const uint64_t *words = place(host, number);
	struct mtlshm_event lost = {.number = number, .kind = MTLSHM_EVENT_LOST};
	union entry copy;
	uint64_t sealed;

	for (int i = 0; i < WORDS; i++)
		copy.words[i] = __atomic_load_n(&words[i], __ATOMIC_RELAXED);
	sealed = copy.event.seal;
	copy.event.seal = 0;
	if (copy.event.number != number || seal(&copy) != sealed || copy.event.kind >= MTLSHM_EVENT_KINDS)
		return lost;
	copy.event.comm[sizeof(copy.event.comm) - 1] = '\0';
	copy.event.hostname[sizeof(copy.event.hostname) - 1] = '\0';
	copy.event.label[sizeof(copy.event.label) - 1] = '\0';
	copy.event.text[sizeof(copy.event.text) - 1] = '\0';
	return copy.event;
}

int mtlshm_events(struct mtlshm_host *host, uint64_t from, struct mtlshm_event *events)
{
	uint64_t end = __atomic_load_n(&host->segment->header.events, __ATOMIC_RELAXED);
	uint64_t oldest = end > MTLSHM_EVENTS ? end - MTLSHM_EVENTS : 0;
	int count = 0;

	failure_forget();
	if (from < oldest || from > end)
		from = oldest;
	while (from != end)
		events[count++] = read_entry(host, from++);
	return segment_lost(host) ? -EBADMSG : count;
}

int mtlshm_tell(struct mtlshm_host *host, uint32_t kind, const char *interface, const char *text)
{
	const struct mtlshm_process *self;
	struct mtlshm_event event = {.kind = kind, .instance_kind = MTLSHM_KIND_DAEMON};
	struct life guard;

	failure_forget();
	if (kind != MTLSHM_EVENT_XDP && kind != MTLSHM_EVENT_NIC)
		return -EINVAL;
	if (host->read_only)
		return -EROFS;
	life_guard(&guard);
	self = self_describe(host, interface);
	event.pid_namespace = self->pid_namespace;
	event.pid = self->pid;
	event.uid = self->uid;
	memcpy(event.comm, self->comm, sizeof(event.comm));
	memcpy(event.hostname, self->hostname, sizeof(event.hostname));
	memcpy(event.label, self->label, sizeof(event.label));
	life_leave(&guard);
	strncpy(event.text, text, sizeof(event.text) - 1);
	event_write(host, &event);
	return segment_lost(host) ? -EBADMSG : 0;
}
