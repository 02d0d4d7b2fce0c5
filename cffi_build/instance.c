/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Becoming an instance and ceasing to be one. The order of steps is what makes death at any line harmless:
 *
 *   register    read lock; collect what lies there; write lock; pin; fill the record, which nobody reads
 *               while it is FREE; LIVE; doorbell.
 *               Died before LIVE: the record is FREE and the lock is gone. After: a dead instance like any.
 *               A tenant looks at its parent before LIVE and again after; if that is dead, it goes FREE again.
 *   unregister  owner 0 in our memory, so that our own threads stop; lcores; FREE; unpin.
 *               Died before FREE: a dead instance. After: nothing to collect.
 *               A tenant may be a parent itself, and then its record must be kept: only a collector, which holds the
 *               read lock, can tell. So a tenant lets go of its life lock first, and is collected like the dead.
 *
 * A proxied instance is made in the same way, but goes PROXIED and keeps no lock. It is nobody's who could
 * die with it, so it stays until a daemon unregisters it.
 *   A RESERVATION is made LIVE, under the life lock of its maker, gets its lcores, and becomes PROXIED: killed before, it is a
 * dead instance, and after, it is whole. It ends in one step, FREE first; its words then name nobody.
 */
#include "instance.h"

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "clock.h"
#include "cpuset.h"
#include "failure.h"
#include "lease.h"
#include "life.h"
#include "segment.h"
#include "tenancy.h"

/* Rounds over all records before giving up on a place that others always get first. */
#define REGISTER_TRIES 100

int instance_cpus(const struct mtlshm_instance *instance, struct mtlshm_cpuset *cpus)
{
	if (!instance->cpus_given)
		return mtlshm_affinity(cpus);
	*cpus = instance->cpus;
	return 0;
}

int instance_refresh(struct mtlshm_instance *instance)
{
	struct mtlshm_cpuset now;
	int rc;

	if (instance->cpus_given)
		return 0;
	rc = mtlshm_affinity(&now);
	for (int i = 0; !rc && i < CPUSET_WORDS; i++)
		__atomic_store_n(&instance->cpus.bits[i], now.bits[i], __ATOMIC_RELAXED);
	return rc;
}

/* Pid, comm and start time from proc(5) stat: "pid (comm) state ..."; comm may hold spaces and parentheses.
 * A process without /proc is shown without them. */
static void read_self(struct mtlshm_process *self)
{
	char stat_line[1024], *open_paren, *close_paren, *field;
	struct stat st;
	ssize_t length = 0;
	int fd;

	*self = (struct mtlshm_process){.pid = getpid()};
	fd = (int)syscall(SYS_pidfd_open, getpid(), 0);
	if (fd >= 0) {
		if (!fstat(fd, &st))
			self->pidfd_inode = st.st_ino;
		close(fd);
	}
	if (!stat("/proc/self/ns/pid", &st))
		self->pid_namespace = st.st_ino;
	fd = open("/proc/self/stat", O_RDONLY | O_CLOEXEC);
	if (fd >= 0) {
		length = read(fd, stat_line, sizeof(stat_line) - 1);
		close(fd);
	}
	stat_line[length > 0 ? length : 0] = '\0';
	open_paren = strchr(stat_line, '(');
	close_paren = strrchr(stat_line, ')');
	if (!open_paren || !close_paren || close_paren < open_paren)
		return;
	*close_paren = '\0';
	strncpy(self->comm, open_paren + 1, sizeof(self->comm) - 1);
	field = close_paren + 1; /* the space before the third field */
	for (int n = 3; field && n < 22; n++)
		field = strchr(field + 1, ' ');
	if (field)
		self->start_ticks = strtoull(field, NULL, 10);
}

/* Who we are, under the guard. What can change from one registration to the next is looked up each time. */
static const struct mtlshm_process *ourselves(struct mtlshm_host *host, const char *label)
{
	struct mtlshm_process *self = &host->self;

	if (host->self_process != life_adopt()) {
		read_self(self);
		host->self_process = life_adopt();
	}
	self->uid = geteuid();
	memset(self->hostname, 0, sizeof(self->hostname));
	gethostname(self->hostname, sizeof(self->hostname) - 1);
	memset(self->label, 0, sizeof(self->label));
	strncpy(self->label, label ? label : self->comm, sizeof(self->label) - 1);
	return self;
}

/* What a new record says. */
struct entry {
	uint32_t kind;
	uint64_t parent;
	const struct mtlshm_process *process;
	const char *key; /* at most 63 bytes; NULL: none */
};

