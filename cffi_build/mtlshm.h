/* SPDX-License-Identifier: BSD-3-Clause
 *
 * mtlshm: the CPU cores (lcores) of one host, shared out among its media processes.
 *
 * Processes claim lcores in a table in shared memory, directly and in nanoseconds, whether or not a
 * daemon runs. What a process held when it died is free for whoever needs it next.
 *
 *     struct mtlshm_host *host;
 *     struct mtlshm_instance *me;
 *     uint16_t lcores[4];
 *     struct mtlshm_want want = {.count = 4, .numa_node = MTLSHM_ANY_NODE, .type = MTLSHM_LCORE_APP};
 *
 *     mtlshm_open(&host, NULL, MTLSHM_CREATE, NULL);
 *     mtlshm_register(&me, host, NULL);
 *     mtlshm_claim_many(me, &want, lcores);
 *
 * This header is the public interface, and the only place where the segment's layout is written down.
 *
 * Conventions. Functions return 0 or a count on success and a negative errno on failure; what they return through pointers
 * means nothing then. mtlshm_failure() tells which step failed in the operating system; if it returns NULL, mtlshm_strerror()
 * tells what the error means here and what to do about it. Pointers must not be NULL unless the comment says so. "Killed
 * inside" tells what is left if the process dies during the call; read-only functions carry no such note. Every function
 * may be called from any thread at any time unless its comment says otherwise; none is a cancellation point, none but
 * mtlshm_fault() may be called from a signal handler (nor fork(), in a handler that may have interrupted one).
 *
 * Units. An lcore is named by its CPU number in the kernel (sysfs cpuN), from 0 to below `lcores` in the header, which is
 * at least 128 and at most 1,024. Times in nanoseconds are of CLOCK_MONOTONIC unless the name says otherwise. Where
 * an owner is an argument, any value is allowed; an unknown one, such as 0, names nobody.
 *
 * Errors that several functions share:
 *   -EBADMSG  the segment was cut short, see mtlshm_fault(): close the handle
 *   -EBADF    the instance is NULL or was unregistered
 *   -ECHILD   the instance is that of the parent process: register in the child
 *   -EROFS    the segment was opened with MTLSHM_READ_ONLY
 *   -ERANGE   (of one lcore) the table has no such lcore
 *   -ESTALE, -EACCES, -EMFILE  the file could not be opened once more, to ask or take a life lock: its path leads to another
 *             file by now, the process may not open it, or has no descriptor left
 *
 * Trust. A process that may write the segment's file can do anything to it, but cannot crash those that have it open: see
 * mtlshm_fault(). A process that may read it can keep newcomers out, by holding read locks on their bytes. Neither can be
 * told from a living owner.
 *
 * Processes. No file descriptor is kept, so closefrom() after opening or registering harms nothing. An
 * instance belongs to the process that registered it: a child made by fork() inherits the mapped table but
 * no identity, gets -ECHILD for its parent's instance, and registers for itself. exec() ends an instance as
 * death does, since what keeps it alive is the process's address space; so hold cores in a process that
 * stays. Daemonize first, then register. To ask whether an owner lives, the file is opened anew, by its
 * path: after a chroot, in another mount namespace or with fewer privileges that fails, and claims of
 * lcores that are held fail with -ESTALE or -EACCES; those of free ones go on. The same process may open a
 * segment several times and register several instances; they are as separate as two processes.
 *
 * Needs Linux 3.15 (open-file-description locks) and O_TMPFILE on the file system of the segment, both of
 * which every tmpfs has; x86-64, arm64 or any little-endian machine with lock-free 64-bit atomics.
 */
#ifndef MTLSHM_H
#define MTLSHM_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)
/* From here to the matching line at the end, only what cffi can read: no preprocessor, no attributes. */
/* cffi: begin */

/* ---------------------------------------------------------------------------------------------------
 * The segment
 *
 * One file, by default /dev/shm/mtlshm: a header, 256 instance records, 1,024 lcore slots, and a ring of the last 256
 * events. It is table and lock file in one, so the two can never be different inodes.
 *
 * Who owns an lcore is one 64-bit word, never half written: 0, or the TOKEN of the owner
 *
 *     bits  0..7   lcore type (enum mtlshm_lcore_type)
 *     bits  8..19  index of the instance record
 *     bits 20..63  generation of the instance record, from 1
 *
 * A token without its type is an OWNER. Whether an owner is valid is decided by two things only: the
 * control word of its record (state LIVE, same generation), and its LIFE LOCK, a write lock on byte
 * LIFE_BASE + index of this file, which the kernel drops when the process's address space goes. Pid,
 * name and the rest of the record are for people.
 *
 * A process that does not map the table (a client of the daemon's socket, a legacy process) is represented
 * by a PROXIED record, which has no life lock. The daemon keeps it, and only a daemon, which has proven by a
 * pidfd that the process is dead, may collect it; everybody else takes its word. So a daemon's death takes
 * nothing from those it speaks for, and the next one finds them here.
 *
 * LEASES. A record may name a PARENT, the owner that it draws its lcores from; the instance is then a TENANT. What
 * the parent holds for its tenants has the type LEASE. A tenant claims by exchanging the word parent|LEASE for its own
 * token, and what it gives back, or leaves behind when it dies, becomes parent|LEASE again. So nothing is free in
 * between: a process that is restarted finds the lcores that were claimed for it, however greedy its neighbours are.
 *   A parent is an instance that registered itself, or a RESERVATION: a proxied record with no process, which stays until
 * somebody ends it. A chain of parents has at most MTLSHM_DEPTH members.
 *   When a parent ends that is itself a tenant, its words go to its own parent, but its record is KEPT: it says
 * LIVE, its life lock is free, and it becomes FREE with the last of its tenants. So what those give back still finds its
 * way up. When a parent without a parent ends, its record is FREE at once; what its tenants give back later
 * names an owner that the table does not know, which means free.
 *
 * Who writes what:
 *   lcore.owner       0 -> token by any instance; token -> 0 by its owner, by whoever has proven the owner
 *                     dead, or by an operator; dead token -> own token by whoever has proven it; token of one
 *                     proxied instance -> that of another by a daemon. Of a tenant, parent|LEASE stands for 0 in all
 *                     this; a daemon also exchanges any token of the parent for that of a proxied tenant. All by
 *                     compare-and-swap, so that each change happens once.
 *   lcore.note        by the owner just after it claimed: may be one claim behind. Its tag later by the daemon.
 *   record.control    FREE -> LIVE by the newcomer that holds the write lock;
 *                     LIVE -> FREE, generation + 1, by the owner or by a collector that holds a read lock;
 *                     FREE -> PROXIED likewise and PROXIED -> FREE, generation + 1, by a daemon.
 *   record, the rest  by the newcomer before it goes LIVE; so constant while LIVE or PROXIED. But for the two counts,
 *                     which the owner writes at any time.
 *   header            once, before the file has a name; except state, semaphore, doorbell and counters.
 *   events            by any process at any time, one entry over the oldest; event.c says why that is safe. They are for
 *                     people and decide nothing.
 *
 * Forty-four bits of generation: one record can be registered every 10 microseconds for five years
 * before a token could come again.
 *
 * Every size and offset here goes into the fingerprint; a segment with another one is refused, or replaced if nobody lives
 * in it. For that, all layouts have in common what the first 128 bytes of the header say, the burial byte, and the control
 * word at the beginning of a record.
 */
