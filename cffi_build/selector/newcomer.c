/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Clients that come in: who they are, and their REGISTER. What is said here once more, peer.py, process.py and session.py say
 * for those whom C does not know what to do with.
 *
 * A NEWCOMER IS C'S until it asks for what only Python can answer, mostly its first lcore. Then it is handed over whole, and is
 * not C's again but as a session that is lent. So a client has one owner at any time: here struct door's `known`, or `leaving`,
 * which is Python's already; or nobody's, as it has ended.
 *
 * HANDED OVER UNSEEN is who is not plainly one that may come in: not of the group, in a PID namespace that we do not see
 * into, dead by now, of a kernel whose pidfds tell nobody from another. Python looks again and says why in the log.
 *
 * NO LEASE. What lease a client has, its environment says, which may take for ever to read. Here it is not read: C registers
 * while nothing is leased on this host, and Python looks before the client's first lcore; see lease.py.
 *
 * ROOM is made sure of before a client is accepted: refused afterwards, it would be killed. In the backlog it only waits.
 */
#include "selector.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "record.h"

#ifndef SO_PEERGROUPS
#define SO_PEERGROUPS 59 /* asm-generic/socket.h, Linux 4.13 */
#endif
#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77 /* Linux 6.5 */
#endif

enum {
	FOR_WORK = 16, /* descriptors that are not for clients; manager_socket.py has the same number */
	GROUPS = 256,  /* that are looked at here */
};

static void append(struct newcomers *list, struct newcomer *newcomer)
{
	newcomer->next = NULL;
	newcomer->previous = list->last;
	if (list->last)
		list->last->next = newcomer;
	else
		list->first = newcomer;
	list->last = newcomer;
}

static void take_out(struct newcomers *list, struct newcomer *newcomer)
{
	if (newcomer->previous)
		newcomer->previous->next = newcomer->next;
	else
		list->first = newcomer->next;
	if (newcomer->next)
		newcomer->next->previous = newcomer->previous;
	else
		list->last = newcomer->previous;
}

static void forget(struct selector *selector, struct newcomer *newcomer)
{
	selector_unwatch(selector, newcomer->socket);
	selector_unwatch(selector, newcomer->pidfd);
	take_out(&newcomer->door->known, newcomer);
}

static enum outcome hand_over(struct selector *selector, struct newcomer *newcomer)
{
	forget(selector, newcomer);
	newcomer->session.newcomer = NULL;
	append(&newcomer->door->leaving, newcomer);
	return LEFT;
}

void door_empty(struct selector *selector, struct door *door)
{
	while (door->known.first)
		hand_over(selector, door->known.first);
}

struct newcomer *door_next(struct door *door)
{
	struct newcomer *newcomer = door->leaving.first;

	if (newcomer)
		take_out(&door->leaving, newcomer);
	return newcomer;
}

void newcomer_free(struct newcomer *newcomer)
{
	free(newcomer);
}

int newcomer_bell(const struct newcomer *newcomer)
{
	return newcomer->door->bell;
}

void newcomer_bury(struct newcomer *newcomer)
{
	mtlshm_instance_free(newcomer->session.instance);
	close(newcomer->pidfd);
	close(newcomer->socket);
	free(newcomer);
}

/* --- who it is ------------------------------------------------------------------------------------------- */

/* The socket file's mode says the same. */
static bool may_enter(const struct door *door, int fd, const struct ucred *peer)
{
	gid_t groups[GROUPS];
	socklen_t size = sizeof(groups);

	if (!peer->uid || peer->uid == geteuid() || peer->gid == door->gid)
		return true;
	if (getsockopt(fd, SOL_SOCKET, SO_PEERGROUPS, groups, &size))
		return false;
	for (size_t i = 0; i < size / sizeof(*groups); i++)
		if (groups[i] == door->gid)
			return true;
	return false;
}

/* False: Python has to look. */
static bool look_at(struct newcomer *newcomer)
{
	const struct door *door = newcomer->door;
	struct ucred peer;
	struct stat st;
	socklen_t size = sizeof(peer);
	int pidfd;

	if (getsockopt(newcomer->socket, SOL_SOCKET, SO_PEERCRED, &peer, &size) || peer.pid <= 0 ||
	    !may_enter(door, newcomer->socket, &peer))
		return false;
	size = sizeof(pidfd);
	if (getsockopt(newcomer->socket, SOL_SOCKET, SO_PEERPIDFD, &pidfd, &size))
		return false;
	if (fcntl(pidfd, F_SETFD, FD_CLOEXEC) || fstat(pidfd, &st) || st.st_ino == door->no_pidfs) {
		close(pidfd);
		return false;
	}
	newcomer->pidfd = pidfd;
	newcomer->inode = st.st_ino;
	newcomer->pid = peer.pid;
	newcomer->uid = peer.uid;
	return true;
}