static void fill_record(struct mtlshm_record *record, const struct entry *entry)
{
	record->registered_ns = clock_own() - clock_shift();
	__atomic_store_n(&record->kind, entry->kind, __ATOMIC_RELAXED);
	__atomic_store_n(&record->parent, entry->parent, __ATOMIC_RELAXED);
	record->process = *entry->process;
	memset(record->key, 0, sizeof(record->key));
	if (entry->key)
		strncpy(record->key, entry->key, sizeof(record->key) - 1);
}

/* What occupy() says of a record that cannot be had; no errno, so that no system call's failure looks like it. */
enum {
	LIVES = LIFE_TAKEN, /* its owner lives */
	CONTENDED,          /* somebody is just looking at it, and it may be had later */
};

/* Try to make record `index` ours. 0: its write lock is held and it is FREE; LIVES, CONTENDED, or a negative errno. */
static int occupy(struct mtlshm_host *host, const struct life *life, uint32_t index)
{
	struct mtlshm_record *record = &host->segment->instances[index];
	off_t byte = life_byte(owner_make(index, 0));
	int rc = life_share(life, byte);
	uint64_t owner, parent;
	uint32_t cleared;

	if (rc)
		return rc;
	owner = owner_make(index, control_generation(__atomic_load_n(&record->control, __ATOMIC_ACQUIRE)));
	parent = tenancy_parent(host, owner);
	if (lease_collect(host, owner, &cleared)) /* LIVE, and nobody holds the write lock: dead */
		lease_collect_up(host, life, parent);
	if (!control_free(__atomic_load_n(&record->control, __ATOMIC_ACQUIRE))) { /* proxied, or kept */
		life_drop(life, byte);
		return LIVES;
	}
	rc = life_take(life, byte);
	if (!rc)
		return 0;
	life_drop(life, byte);
	return rc == LIFE_TAKEN ? CONTENDED : rc;
}

/* Find a record and its write lock: first among those that look free, which costs one try, then among all. */
static int find_record(struct mtlshm_host *host, const struct life *life, uint32_t *result)
{
	struct timespec now;
	uint32_t start = 0;

	for (int round = 0; round < REGISTER_TRIES; round++) {
		bool contended = false;

		for (uint32_t i = 0; i < 2 * MTLSHM_INSTANCES; i++) {
			uint32_t index = (start + i) % MTLSHM_INSTANCES;
			uint64_t control =
				__atomic_load_n(&host->segment->instances[index].control, __ATOMIC_RELAXED);
			int rc;

			if (i < MTLSHM_INSTANCES && !control_free(control))
				continue;
			rc = occupy(host, life, index);
			if (!rc) {
				*result = index;
				return 0;
			}
			if (rc < 0)
				return rc;
			contended |= rc == CONTENDED;
		}
		if (!contended)
			return -EUSERS;
		/* Two newcomers that met once would meet at every record if both went on in step. The pid is
		 * no help: both may be PID 1. */
		clock_gettime(CLOCK_MONOTONIC, &now);
		start = (uint32_t)now.tv_nsec % MTLSHM_INSTANCES;
	}
	return -EUSERS;
}

/* Take a record and make `me` the instance that it says. */
static int become(struct mtlshm_instance *me, const struct life *life, const struct entry *entry)
{
	struct mtlshm_header *header = &me->host->segment->header;
	struct mtlshm_record *record;
	uint64_t generation, control;
	uint32_t index;
	int rc = find_record(me->host, life, &index);

	/* Not before we have our record, which might have been the parent's. */
	if (!rc && entry->parent)
		rc = tenancy_admits(me->host, NULL, entry->parent);
	if (!rc && !me->proxied)
		rc = life_pin(life, &me->pin);
	if (rc)
		return rc;

	record = &me->host->segment->instances[index];
	generation = control_generation(record->control);
	if (!generation)
		generation = 1;
	/* A snapshot that still reads the record of the last owner must see that its control word has changed
	 * when it sees a byte of ours: release here, acquire between its copy and its second look. */
	__atomic_thread_fence(__ATOMIC_RELEASE);
	fill_record(record, entry);
	control = control_make(generation, me->proxied ? MTLSHM_PROXIED : MTLSHM_LIVE);
	__atomic_store_n(&record->control, control, __ATOMIC_SEQ_CST);
	if (__atomic_load_n(&header->state, __ATOMIC_SEQ_CST) != MTLSHM_IN_USE) {
		__atomic_store_n(&record->control, control_after(control), __ATOMIC_RELEASE);
		life_unpin(me->pin);
		return segment_lost(me->host) ? -EBADMSG : -ESTALE;
	}
	if (entry->parent)
		rc = tenancy_admits(me->host, life, entry->parent);
	if (rc) { /* the parent has died, and may have been kept for us */
		__atomic_store_n(&record->control, control_after(control), __ATOMIC_RELEASE);
		lease_collect_up(me->host, life, entry->parent);
		life_unpin(me->pin);
		return rc;
	}
	me->lease = lease_of(entry->parent);
	me->process = life_adopt();
	me->owner = owner_make(index, generation);
	segment_count(&header->registered, 1);
	return 0;
}