enum {
	MTLSHM_LAYOUT_VERSION = 3,
	MTLSHM_INSTANCES = 256,  /* records: how many instances can live at once */
	MTLSHM_LCORES_MIN = 128, /* a segment has at least so many slots in use, */
	MTLSHM_LCORES = 1024,    /* and at most so many */

	MTLSHM_EVENTS = 256, /* entries of the ring */

	MTLSHM_DEPTH = 8, /* members of a chain of parents, the instance itself included */

	MTLSHM_TYPE_BITS = 8,
	MTLSHM_INDEX_BITS = 12,

	MTLSHM_LIFE_BASE = 1073741824,   /* byte of record 0's life lock: far past the end of the file */
	MTLSHM_DAEMON_BYTE = 1073741823, /* write-locked while a daemon serves the segment */
	MTLSHM_BURIAL_BYTE = 1073741822, /* write-locked while somebody removes the retired file */
};

/* What an lcore is for; the values up to SCH_USER are libmtl's. */
enum mtlshm_lcore_type {
	MTLSHM_LCORE_SCH = 0,      /* a libmtl scheduler */
	MTLSHM_LCORE_TAP = 1,      /* a libmtl TAP thread */
	MTLSHM_LCORE_RXV_RING = 2, /* a libmtl video receive ring */
	MTLSHM_LCORE_APP = 3,      /* the application's own */
	MTLSHM_LCORE_SCH_USER = 4, /* a scheduler the application runs itself */
	MTLSHM_LCORE_LEASE = 5,    /* held for tenants, which claim it from the owner */
	MTLSHM_LCORE_TYPES = 6,
};

/* How an instance came into the table. */
enum mtlshm_kind {
	MTLSHM_KIND_SHM = 0,         /* registered itself */
	MTLSHM_KIND_DAEMON = 1,      /* is the daemon: at most one lives */
	MTLSHM_KIND_SOCKET = 2,      /* proxied: a client of the daemon's socket */
	MTLSHM_KIND_LEGACY = 3,      /* proxied: a process on libmtl's System V table */
	MTLSHM_KIND_POOL = 4,        /* proxied: no process, the lcores lent to that table */
	MTLSHM_KIND_RESERVATION = 5, /* proxied: no process, lcores held for tenants; see mtlshm_reserve() */
	MTLSHM_KINDS = 6,
};

enum mtlshm_record_state { MTLSHM_FREE = 0, MTLSHM_LIVE = 1, MTLSHM_PROXIED = 2 };
enum mtlshm_segment_state { MTLSHM_IN_USE = 1, MTLSHM_RETIRED = 2 };

struct mtlshm_header { /* 256 bytes */
	char magic[8];
	uint32_t version;
	uint32_t lcores; /* slots in use: lcore numbers below this are valid */
	uint64_t fingerprint;
	uint64_t size;       /* of the file, bytes */
	uint64_t created_ns; /* CLOCK_REALTIME */
	char boot_id[40];    /* NUL-padded; empty if /proc could not say */
	uint32_t state;      /* enum mtlshm_segment_state */
	uint8_t doorbell;    /* written with pwrite() by every newcomer, to wake inotify */
	uint8_t reserved0[3];
	uint32_t records_at; /* for other layouts, which find these four here: where the records begin, in bytes, */
	uint32_t record_size;
	uint32_t records; /* how many there are, */
	uint32_t kind_at; /* and where in one its kind is; its control word is at 0 */
	uint8_t reserved2[24];

	uint64_t semaphore; /* 0, or the owner of the holder; see mtlshm_lock(). On a line of its own. */
	uint8_t reserved1[56];

	uint64_t registered; /* counters since creation; for people */
	uint64_t collected;  /* dead instances collected */
	uint64_t recovered;  /* lcores freed from dead instances */
	uint64_t takeovers;  /* semaphore taken from a dead holder */
	uint64_t events;     /* written so far: the number of the next */
	uint64_t claims;     /* the counts of instances that registered themselves and have ended, */
	uint64_t releases;   /* likewise */
	uint8_t reserved3[8];
};

/* Who a process is. Of those that registered themselves pid, pid_namespace and uid are as they see
 * themselves; of a proxied one they are as its daemon sees it. */
struct mtlshm_process {         /* 184 bytes */
	uint64_t start_ticks;   /* process start, clock ticks since boot: field 22 of proc(5) stat */
	uint64_t pid_namespace; /* inode of /proc/self/ns/pid */
	uint64_t pidfd_inode;   /* of a pidfd on it, which Linux gives to no other process (6.9); 0 if unknown */
	int32_t pid;
	uint32_t uid; /* effective */
	uint32_t reserved[2];
	char comm[16]; /* NUL-terminated, like the next two */
	char hostname[64];
	char label[64]; /* what the process calls itself */
};

