/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The loop that waits.
 *
 * THE DANGER is a loop that nobody comes out of, or that one comes out of for the wrong reason.
 *
 *   Requests that never end keep Python from its timers. So the time is asked after each round, and each round answers
 *   one request of each client at most; the kernel puts who was served behind who was not.
 *
 *   A descriptor is a number, and numbers are used again. The event loop takes a descriptor out of epoll before it
 *   closes it, and takes it back here at the same time, with news of it that were not told yet. What is C's own, a newcomer's, is closed after
 *   the round. So within a round each number means what it meant when the round began, or nothing.
 *
 *   A hang-up is told whatever is asked for, and told again until someone acts. So is a request that C leaves to
 *   Python. Neither can make a loop here, since whatever is not done at once ends it: Python has the event next.
 *
 * DEATHS GO FIRST: the dead are collected here, and Python is told. But the kernel tells of a death twice. When it
 * closes the dead one's files, inotify says that the segment was closed, which is before the life lock is dropped, and does
 * not say by whom; then the pidfd says who. Python would spend on the first what the second needs, and on the
 * dying process's CPU. So what inotify says waits for a moment, or until something else is told, to which it is put first,
 * as it came first. Meanwhile it is disarmed (EPOLLONESHOT), and nothing is lost: armed anew it tells of all that is unread.
 *
 * Python's own select.epoll stores the descriptor in epoll's data, and tells it from there as we do.
 */
#include "selector.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <time.h>

enum {
	AT_ONCE = 64,  /* events a round */
	MOMENT_MS = 1, /* that inotify waits: a process needs less than that from its files to its end */
	NOBODY = -1,
};

struct lent {
	enum selector_kind kind;
	void *what;
};

struct selector {
	int epoll;
	int room;          /* of lent[] */
	struct lent *lent; /* by descriptor */
	int segment;       /* the inotify that has something to tell, or NOBODY */
	int64_t since_ms;
	struct newcomer *gone; /* in this round */
};

struct selector *selector_new(int epoll)
{
	struct selector *selector = calloc(1, sizeof(*selector));

	if (selector) {
		selector->epoll = epoll;
		selector->segment = NOBODY;
	}
	return selector;
}

void selector_free(struct selector *selector)
{
	if (selector)
		free(selector->lent);
	free(selector);
}

/* It tells once what there is to read, now or later. */
static int arm(struct selector *selector, int fd)
{
	struct epoll_event event = {.events = EPOLLIN | EPOLLONESHOT, .data.fd = fd};

	return epoll_ctl(selector->epoll, EPOLL_CTL_MOD, fd, &event) ? -errno : 0;
}

static int make_room(struct selector *selector, int fd)
{
	int room = fd + AT_ONCE;
	struct lent *lent = realloc(selector->lent, (size_t)room * sizeof(*lent));

	if (!lent)
		return -ENOMEM;
	for (int i = selector->room; i < room; i++)
		lent[i] = (struct lent){SELECTOR_NOTHING, NULL};
	selector->lent = lent;
	selector->room = room;
	return 0;
}

int selector_lend(struct selector *selector, int fd, uint32_t kind, void *what)
{
	int rc = 0;

	if (fd >= selector->room && kind == SELECTOR_NOTHING)
		return 0;
	if (fd >= selector->room)
		rc = make_room(selector, fd);
	if (!rc && kind == SELECTOR_SEGMENT)
		rc = arm(selector, fd);
	if (rc)
		return rc;
	if (selector->segment == fd)
		selector->segment = NOBODY;
	selector->lent[fd] = (struct lent){kind, what};
	return 0;
}

static int64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static int64_t now_ms(void)
{
	return now_ns() / 1000000;
}

static void meet(struct death *death)
{
	int64_t heard = now_ns();

	death->result = mtlshm_collect(death->host, death->owner);
	death->took_ns = (uint64_t)(now_ns() - heard);
	death->met = 1;
}

int selector_watch(struct selector *selector, int fd, enum selector_kind kind, void *what)
{
	struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
	int rc = selector_lend(selector, fd, kind, what);

	if (rc)
		return rc;
	if (!epoll_ctl(selector->epoll, EPOLL_CTL_ADD, fd, &event))
		return 0;
	rc = -errno;
	selector_lend(selector, fd, SELECTOR_NOTHING, NULL);
	return rc;
}