/* IN_MODIFY for the daemon; a write through the mapping would make no event. The byte's value means nothing,
 * and if it cannot be written the daemon finds us at its next look. */
static void ring(const struct life *life)
{
	if (pwrite(life->fd, "", 1, offsetof(struct mtlshm_segment, header.doorbell)) < 0)
		return;
}

static struct mtlshm_instance *new_instance(struct mtlshm_host *host, const struct mtlshm_cpuset *cpus)
{
	struct mtlshm_instance *instance = calloc(1, sizeof(*instance));

	if (!instance)
		return NULL;
	instance->host = host;
	instance->usual_type = MTLSHM_LCORE_APP;
	instance->cpus_given = cpus;
	if (cpus)
		instance->cpus = *cpus;
	return instance;
}

/* The end of all ways to a handle: hand it out, or free it. */
static int finish(struct mtlshm_instance **result, struct mtlshm_instance *instance, int rc)
{
	if (rc) {
		free(instance);
		return rc;
	}
	__atomic_add_fetch(&instance->host->instances, 1, __ATOMIC_RELEASE);
	*result = instance;
	return 0;
}

int mtlshm_register(struct mtlshm_instance **result, struct mtlshm_host *host,
		    const struct mtlshm_identity *identity)
{
	static const struct mtlshm_identity nobody;
	struct mtlshm_instance *me;
	struct entry entry;
	struct life life;
	int rc;

	failure_forget();
	if (!identity)
		identity = &nobody;
	if (identity->kind != MTLSHM_KIND_SHM && identity->kind != MTLSHM_KIND_DAEMON)
		return -EINVAL;
	if (host->read_only)
		return -EROFS;
	entry = (struct entry){.kind = identity->kind};
	if (identity->kind == MTLSHM_KIND_SHM && identity->parent != MTLSHM_NO_PARENT) {
		entry.parent = owner_of(identity->parent);
		rc = entry.parent ? 0 : tenancy_inherit(host, &entry.parent);
		if (rc)
			return rc;
	}
	me = new_instance(host, identity->cpus);
	if (!me)
		return -ENOMEM;
	rc = instance_refresh(me);
	if (!rc)
		rc = life_enter(&life, host, O_RDWR);
	if (!rc) {
		if (identity->kind == MTLSHM_KIND_DAEMON)
			rc = life_take(&life, MTLSHM_DAEMON_BYTE);
		if (rc == LIFE_TAKEN)
			rc = -EEXIST;
		if (!rc) {
			entry.process = ourselves(host, identity->label);
			rc = become(me, &life, &entry);
		}
		if (!rc)
			ring(&life);
		life_leave(&life);
	}
	return finish(result, me, rc);
}

static struct mtlshm_instance *new_proxy(struct mtlshm_host *host)
{
	struct mtlshm_cpuset all;
	struct mtlshm_instance *proxy;

	memset(&all, 0xff, sizeof(all));
	proxy = new_instance(host, &all);
	if (proxy)
		proxy->proxied = true;
	return proxy;
}

int mtlshm_register_proxy(struct mtlshm_instance **result, struct mtlshm_host *host, uint32_t kind,
			  const struct mtlshm_process *process, uint64_t parent)
{
	const struct entry entry = {.kind = kind, .parent = owner_of(parent), .process = process};
	struct mtlshm_instance *proxy;
	struct life life;
	int rc;

	failure_forget();
	if (kind <= MTLSHM_KIND_DAEMON || kind >= MTLSHM_KIND_RESERVATION)
		return -EINVAL;
	if (host->read_only)
		return -EROFS;
	proxy = new_proxy(host);
	if (!proxy)
		return -ENOMEM;
	rc = life_enter(&life, host, O_RDWR); /* a write lock, while the record changes hands */
	if (!rc) {
		rc = become(proxy, &life, &entry);
		life_leave(&life);
	}
	return finish(result, proxy, rc);
}