struct mtlshm_record {          /* 320 bytes */
	uint64_t control;       /* generation << 8 | enum mtlshm_record_state */
	uint64_t parent;        /* the owner it draws from, or 0 */
	uint64_t registered_ns; /* CLOCK_MONOTONIC of the host, whatever the process's time namespace */
	uint32_t kind;          /* enum mtlshm_kind */
	uint32_t reserved0;
	struct mtlshm_process process;
	char key[64]; /* of a reservation, NUL-terminated; else empty */
	/* Written by the owner alone, on a cache line that nobody else reads in haste. Threads of one instance that claim at
	 * the same moment may lose one of each other's. */
	uint64_t claims;   /* lcores claimed, */
	uint64_t releases; /* and given back, since it registered */
	uint8_t reserved1[24];
};

struct mtlshm_lcore {   /* 16 bytes */
	uint64_t owner; /* 0 or a token */
	uint64_t note;  /* low half: when it was claimed, time(2) modulo 2^32; high half: see mtlshm_tag() */
};

/* A set of CPUs: CPU n is bit n % 64 of bits[n / 64]. */
struct mtlshm_cpuset {
	uint64_t bits[16];
};

enum mtlshm_event_kind {
	MTLSHM_EVENT_LOST = 0,       /* never in the ring: its writer has not finished, was killed, or was overtaken */
	MTLSHM_EVENT_REGISTERED = 1, /* an instance came */
	MTLSHM_EVENT_ENDED = 2,    /* it unregistered. A proxied one: a daemon ended it; a reservation: somebody did */
	MTLSHM_EVENT_DIED = 3,     /* it was dead, and was collected */
	MTLSHM_EVENT_KEPT = 4,     /* it ended or died, and its record is kept for its tenants */
	MTLSHM_EVENT_CLAIMED = 5,  /* it claimed lcores by policy */
	MTLSHM_EVENT_RESERVED = 6, /* a reservation was made */
	MTLSHM_EVENT_EVICTED = 7,  /* an lcore was taken away from it by mtlshm_evict() */
	MTLSHM_EVENT_TAKEOVER = 8, /* it took the semaphore from a dead holder */
	MTLSHM_EVENT_XDP = 9,      /* a daemon changed the XDP programs of an interface, */
	MTLSHM_EVENT_NIC = 10,     /* or its queues or flow rules */
	MTLSHM_EVENT_KINDS = 11,
};

struct mtlshm_event {           /* 400 bytes */
	uint64_t number;        /* counted from 0; its place in the ring is number % MTLSHM_EVENTS */
	uint64_t seal;          /* a hash of all the rest, see event.c; 0 in a copy */
	uint64_t when_ns;       /* CLOCK_REALTIME */
	uint64_t owner;         /* whom it is about; of XDP and NIC 0 */
	uint64_t parent;        /* where its lcores come from and go to, or 0 */
	uint64_t pid_namespace; /* of that process, likewise the next three; 0 if unknown */
	int32_t pid;            /* 0: no process is known */
	uint32_t uid;
	uint32_t kind;               /* enum mtlshm_event_kind */
	uint32_t instance_kind;      /* enum mtlshm_kind */
	struct mtlshm_cpuset lcores; /* claimed, or given up */
	char comm[16];               /* NUL-terminated, like the next three */
	char hostname[64];
	char label[64]; /* what the process calls itself; of XDP and NIC the interface */
	char text[64];  /* of XDP and NIC what was done; of a reservation its key */
};

struct mtlshm_segment {
	struct mtlshm_header header;
	struct mtlshm_record instances[256];
	struct mtlshm_lcore lcores[1024];
	struct mtlshm_event events[256];
};

/* ---------------------------------------------------------------------------------------------------
 * Opening
 */
struct mtlshm_host;     /* an open segment */
struct mtlshm_instance; /* a registered identity, able to own lcores */

enum mtlshm_open_flags {
	MTLSHM_CREATE = 1,    /* make the segment if there is none */
	MTLSHM_READ_ONLY = 2, /* look, do not touch: needs read permission only */
};

/* The path that mtlshm_open() takes for NULL, the same for all processes of a host: $MTLSHM_PATH, else `segment` in the
 * daemon's settings file ($MTLSHMD_CONFIG, else /etc/mtlshm/mtlshmd.toml), else /dev/shm/mtlshm. With the privileges
 * of a set-user-ID program the environment does not count.
 *
 * Valid until the calling thread calls this again. On failure NULL, and errno is set: as mtlshm_configured_path() returns,
 * but positive, if the settings file cannot be used; ENOENT if $MTLSHMD_CONFIG names a file that does not exist. */
const char *mtlshm_default_path(void);

/* Read `segment` from a settings file. This knows it only on a line of its own, between plain quotes, before the first
 * [table]: segment = "/run/imtl/mtlshm"
 *
 * file  the settings file, at most 64 KiB
 * path  receives the path, NUL-terminated; has room for `size` bytes
 *
 * Returns 1, or 0 if the file does not set it. Errors: -EINVAL it is set in another form, or to a relative path;
 * -ENAMETOOLONG the path does not fit; -EFBIG the file is too large; -ENOMEM, and what open(2) and read(2) return. */
int mtlshm_configured_path(const char *file, char *path, size_t size);