void selector_unwatch(struct selector *selector, int fd)
{
	epoll_ctl(selector->epoll, EPOLL_CTL_DEL, fd, NULL);
	selector_lend(selector, fd, SELECTOR_NOTHING, NULL);
}

static struct lent lent_as(const struct selector *selector, int fd)
{
	static const struct lent nothing = {SELECTOR_NOTHING, NULL};

	return fd >= 0 && fd < selector->room ? selector->lent[fd] : nothing;
}

/* Of a newcomer: where Python is told, or NOBODY. */
static int tell_of_newcomer(struct selector *selector, struct newcomer *newcomer, enum outcome outcome)
{
	if (outcome == ENDED) {
		newcomer->next = selector->gone;
		selector->gone = newcomer;
	}
	return outcome == LEFT ? newcomer_bell(newcomer) : NOBODY;
}

/* Do what C does when something happens at a descriptor. Returns at which one that is told, or NOBODY: there is nothing to tell,
 * at least now. */
static int happen(struct selector *selector, int fd)
{
	struct lent lent = lent_as(selector, fd);
	struct door *door = lent.what;

	switch (lent.kind) {
	case SELECTOR_SOCKET: return session_serve(lent.what, fd) == SERVED ? NOBODY : fd;
	case SELECTOR_PROCESS: session_end(lent.what); return fd;
	case SELECTOR_INSTANCE: meet(lent.what); return fd;
	case SELECTOR_SEGMENT:
		selector->segment = fd;
		selector->since_ms = now_ms();
		return NOBODY;
	case SELECTOR_DOOR:
		switch (door_knock(selector, door, fd)) {
		case SERVED: return NOBODY;
		case LEFT: return fd;
		case ENDED: return door->bell;
		}
		return fd;
	case SELECTOR_NEWCOMER: return tell_of_newcomer(selector, lent.what, newcomer_serve(selector, lent.what));
	case SELECTOR_NEWCOMER_PROCESS:
		return tell_of_newcomer(selector, lent.what, newcomer_died(selector, lent.what));
	case SELECTOR_NOTHING: break;
	}
	return fd;
}

/* A round is over: those who went in it are no more. */
static void bury(struct selector *selector)
{
	while (selector->gone) {
		struct newcomer *newcomer = selector->gone;

		selector->gone = newcomer->next;
		newcomer_bury(newcomer);
	}
}

/* What inotify says is told now, before the rest, and what it says later is told later. */
static int tell_of_segment(struct selector *selector, struct selector_event *events, int told)
{
	int fd = selector->segment;

	memmove(events + 1, events, (size_t)told * sizeof(*events));
	events[0] = (struct selector_event){fd, EPOLLIN};
	selector->segment = NOBODY;
	return arm(selector, fd);
}

int selector_wait(struct selector *selector, int timeout_ms, struct selector_event *events, int most)
{
	struct epoll_event happened[AT_ONCE];
	int64_t end = timeout_ms > 0 ? now_ms() + timeout_ms : 0;
	int left = timeout_ms, count, told = 0;

	if (most > AT_ONCE)
		most = AT_ONCE;
	for (;;) {
		bool waits = selector->segment != NOBODY;

		count = epoll_wait(selector->epoll, happened, most - 1, waits && left ? MOMENT_MS : left);
		if (count < 0)
			return errno == EINTR ? 0 : -errno;
		for (int i = 0; i < count; i++) {
			int fd = happened[i].data.fd, at = happen(selector, fd);

			if (at != NOBODY)
				events[told++] = (struct selector_event){at, at == fd ? happened[i].events : EPOLLIN};
		}
		bury(selector);
		if (selector->segment != NOBODY &&
		    (told || (waits && !count) || now_ms() - selector->since_ms > MOMENT_MS)) {
			int rc = tell_of_segment(selector, events, told++);

			if (rc)
				return rc;
		}
		if (told || !left || (!count && !waits))
			return told;
		if (timeout_ms > 0) {
			int64_t rest = end - now_ms();

			left = rest > 0 ? (int)rest : 0;
			if (!left)
				return 0;
		}
	}
}
