/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The baseline of all that is compared with a daemon: 64 lcores in the memory of a single-threaded epoll server, claimed and released
 * by a request and a reply over a Unix stream socket. A client owns what it claimed until it releases it or its
 * socket closes. As quick as such a thing can be: no logging, no checks, one system call each way.
 */
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "bench.h"

enum { LCORES = 64, CLAIM = 1, RELEASE = 2 };

struct message {
	uint8_t operation;
	uint8_t lcore;
	uint8_t refused;
	uint8_t rest[MESSAGE - 3];
};
_Static_assert(sizeof(struct message) == MESSAGE, "as on the wire");

static struct sockaddr_un address(const char *path)
{
	struct sockaddr_un a = {.sun_family = AF_UNIX};

	CHECK(strlen(path) < sizeof a.sun_path);
	strcpy(a.sun_path, path);
	return a;
}

static void serve_client(int fd, int *owner)
{
	struct message m;

	if (recv(fd, &m, sizeof m, MSG_WAITALL) != sizeof m) {
		for (int i = 0; i < LCORES; i++)
			if (owner[i] == fd)
				owner[i] = 0;
		close(fd);
		return;
	}
	int *slot = &owner[m.lcore % LCORES];
	int expected = m.operation == CLAIM ? 0 : fd;

	m.refused = *slot != expected;
	if (!m.refused)
		*slot = m.operation == CLAIM ? fd : 0;
	if (send(fd, &m, sizeof m, MSG_NOSIGNAL) < 0)
		return; /* it died: the next event says so */
}

static void serve(int listener)
{
	int poll = epoll_create1(EPOLL_CLOEXEC), owner[LCORES] = {0}; /* fd 0 is never a client's */
	struct epoll_event events[16], event = {.events = EPOLLIN, .data.fd = listener};

	CHECK(poll >= 0 && epoll_ctl(poll, EPOLL_CTL_ADD, listener, &event) == 0);
	for (;;) {
		int n = epoll_wait(poll, events, 16, -1);

		for (int i = 0; i < n; i++) {
			if (events[i].data.fd != listener) {
				serve_client(events[i].data.fd, owner);
				continue;
			}
			event.data.fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
			CHECK(event.data.fd > 0 && epoll_ctl(poll, EPOLL_CTL_ADD, event.data.fd, &event) == 0);
		}
	}
}

pid_t server_start(const char *path, int cpu)
{
	struct sockaddr_un a = address(path);
	int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	unlink(path);
	CHECK(listener >= 0 && bind(listener, (struct sockaddr *)&a, sizeof a) == 0 && listen(listener, 64) == 0);
	pid_t child = fork_bound();
	if (child == 0) {
		if (cpu >= 0)
			pin(cpu);
		serve(listener);
	}
	close(listener);
	return child;
}

int server_connect(const char *path)
{
	struct sockaddr_un a = address(path);
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	CHECK(fd >= 0 && connect(fd, (struct sockaddr *)&a, sizeof a) == 0);
	return fd;
}

static int ask(int fd, uint8_t operation, uint8_t lcore)
{
	struct message m = {.operation = operation, .lcore = lcore};

	CHECK(send(fd, &m, sizeof m, MSG_NOSIGNAL) == sizeof m);
	CHECK(recv(fd, &m, sizeof m, MSG_WAITALL) == sizeof m);
	return m.refused ? -EBUSY : 0;
}

int server_claim(int fd, uint8_t lcore)
{
	return ask(fd, CLAIM, lcore);
}

int server_release(int fd, uint8_t lcore)
{
	return ask(fd, RELEASE, lcore);
}