/* Open the segment at `path` (NULL: the default path), check it, map it.
 *
 * flags  of enum mtlshm_open_flags. With MTLSHM_CREATE the file is made if missing, mode 0660, group
 *        `mtl` if there is such a group and the caller may give files to it; fifty processes may do so at
 *        once, one file comes of it. A segment of another layout in which nobody lives is replaced; see
 *        mtlshm_replaced().
 * sysfs  where to read the host's CPUs from, NULL for /sys. Another directory in sysfs format describes
 *        another machine, for planning and for tests.
 * host   receives the handle, for mtlshm_close()
 * path   at most 4,095 bytes; a relative one is made absolute. A symbolic link is not followed.
 *
 * Errors: -ENOENT no segment there (or no such directory); -EACCES not permitted; -EBADMSG not a segment,
 * truncated or half written; -EPROTO a segment of another layout (with MTLSHM_CREATE: that is in use, or may not
 * be removed); -ESTALE retired, or made before the last boot or by another host (not on a tmpfs, and without any lock on it);
 * -EOPNOTSUPP the file system lacks O_TMPFILE or open-file-description locks;
 * -ENOSPC no room for it (in a container: /dev/shm too small); -EINVAL flags, or path too long; -ENOMEM,
 * -EMFILE and what else open(2), mmap(2) and linkat(2) return; for a path of NULL, those of mtlshm_default_path().
 *
 * Killed inside: nothing is left, or a complete segment. A file is filled before it has a name. */
int mtlshm_open(struct mtlshm_host **host, const char *path, uint32_t flags, const char *sysfs);

/* The file that is mapped, as it was when it was opened. The path may lead to another by now. */
struct mtlshm_file {
	uint64_t device; /* st_dev, st_ino, st_uid, st_gid, st_mode of stat(2) */
	uint64_t inode;
	uint32_t uid;
	uint32_t gid;
	uint32_t mode;
	uint32_t reserved;
};

/* Which file that is, into *file. Never fails. */
void mtlshm_file(const struct mtlshm_host *host, struct mtlshm_file *file);

/* The layout version of the segment that mtlshm_open() has replaced, 0 if it replaced none. Never fails. */
uint32_t mtlshm_replaced(const struct mtlshm_host *host);

/* Unmap the segment and free the handle. No other call may use `host` at the same time or later.
 *
 * Errors: -EBUSY an instance registered through it has not been freed with mtlshm_instance_free(); the handle stays valid.
 * Killed inside: nothing is left, but that a segment which this handle had retired stays so. */
int mtlshm_close(struct mtlshm_host *host);

/* Mark the segment retired, so that nobody can register or open it, and keep others from removing the
 * file until this handle is closed: the caller unlinks the path in between. If it does not, closing takes the
 * mark off. If it dies before, the next mtlshm_open() with MTLSHM_CREATE puts a new segment in its place. Once more with the
 * same handle it does nothing and returns 0.
 *
 * Errors: -EBUSY an instance lives (the segment stays as it was), or another process is removing it; -ESTALE the path is
 * no longer this segment; -EROFS, -EBADMSG, -EACCES, -EMFILE, -ENOMEM. Killed inside: the segment is in use or
 * retired, both whole. */
int mtlshm_retire(struct mtlshm_host *host);

/* A segment cut short under those that have it open (which any process that may write it can do) is a SIGBUS at the next
 * access. If that would kill the process when it opens a segment, mtlshm_open() installs a handler, and then it
 * does not: every call that needs the table fails with -EBADMSG from then on, and the handle can be closed. (If a part
 * of the file is left, claims and releases in that part go on until any other function is called.) A
 * process with a handler of its own keeps it, and is as safe if it calls this from there, with si_addr of a
 * signal that was not sent (si_code > 0). A process that replaces our handler without calling this, or blocks SIGBUS, dies.
 *
 * Returns 1 if the access was to a segment: return from the handler, and the access succeeds; 0: not ours. errno is kept. */
int mtlshm_fault(const void *address);

/* ---------------------------------------------------------------------------------------------------
 * Instances
 */
struct mtlshm_identity {
	const char *label; /* what people shall read in the table; NULL: the command's name. Cut at 63 bytes. */
	uint32_t kind;     /* MTLSHM_KIND_SHM or MTLSHM_KIND_DAEMON */
	/* The CPUs this instance may claim. NULL: those in the affinity mask, which the kernel keeps inside
	 * the cpuset and free of offline CPUs. Threads have masks of their own. mtlshm_claim_many() goes by
	 * that of its caller, at the time. mtlshm_claim() goes by the one that was looked up last, at
	 * registration or by any thread just before a claim would have been refused: a system call would
	 * cost ten times the claim. So register from a thread that is not pinned, or give the set here; it is
	 * then taken at its word, except that mtlshm_claim_many() never takes CPUs that are offline. */
	const struct mtlshm_cpuset *cpus;
	/* The owner to draw lcores from, as mtlshm_owner() of that instance says. 0: the one that $MTLSHM_LEASE names,
	 * if it is set (and the process is not setuid or the like: secure_getenv(3)); it is set by `mtlshm-ctl run`
	 * and inherited. MTLSHM_NO_PARENT: none, whatever the environment says. A daemon never has a parent. */
	uint64_t parent;
};

enum { MTLSHM_NO_PARENT = 1 }; /* no owner has this value */

/* Become an instance: take a record and its life lock, and ring the doorbell. Needs no daemon. Cost: about six system calls.
 *
 * instance  receives the handle, for mtlshm_unregister() and mtlshm_instance_free()
 * identity  NULL: of kind SHM, with the command's name, the CPUs of the affinity mask, and the parent of $MTLSHM_LEASE
 *
 * Errors: -EUSERS all 256 records are held by living instances; -EEXIST kind is DAEMON and one lives;
 * -ESTALE the segment was retired or its path is another file now; -EINVAL kind, or
 * $MTLSHM_LEASE is no lease; -ESRCH the parent is dead, unknown or of another segment, or is a proxied instance and no
 * reservation; -ELOOP the chain of parents is longer than MTLSHM_DEPTH; -EROFS, -EBADMSG, -EMFILE, -ENOMEM, -EACCES.
 *
 * Killed inside: the record is free, or it is that of a dead instance and is collected as such. */
int mtlshm_register(struct mtlshm_instance **instance, struct mtlshm_host *host,
		    const struct mtlshm_identity *identity);

