/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The hot path of the daemon: what its event loop does without Python. It is part of the Python package's module and
 * not of libmtlshm.so, and uses the core by its public functions only.
 *
 * WHY. asyncio needs as much time to call one function as all that a request for an lcore needs otherwise. So the event
 * loop's selector, in the one call in which it waits, also answers the requests that need no thought, and frees what
 * the dead held.
 *
 * WHO OWNS A SESSION. While selector_wait() runs, the sessions that are lent to the selector are its own, and nothing of
 * them is touched elsewhere: the daemon has one thread. At all other times they are Python's. A session is lent with its
 * socket, as long as the event loop watches that for reading and the next byte is the first of a record. So a request
 * is either's from its first byte to its last.
 *
 * WHO DECIDES. The core, in the table; and what the two sides must both know of a session stands once, here. C refuses
 * only what the client has already, or gives back without having it. What else it does not grant at once it leaves
 * in the socket, and Python answers.
 */
#ifndef SELECTOR_H
#define SELECTOR_H

#include <stdbool.h>
#include <stdint.h>

#include "mtlshm.h"

/* cffi: begin */
enum {
	SESSION_RECORD = 118, /* bytes of each request and each reply */
	SESSION_IDS = 1024,   /* a session has no more lcores than this */
};

/* An lcore that a session holds: what its client calls it, and the CPU. */
struct granted {
	uint16_t id;
	uint16_t cpu;
};

/* A client of the manager socket, as far as C and Python both know it. All zero at first. */
struct session {
	struct newcomer *newcomer; /* NULL: Python knows it */
	struct mtlshm_host *host;
	struct mtlshm_instance *instance; /* NULL: not registered */
	uint32_t may_claim;               /* it draws from a lease that is good, or from what is free */
	uint16_t cpus[1024];              /* CPU + 1 by lcore id; 0: only Python can tell. Used if may_claim is set. */
	uint32_t held_count;
	struct granted held[1024]; /* each CPU once */
	/* From C to Python, with an event: */
	uint32_t over;   /* a reply was due and cannot be sent: the client is gone */
	uint32_t unsent; /* bytes of `reply`, whose request is taken out of the socket: the client does not read */
	uint8_t reply[118];
};

/* Requests that C has answered in this process. What it refuses has one error each. */
struct session_counts {
	uint64_t registered;
	uint64_t heartbeats;
	uint64_t granted;
	uint64_t busy; /* GET_LCORE: -EBUSY */
	uint64_t given_back;
	uint64_t invalid; /* PUT_LCORE: -EINVAL */
};
extern struct session_counts session_counts;

/* The CPU that the session holds by that id, or -1. */
int session_held(const struct session *session, uint32_t id);

/* It holds that CPU by that id. What else stands for the CPU was taken away from it, and is dropped. */
void session_hold(struct session *session, uint32_t id, uint32_t cpu);

/* It holds nothing by that id any more. Returns what session_held() would have. */
int session_drop(struct session *session, uint32_t id);

struct selector;
struct selector_event {
	int32_t fd;
	uint32_t events; /* EPOLLIN and so on */
};

/* A selector on the epoll descriptor of an event loop, which stays the loop's. NULL: out of memory. */
struct selector *selector_new(int epoll);
void selector_free(struct selector *selector);

/* An instance that registered itself. */
struct death {
	struct mtlshm_host *host;
	uint64_t owner;
	uint32_t met;   /* C has collected it, or tried to: */
	int32_t result; /* of mtlshm_collect(), */
	uint64_t took_ns;
};

/* A client that C has let in, and of which Python does not know yet. */
struct newcomer {
	struct session session;
	int32_t socket; /* does not block, and has SO_OOBINLINE set */
	int32_t pidfd;  /* of its process; or -1: Python has to look who it is, nothing was asked of it yet */
	int32_t pid;    /* as we see it */
	uint32_t uid;
	uint64_t inode;     /* of the pidfd */
	uint32_t dialect_b; /* of its REGISTER */
	struct door *door;
	struct newcomer *next, *previous;
};

struct newcomers {
	struct newcomer *first, *last;
};

/* Who lets clients in, and how. */
struct door {
	struct mtlshm_host *host;
	int32_t bell; /* a descriptor that the event loop watches, and at which nothing ever happens: it is told if
				  there is somebody for Python in `leaving` */
	uint32_t gid; /* whose members are admitted */
	uint32_t may_register; /* else Python does that */
	uint64_t pid_namespace;
	uint64_t no_pidfs; /* the inode of a pidfd that says nothing */
	struct newcomers known, leaving;
};

/* All that are known to C become Python's. */
void door_empty(struct selector *selector, struct door *door);

/* The first of those who are Python's now, or NULL. What is in it is the caller's, but for itself: free(3). */
struct newcomer *door_next(struct door *door);
void newcomer_free(struct newcomer *newcomer);

/* What a descriptor is that the event loop watches for reading. */
enum selector_kind {
	SELECTOR_NOTHING,
	SELECTOR_SOCKET,   /* that of a struct session, which does not block: its requests are answered */
	SELECTOR_PROCESS,  /* the pidfd of its client: its instance is ended, and that is told */
	SELECTOR_INSTANCE, /* the pidfd of a struct death: it is collected, and that is told */
	SELECTOR_SEGMENT,  /* inotify on the segment: it is told a moment later; see selector.c */
	SELECTOR_DOOR,     /* listens for a struct door, and does not block: clients are let in */
	/* C's own: */
	SELECTOR_NEWCOMER,         /* the socket of a struct newcomer, */
	SELECTOR_NEWCOMER_PROCESS, /* and its pidfd */
};

/* Lend a descriptor with what belongs to it. SELECTOR_NOTHING takes it back: a socket at any time, others once they
 * are out of epoll, and each before it is closed. Returns 0, -ENOMEM, or an error of epoll_ctl(2). */
int selector_lend(struct selector *selector, int fd, uint32_t kind, void *what);

/* Answer what can be answered here, until something else happens; that into events[], and returns how many. 0: the time is
 * over, or a signal came. `timeout_ms` 0: one look, -1: no end; `most` 2 or more. Errors: of epoll_wait(2) and epoll_ctl(2). */
int selector_wait(struct selector *selector, int timeout_ms, struct selector_event *events, int most);
/* cffi: end */

enum outcome {
	SERVED,
	LEFT,  /* to Python: the request, or what became of it */
	ENDED, /* the client is gone, and what its instance held is free. Python does the rest. */
};

/* Answer the first request in the socket. */
enum outcome session_serve(struct session *session, int fd);

/* The client is gone: what its instance held is free. */
void session_end(struct session *session);

/* Watch a descriptor that is C's own, and watch it no more. */
int selector_watch(struct selector *selector, int fd, enum selector_kind kind, void *what);
void selector_unwatch(struct selector *selector, int fd);

/* newcomer.c: somebody knocks. */
enum outcome door_knock(struct selector *selector, struct door *door, int listener);

/* Serve a newcomer, or its end. LEFT: it is in the door's `leaving`; ENDED: it is for newcomer_bury(). */
enum outcome newcomer_serve(struct selector *selector, struct newcomer *newcomer);
enum outcome newcomer_died(struct selector *selector, struct newcomer *newcomer);
int newcomer_bell(const struct newcomer *newcomer);

/* After the round, as its descriptors must stand for nothing else before. */
void newcomer_bury(struct newcomer *newcomer);

/* The answer to REGISTER into *value; false: it is Python's to answer. */
bool newcomer_register(struct newcomer *newcomer, const uint8_t *request, int *value);

#endif