static bool has_room(int listener)
{
	int spare = fcntl(listener, F_DUPFD_CLOEXEC, 0); /* the lowest that is free */
	struct rlimit limit;
	bool room;

	if (spare < 0)
		return false;
	room = !getrlimit(RLIMIT_NOFILE, &limit) && (rlim_t)spare + FOR_WORK < limit.rlim_cur;
	close(spare);
	return room;
}

static bool watch(struct selector *selector, struct newcomer *newcomer)
{
	if (selector_watch(selector, newcomer->socket, SELECTOR_NEWCOMER, newcomer))
		return false;
	if (!selector_watch(selector, newcomer->pidfd, SELECTOR_NEWCOMER_PROCESS, newcomer))
		return true;
	selector_unwatch(selector, newcomer->socket);
	return false;
}

/* ENDED: somebody is in `leaving`, and the listener has nothing to tell. */
enum outcome door_knock(struct selector *selector, struct door *door, int listener)
{
	const int on = 1;
	struct newcomer *newcomer;

	if (!has_room(listener))
		return LEFT;
	newcomer = calloc(1, sizeof(*newcomer));
	if (!newcomer)
		return LEFT;
	newcomer->socket = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
	if (newcomer->socket < 0) {
		bool nobody = errno == EAGAIN || errno == ECONNABORTED;

		free(newcomer);
		return nobody ? SERVED : LEFT;
	}
	newcomer->door = door;
	newcomer->pidfd = -1;
	newcomer->session.host = door->host;
	/* Or a byte that was sent out of band would wake us, and not be there when we peek (Linux 5.15). */
	setsockopt(newcomer->socket, SOL_SOCKET, SO_OOBINLINE, &on, sizeof(on));
	if (look_at(newcomer)) {
		if (watch(selector, newcomer)) {
			newcomer->session.newcomer = newcomer;
			append(&door->known, newcomer);
			return SERVED;
		}
		close(newcomer->pidfd);
		newcomer->pidfd = -1;
	}
	append(&door->leaving, newcomer);
	return ENDED;
}

/* --- what it asks for, and its end ----------------------------------------------------------------------- */

enum outcome newcomer_serve(struct selector *selector, struct newcomer *newcomer)
{
	enum outcome outcome = session_serve(&newcomer->session, newcomer->socket);

	if (outcome == LEFT && newcomer->session.over)
		return newcomer_died(selector, newcomer);
	if (outcome == LEFT)
		return hand_over(selector, newcomer);
	if (outcome == ENDED)
		forget(selector, newcomer);
	return outcome;
}

enum outcome newcomer_died(struct selector *selector, struct newcomer *newcomer)
{
	session_end(&newcomer->session);
	forget(selector, newcomer);
	return ENDED;
}

/* A text of at most size - 1 characters, from `length` bytes; false if people cannot read it as it is. */
static bool copy_text(char *text, size_t size, const uint8_t *from, size_t length)
{
	size_t i;

	for (i = 0; i < length && i < size - 1 && from[i]; i++) {
		if (from[i] < ' ' || from[i] > '~')
			return false;
		text[i] = (char)from[i];
	}
	text[i] = '\0';
	return true;
}

static bool read_comm(struct mtlshm_process *process)
{
	uint8_t comm[sizeof(process->comm)];
	char path[32];
	ssize_t length;
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/comm", process->pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return false;
	length = read(fd, comm, sizeof(comm));
	close(fd);
	return length > 1 && comm[length - 1] == '\n' &&
	       copy_text(process->comm, sizeof(process->comm), comm, (size_t)length - 1);
}

bool newcomer_register(struct newcomer *newcomer, const uint8_t *request, int *value)
{
	const struct door *door = newcomer->door;
	struct session *session = &newcomer->session;
	struct mtlshm_process process = {
		.pid_namespace = door->pid_namespace,
		.pidfd_inode = newcomer->inode,
		.pid = newcomer->pid,
		.uid = newcomer->uid,
	};

	if (record_u16(request + REGISTER_INTERFACES))
		return false;
	*value = 0;
	if (!session->instance) {
		if (!door->may_register || mtlshm_leased(door->host) || !read_comm(&process) ||
		    !copy_text(process.hostname, sizeof(process.hostname), request + REGISTER_HOSTNAME,
			       REGISTER_HOSTNAME_SIZE))
			return false;
		memcpy(process.label, process.comm, sizeof(process.comm));
		if (mtlshm_register_proxy(&session->instance, door->host, MTLSHM_KIND_SOCKET, &process, 0)) {
			session->instance = NULL;
			return false;
		}
		newcomer->dialect_b = record_u32(request + 8) == REGISTER_LENGTH;
	}
	session_counts.registered++;
	return true;
}