/* Release all lcores of the instance, give back its record and life lock. The handle stays valid, to be
 * refused with -EBADF (as NULL is), until mtlshm_instance_free(). A claim that another thread has under way
 * may still return 0; it is released as well. While that thread of a tenant has an lcore in hand, the lcore counts as free:
 * if the process is killed right then, or a stranger claims the lcore, it does not go back to the parent.
 *
 * Errors: -EBADF, -ECHILD. A truncated segment has nothing to release: this returns 0. Killed inside: the rest
 * belongs to a dead instance. */
int mtlshm_unregister(struct mtlshm_instance *instance);

/* Unregister if need be, and free the handle; in a forked child, and of a proxied instance, only free it. No
 * other call may use it at the same time or later. NULL is allowed. Killed inside: as mtlshm_unregister(). */
void mtlshm_instance_free(struct mtlshm_instance *instance);

/* For the daemon: make a proxied instance of a process that is not the caller, or (adopt) find again the one that
 * an earlier daemon made. Its lcores are claimed and released like any (it may claim all there are);
 * mtlshm_unregister() collects it, which is for a caller that has proven the process dead or that its claims
 * are no longer wanted; mtlshm_instance_free() leaves it as it is.
 *
 * kind     MTLSHM_KIND_SOCKET, _LEGACY or _POOL
 * process  what the record says of it, copied as it is
 * parent   the owner it draws from, or 0; the environment is not asked
 * owner    of a proxied instance, as mtlshm_proxies() lists them
 *
 * Errors: of mtlshm_register(), -EBADMSG among them; -EINVAL kind is none of these; -ESRCH (adopt) `owner`
 * is no proxied instance, or is a reservation. Killed inside: there is no such instance, or one that the next daemon
 * finds. */
int mtlshm_register_proxy(struct mtlshm_instance **instance, struct mtlshm_host *host, uint32_t kind,
			  const struct mtlshm_process *process, uint64_t parent);
int mtlshm_adopt(struct mtlshm_instance **instance, struct mtlshm_host *host, uint64_t owner);

/* The owner (token without type) of an instance, by which snapshots name it. 0 for NULL, for one that is unregistered, and
 * in a forked child. */
uint64_t mtlshm_owner(const struct mtlshm_instance *instance);

/* Does the owner live? Returns 1 if alive (always, if proxied), 0 if dead or collected. One open, one lock query: about 2
 * microseconds. Errors: the lock cannot be queried: -EBADMSG, -ESTALE, -EACCES, -EMFILE. */
int mtlshm_alive(struct mtlshm_host *host, uint64_t owner);

/* The owners of all records that say LIVE, dead or not, into owners[MTLSHM_INSTANCES], by ascending record; returns how
 * many. No system call. Errors: -EBADMSG. */
int mtlshm_owners(struct mtlshm_host *host, uint64_t *owners);

/* The same for those that say PROXIED. Errors: -EBADMSG. */
int mtlshm_proxies(struct mtlshm_host *host, uint64_t *owners);

/* The parent of an instance into *parent; 0 if it has none. No system call. Errors: -ESRCH there is no such instance, or
 * it has been collected (then *parent is 0 too); -EBADMSG. */
int mtlshm_parent(struct mtlshm_host *host, uint64_t owner, uint64_t *parent);

/* Is there anything that a lease could be of: an lcore held for tenants, or an instance that is a tenant? Returns 1 or 0.
 * No system call. Errors: -EBADMSG. */
int mtlshm_leased(struct mtlshm_host *host);

enum { MTLSHM_LEASE_SIZE = 40 };

/* The value of $MTLSHM_LEASE that makes an instance registered with it a tenant of `owner`, into
 * text[MTLSHM_LEASE_SIZE], NUL-terminated; and the owner that such a text names, into *owner. Whether that lives is not
 * asked. Errors: -EBADMSG; of mtlshm_lease_parse() -EINVAL it is no lease, -ESRCH it is one of another segment. */
int mtlshm_lease_format(struct mtlshm_host *host, uint64_t owner, char *text);
int mtlshm_lease_parse(struct mtlshm_host *host, const char *text, uint64_t *owner);

/* Collect one dead instance: free its lcores, or give them to its parent, then free its record, unless that is kept for
 * its tenants. Then the same for its parent, if that was kept for it. Returns how many lcores it gave up.
 *
 * Errors: -EBUSY it lives, or is proxied; -ESRCH there is no such instance, or it has been collected; -EROFS; -EBADMSG,
 * -ESTALE, -EACCES, -EMFILE. Killed inside: the next collector does it again from the start; it is idempotent. */
int mtlshm_collect(struct mtlshm_host *host, uint64_t owner);

/* Collect every dead instance, and free lcores whose owner is long gone. Returns how many instances were
 * collected. Errors (-EBADMSG, -EROFS, -ESTALE, -EACCES, -EMFILE) and death as for mtlshm_collect(). */
int mtlshm_sweep(struct mtlshm_host *host);

/* ---------------------------------------------------------------------------------------------------
 * Lcores
 */

/* Claim one lcore. If it is free this is one compare-and-swap: no lock, no system call, no allocation.
 * If it is held, the owner's life lock is queried, and an lcore of a dead owner is taken: a dead process never
 * costs anyone a failure. A tenant claims from its parent: for it an lcore is free if the parent holds it with type LEASE.
 *
 * lcore  see "Units" at the head of this file
 * type   enum mtlshm_lcore_type
 *
 * Errors: -EBUSY held by a living owner; -EALREADY held by this instance; -ERANGE; -ENODEV that CPU is absent or
 * offline; -EDOM outside the CPUs the instance may claim, or its parent does
 * not hold it; -EINVAL type; -EBADF, -ECHILD, -EBADMSG, -ESTALE, -EACCES, -EMFILE.
 *
 * Killed inside: the lcore is not claimed, or it is and belongs to a dead instance. */
int mtlshm_claim(struct mtlshm_instance *instance, uint32_t lcore, uint32_t type);