int instance_reserve(struct mtlshm_instance **result, struct mtlshm_host *host, const char *key, const char *label,
		     const struct mtlshm_cpuset *cpus)
{
	struct mtlshm_instance *me = new_instance(host, cpus);
	struct entry entry = {.kind = MTLSHM_KIND_RESERVATION, .key = key};
	struct life life;
	int rc;

	if (!me)
		return -ENOMEM;
	rc = life_enter(&life, host, O_RDWR);
	if (!rc) {
		entry.process = ourselves(host, label);
		rc = become(me, &life, &entry);
		life_leave(&life);
	}
	return finish(result, me, rc);
}

void instance_settle(struct mtlshm_instance *me)
{
	uint64_t live = control_make(owner_generation(me->owner), MTLSHM_LIVE);

	__atomic_compare_exchange_n(&segment_record(me->host, me->owner)->control, &live,
				    control_make(owner_generation(me->owner), MTLSHM_PROXIED), false, __ATOMIC_SEQ_CST,
				    __ATOMIC_RELAXED);
	life_unpin(me->pin);
	me->pin = NULL;
	me->proxied = true;
}

int mtlshm_adopt(struct mtlshm_instance **result, struct mtlshm_host *host, uint64_t owner)
{
	struct mtlshm_instance *proxy;

	failure_forget();
	if (host->read_only)
		return -EROFS;
	if (!segment_proxied(host, owner) ||
	    __atomic_load_n(&segment_record(host, owner)->kind, __ATOMIC_RELAXED) == MTLSHM_KIND_RESERVATION)
		return segment_lost(host) ? -EBADMSG : -ESRCH;
	proxy = new_proxy(host);
	if (!proxy)
		return -ENOMEM;
	proxy->lease = lease_of(tenancy_parent(host, owner_of(owner)));
	proxy->process = life_process();
	if (!proxy->process) {
		struct life guard;

		life_guard(&guard);
		proxy->process = life_adopt();
		life_leave(&guard);
	}
	proxy->owner = owner_of(owner);
	return finish(result, proxy, segment_lost(host) ? -EBADMSG : 0);
}

/* The instance gives back what it has, and nobody can be its tenant: the record is free. */
static void leave(struct mtlshm_instance *me, uint64_t owner)
{
	struct mtlshm_record *record = segment_record(me->host, owner);
	uint64_t control;

	lease_clear(me->host, owner, me->lease);
	control = __atomic_load_n(&record->control, __ATOMIC_RELAXED);
	if (control_of(control, owner))
		__atomic_compare_exchange_n(&record->control, &control, control_after(control), false,
					    __ATOMIC_RELEASE, __ATOMIC_RELAXED);
	life_unpin(me->pin);
}

/* If the life lock cannot be asked for lack of descriptors, what is left is a dead instance like any. */
static void leave_lease(struct mtlshm_instance *me, uint64_t owner)
{
	uint64_t parent = tenancy_parent(me->host, owner);
	struct life life;

	if (!me->proxied) {
		life_unpin(me->pin);
		mtlshm_collect(me->host, owner);
		return;
	}
	leave(me, owner);
	if (!life_enter(&life, me->host, O_RDONLY)) {
		lease_collect_up(me->host, &life, parent);
		life_leave(&life);
	}
}

int mtlshm_unregister(struct mtlshm_instance *me)
{
	uint64_t owner;
	int rc = 0;

	failure_forget();
	if (!instance_owner(me, &rc))
		return rc;
	owner = __atomic_exchange_n(&me->owner, 0, __ATOMIC_SEQ_CST); /* of two threads, one goes on */
	if (!owner)
		return -EBADF;
	__atomic_thread_fence(__ATOMIC_SEQ_CST); /* before our words are looked for; see keep() in lease.h */
	if (me->lease)
		leave_lease(me, owner);
	else
		leave(me, owner);
	return 0;
}

void mtlshm_instance_free(struct mtlshm_instance *me)
{
	if (!me)
		return;
	if (!me->proxied)
		mtlshm_unregister(me);
	__atomic_sub_fetch(&me->host->instances, 1, __ATOMIC_RELEASE);
	free(me);
}

uint64_t mtlshm_owner(const struct mtlshm_instance *me)
{
	int ignored;

	return instance_owner(me, &ignored);
}