/* Release one lcore: one compare-and-swap. It is free then, or its parent's. Errors: -EPERM it is not held by this instance;
 * -ERANGE, -EBADMSG, -EBADF, -ECHILD. Killed inside: released, or collected later. */
int mtlshm_release(struct mtlshm_instance *instance, uint32_t lcore);

/* Release every lcore of the instance; returns how many. Errors: -EBADMSG, -EBADF, -ECHILD. Killed inside: those not
 * yet released belong to a dead instance. */
int mtlshm_release_all(struct mtlshm_instance *instance);

enum mtlshm_smt {
	MTLSHM_SMT_ANY = 0,   /* siblings do not matter */
	MTLSHM_SMT_AVOID = 1, /* no lcore whose SMT sibling is held by anybody, nor two on one physical core */
	MTLSHM_SMT_WHOLE = 2, /* whole physical cores, all their SMT siblings: nobody else shares one */
	MTLSHM_SMT_POLICIES = 3,
};

enum { MTLSHM_ANY_NODE = -1 };

/* What mtlshm_claim_many() shall find. Beyond what is asked for here, lcores come from one last-level cache if one has
 * room, else from one NUMA node, else from as few as possible; from the domain that they fill best. Some are taken
 * only if there are not enough others: those whose SMT sibling is in use by somebody else; those that are not isolated, on a
 * host that isolates some; those of another node than `near` says; and CPU 0. (libmtl hands out every lcore but the one
 * with id 0, its main lcore: a claim that includes CPU 0 has one worker less.) */
struct mtlshm_want {
	uint32_t count;      /* lcores; with MTLSHM_SMT_WHOLE all siblings count */
	int32_t numa_node;   /* this node, or MTLSHM_ANY_NODE */
	uint32_t near;       /* 0: only from that node; 1: from others too, if it has not enough */
	uint32_t smt;        /* enum mtlshm_smt */
	uint32_t type;       /* enum mtlshm_lcore_type */
	uint32_t timeout_ms; /* how long to wait for other claims of this kind; 0: 1,000 ms */
};

/* Claim `want->count` lcores or none, and write their numbers, ascending, to lcores[], which has room for so many.
 *
 * The online CPUs are looked up at most once a second. Runs under the semaphore, so that two such
 * claims cannot each take half. Lcores of dead instances are collected before the claim is refused for lack
 * of them. Single claims by others go on meanwhile.
 *
 * Errors: -EBUSY not enough free now; -ERANGE more than this instance could ever have (so many CPUs do not
 * exist, are offline, not in the affinity mask or not on the node; or whole cores do not add up to it);
 * -ENXIO no such NUMA node; -EINVAL count 0, smt, near above 1, or type; -ETIMEDOUT the semaphore's holder is stopped or
 * busy; -EBADMSG, -EBADF, -ECHILD, -ESTALE, -EACCES, -EMFILE; -ENOMEM or what reading sysfs gave, on the first call.
 *
 * Killed inside: the lcores taken so far belong to a dead instance; the semaphore is taken over. */
int mtlshm_claim_many(struct mtlshm_instance *instance, const struct mtlshm_want *want, uint16_t *lcores);

/* The lcores that mtlshm_claim_many() would choose now, into lcores[]. Nothing is claimed and nobody collected.
 *
 * cpus    the CPUs to choose from; NULL: the caller's affinity mask
 * parent  the owner to draw from; 0: none
 *
 * want->type and want->timeout_ms are not used. Errors: of mtlshm_claim_many(), -EBADMSG among them, but none of an instance
 * or the semaphore. */
int mtlshm_choose(struct mtlshm_host *host, const struct mtlshm_want *want, const struct mtlshm_cpuset *cpus,
		  uint64_t parent, uint16_t *lcores);

/* The NUMA node of a network interface (by its name in sysfs) into *node, for want.numa_node; MTLSHM_ANY_NODE if the kernel
 * knows none, as for virtual ones. Errors: -ENODEV no such interface in this network namespace; -EBADMSG sysfs says no
 * number; -EACCES, -EMFILE. */
int mtlshm_interface_node(struct mtlshm_host *host, const char *interface, int32_t *node);

/* Take an lcore away from its owner, dead or alive, if the owner is still `owner` (as a snapshot showed
 * it). It goes to the owner's parent, or is free. A living owner is not told: this is for operators. Errors: -ESRCH it is
 * free or held by another owner; -ERANGE, -EROFS, -EBADMSG. Killed inside: taken, or not. */
int mtlshm_evict(struct mtlshm_host *host, uint32_t lcore, uint64_t owner);

/* For the daemon: make an lcore of `from` one of `instance`, of this type, without its being free for a moment. `from` is
 * the pool, a legacy process, or the parent of `instance`, if that is proxied: so an lcore that a process claimed goes to its
 * own libmtl. Errors: -ESRCH it is free or held by another owner, or `from` is none of those; -EINVAL type;
 * -ERANGE, -EBADMSG, -EBADF, -ECHILD. Killed inside: it belongs to the one or the other. */
int mtlshm_take(struct mtlshm_instance *instance, uint32_t lcore, uint64_t from, uint32_t type);

/* For the daemon: note 32 bits with an lcore, if its owner is `owner`; snapshots show them. The next claim of
 * that lcore clears them, and one that comes at the same moment may leave either. Errors: of mtlshm_evict(), -EBADMSG
 * among them. Killed inside: noted, or not. */
int mtlshm_tag(struct mtlshm_host *host, uint32_t lcore, uint64_t owner, uint32_t tag);

/* The owner of an lcore into *owner (0: free), and its tag into *tag. No system call. Errors: -ERANGE, -EBADMSG. */
int mtlshm_holder(struct mtlshm_host *host, uint32_t lcore, uint64_t *owner, uint32_t *tag);

/* ---------------------------------------------------------------------------------------------------
 * Reservations
 *
 * A parent without a process: lcores that are held for tenants until somebody ends it, or to the next boot.
 */
struct mtlshm_reserved {
	uint64_t owner;
	uint32_t count;        /* how many of lcores[] are set */
	uint16_t lcores[1024]; /* ascending */
};

/* Reserve `want->count` lcores under `key`, or find the reservation that has this key.
 *
 * key       1 to 63 bytes
 * label     what people read; NULL: the key. Cut at 63 bytes.
 * want      as for mtlshm_claim_many(); want->type is not used, the type is LEASE
 * cpus      the CPUs to choose from; NULL: the caller's affinity mask
 * reserved  receives the reservation: its lcores, and those that its tenants have in use
 *
 * Returns 0, or 1 if the key was there already; then `want` and `cpus` were not looked at. Takes two records for a moment.
 *
 * Errors: -EINVAL the key is empty or too long; of mtlshm_claim_many() and mtlshm_register(), -EBADMSG among them.
 * Killed inside: the whole reservation is there, or nothing of it. */
int mtlshm_reserve(struct mtlshm_host *host, const char *key, const char *label, const struct mtlshm_want *want,
		   const struct mtlshm_cpuset *cpus, struct mtlshm_reserved *reserved);

/* Find a reservation by its key. Errors: -ESRCH there is none; -EINVAL the key is empty or too long; -EBADMSG. */
int mtlshm_reservation(struct mtlshm_host *host, const char *key, struct mtlshm_reserved *reserved);

/* End a reservation: its lcores are free, those in use by tenants as soon as they give them back. Errors: -ESRCH `owner` is
 * no reservation, or it has ended; -EROFS; -EBADMSG. Killed inside: it is there, or it is ended. */
int mtlshm_end(struct mtlshm_host *host, uint64_t owner);

/* ---------------------------------------------------------------------------------------------------
 * The robust semaphore
 *
 * For what spans several slots. It is one word that holds the owner of the instance that holds it, so it
 * works across PID namespaces and outlives its holder's death. Not recursive: a second lock by the same
 * instance, from any thread, waits like that of any other.
 */

/* Take the semaphore, waiting up to timeout_ms milliseconds (0: do not wait). Returns 0; or 1 if the holder before died
 * holding it: the semaphore is ours, and what it protects may be half done. Errors: -ETIMEDOUT (a living holder keeps it,
 * perhaps stopped); -EINVAL a proxied instance; -EBADMSG, -EBADF, -ECHILD; -ESTALE, -EACCES, -EMFILE until the time-out the
 * holder's life lock could not be queried. Killed inside: not taken, or taken over by the next. */
int mtlshm_lock(struct mtlshm_instance *instance, uint32_t timeout_ms);

/* Give it back; any thread of the instance may. Errors: -EPERM not held by this instance; -EBADMSG, -EBADF, -ECHILD.
 * Killed inside: given back, with waiters noticing at their next look (within 20 ms), or taken over. */
int mtlshm_unlock(struct mtlshm_instance *instance);

/* ---------------------------------------------------------------------------------------------------
 * Seeing it all
 */
struct mtlshm_instance_info {
	uint64_t owner;
	uint64_t parent;        /* or 0 */
	uint64_t registered_ns; /* CLOCK_MONOTONIC of the caller, modulo 2^64: it may be from before that clock's 0 */
	uint32_t kind;
	int32_t alive;   /* 1, 0: dead and not yet collected, or a negative errno: could not be asked */
	uint32_t lcores; /* how many it holds */
	uint32_t reserved;
	struct mtlshm_process process;
	char key[64]; /* of a reservation */
};

struct mtlshm_lcore_info {
	uint64_t owner; /* 0 if free */
	uint32_t since; /* seconds of the epoch modulo 2^32; may be one claim behind; 0: a tenant has given it back */
	uint32_t tag;
	uint32_t type;
	int32_t instance; /* position in instances[], -1 if free */
};

struct mtlshm_snapshot {
	uint64_t taken_ns;   /* when this snapshot was taken, */
	uint64_t taken;      /* and the same in seconds of the epoch */
	uint64_t created_ns; /* CLOCK_REALTIME */
	uint64_t semaphore;  /* owner of its holder, or 0 */
	uint64_t registered;
	uint64_t collected;
	uint64_t recovered;
	uint64_t takeovers;
	uint64_t claims; /* by instances that registered themselves, those that have ended included: lcores claimed, */
	uint64_t releases; /* and given back, but not those that others collected */
	uint32_t instance_count;
	uint32_t lcore_count;
	struct mtlshm_instance_info instances[256];
	struct mtlshm_lcore_info lcores[1024];
};

/* Read everything, without stopping anyone. Consistent pair by pair: every lcore shown as held was held by
 * the instance shown, and that record was LIVE, at one moment during the call; moments of different
 * lcores may differ. An lcore that changes hands faster than it can be read is shown as free. Nothing is written. Instances
 * are in the order of their records, but for those that came during the call.
 *
 * Errors: -EBADMSG, -ESTALE, -EACCES, -EMFILE. */
int mtlshm_snapshot(struct mtlshm_host *host, struct mtlshm_snapshot *snapshot);

/* The same for one instance. Errors: -ESRCH there is no such instance, or it has been collected; -EBADMSG, -ESTALE,
 * -EACCES, -EMFILE. */
int mtlshm_inspect(struct mtlshm_host *host, uint64_t owner, struct mtlshm_instance_info *info);

/* ---------------------------------------------------------------------------------------------------
 * Events
 *
 * What happened last, whether or not a daemon ran. Single claims and releases are not told: they would pay for it.
 */

/* Copy the events from number `from` on into events[MTLSHM_EVENTS], oldest first; returns how many. events[0].number is
 * above `from` if those between were overwritten. An entry that is not whole has kind LOST and nothing but its number: its
 * writer is at work this moment, or was killed; so ask for it once more, a moment later, before you say so. If there is no
 * event before `from`, as after damage, it starts with the oldest there is. Blocks nobody, waits for nobody, writes nothing.
 *
 * Errors: -EBADMSG. */
int mtlshm_events(struct mtlshm_host *host, uint64_t from, struct mtlshm_event *events);

/* For the daemon: add an event that is about an interface.
 *
 * kind       MTLSHM_EVENT_XDP or MTLSHM_EVENT_NIC
 * interface  its name, cut at 63 bytes
 * text       what was done, cut at 63 bytes
 *
 * Errors: -EINVAL kind; -EROFS; -EBADMSG. Killed inside: the event is there, or is told as lost. */
int mtlshm_tell(struct mtlshm_host *host, uint32_t kind, const char *interface, const char *text);

/* ---------------------------------------------------------------------------------------------------
 * Damage
 *
 * All processes that may write the segment trust each other, and one of them may have gone wrong. That
 * crashes or hangs nobody here; but people want to know. These functions take any file, in any state.
 */
enum mtlshm_damage_kind {
	MTLSHM_DAMAGE_FOREIGN = 1, /* no segment at all. This one and the next are reported alone. */
	MTLSHM_DAMAGE_LAYOUT = 2,  /* a segment of another layout, or what says so is damaged; value: its version */
	MTLSHM_DAMAGE_SHORT = 3,   /* cut short; value: to how many bytes */
	MTLSHM_DAMAGE_HEADER = 4,  /* a field that never changes has changed; index: its offset, value: what it says */
	MTLSHM_DAMAGE_BOOT = 5,    /* of another boot or host: on no tmpfs, and nobody holds a lock */
	MTLSHM_DAMAGE_STATE = 6,   /* neither in use nor retired, so nobody can register; value: what it says */
	MTLSHM_DAMAGE_RETIRED = 7, /* retired by a process that died before it removed the file */
	MTLSHM_DAMAGE_SEMAPHORE = 8, /* held by: index 1, a dead owner; 0, one that never was; value: its word */
	MTLSHM_DAMAGE_RECORD = 9,    /* a record in an unknown state; index: the record, value: its control word */
	MTLSHM_DAMAGE_HIDDEN = 10,   /* a record that does not name its owner, which lives; likewise */
	MTLSHM_DAMAGE_KIND = 11,     /* an instance of an unknown kind; index: the record, value: the kind */
	MTLSHM_DAMAGE_DEAD = 12,  /* an instance that is dead and not collected; index: the record, value: its owner */
	MTLSHM_DAMAGE_TOKEN = 13, /* an lcore held by an unknown owner; index: the lcore, value: its token */

	MTLSHM_DAMAGES = 2048, /* more than there can be */
};

struct mtlshm_damage {
	uint32_t kind; /* enum mtlshm_damage_kind */
	uint32_t index;
	uint64_t value;
};

/* Find what is wrong with the file at `path`, into damages[MTLSHM_DAMAGES]; returns how many. Reads a copy and writes
 * nothing. Transient states are reported too (an instance that is just registering, or has just died): repeat after 100 ms
 * and keep what persists. Errors: -ENOENT, -EACCES and what else open(2) and pread(2) return; -EBADMSG it is no regular
 * file; -ENOMEM. */
int mtlshm_examine(const char *path, struct mtlshm_damage *damages);

/* Repair one of them, if it is still there and that cannot cost a live process anything. A file that cannot be
 * repaired is removed if it is not in use.
 *
 * Errors: -EBUSY a live process would lose something; -EOPNOTSUPP it cannot be repaired; -ESRCH it is no longer there;
 * of mtlshm_examine(), and what pwrite(2), mmap(2) and unlink(2) return. Killed inside: repaired or not. */
int mtlshm_mend(const char *path, const struct mtlshm_damage *damage);

/* ---------------------------------------------------------------------------------------------------
 * Topology
 */
struct mtlshm_topology {
	uint32_t cpus; /* highest possible CPU number + 1, at most MTLSHM_LCORES */
	uint32_t reserved;
	struct mtlshm_cpuset possible; /* may exist some day; numbers may have holes */
	struct mtlshm_cpuset online;
	struct mtlshm_cpuset isolated; /* isolcpus= */
	struct mtlshm_cpuset nodes;    /* NUMA nodes that have CPUs, by node number */
	/* For each online CPU n, and 0 for the others: */
	uint16_t core[1024];    /* its physical core, named by the lowest CPU among its SMT siblings */
	uint16_t llc[1024];     /* its last-level cache, named by the lowest CPU that shares it */
	uint16_t node[1024];    /* its NUMA node, 0 if the kernel knows none */
	uint16_t package[1024]; /* its socket: physical_package_id */
};

/* Read the topology from a directory in sysfs format: devices/system/cpu and
 * devices/system/node as in the kernel's Documentation/ABI/stable/sysfs-devices-system-cpu. What is
 * missing is made up harmlessly: a CPU with no siblings of its own core, one cache a socket, node 0.
 *
 * sysfs  the directory. NULL: of this host, from /sys and the calling thread's affinity mask. CPUs in the mask are online
 *        whatever /sys shows, which in a container may be anything; where /sys cannot be read, they are all there are, on
 *        one node.
 *
 * Errors, of a directory: -ENOENT no devices/system/cpu/{possible,online} there; -EBADMSG a file is not what the kernel
 * writes; -EACCES. Of this host or a directory: -EMFILE, -ENOMEM. */
int mtlshm_topology_read(struct mtlshm_topology *topology, const char *sysfs);

/* The CPUs in the calling thread's affinity mask, those from 1,024 on left out. Errors: of
 * sched_getaffinity(2). */
int mtlshm_affinity(struct mtlshm_cpuset *cpus);

/* The sentence for a condition of this library's own, by the errno it returned, with either sign: what is wrong and what to
 * do next. For an error of the operating system: as strerror(3). Never NULL; a constant. */
const char *mtlshm_strerror(int error);

/* Of the calling thread's latest call that failed with this error, with either sign: the step of the operating system that
 * failed, and its path, as in "cannot open /sys/devices/system/cpu/online: Permission denied"; or a sentence about the
 * path. NULL if mtlshm_strerror() says it all. Valid until the thread's next call; ask at once. */
const char *mtlshm_failure(int error);

/* cffi: end */
#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif

#endif
