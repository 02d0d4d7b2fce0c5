/* SPDX-License-Identifier: BSD-3-Clause
 *
 * One request, answered as mtlshm/daemon/connection.py and session.py answer it; connection.py says why a request stays in
 * the socket until its reply is about to be sent.
 *
 * NOTHING IN A REQUEST IS TRUSTED. It is copied once, and the copy is checked. The lcore id is checked before it is an index.
 *
 * BETWEEN THE TWO SIDES. Whatever a request needs beyond one call of the core is Python's: half a record, an id whose
 * CPU is not known, an lcore that others hold, another kind of request, the client's end. Then the socket is as it was. Two
 * things cannot be left in the socket, and stand in the session: that the client is gone, and a reply it has no room for.
 */
#include "selector.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/types.h>

#include "record.h"

struct session_counts session_counts;

static int find(const struct session *session, uint32_t id)
{
	for (uint32_t i = 0; i < session->held_count; i++)
		if (session->held[i].id == id)
			return (int)i;
	return -1;
}

int session_held(const struct session *session, uint32_t id)
{
	int i = find(session, id);

	return i < 0 ? -1 : session->held[i].cpu;
}

int session_drop(struct session *session, uint32_t id)
{
	int i = find(session, id), cpu;

	if (i < 0)
		return -1;
	cpu = session->held[i].cpu;
	session->held[i] = session->held[--session->held_count];
	return cpu;
}

void session_hold(struct session *session, uint32_t id, uint32_t cpu)
{
	const struct granted granted = {(uint16_t)id, (uint16_t)cpu};

	for (uint32_t i = 0; i < session->held_count; i++)
		if (session->held[i].cpu == cpu) {
			session->held[i] = granted;
			return;
		}
	if (session->held_count < SESSION_IDS) /* always: there are no more CPUs */
		session->held[session->held_count++] = granted;
}

/* A request's answer, into *value; or false. */
static bool get(struct session *session, uint32_t id, int *value)
{
	uint32_t cpu;

	if (!session->instance || !session->may_claim || id >= SESSION_IDS || !session->cpus[id])
		return false;
	cpu = session->cpus[id] - 1u;
	*value = -EBUSY;
	if (session_held(session, id) >= 0) {
		session_counts.busy++;
		return true;
	}
	if (mtlshm_claim(session->instance, cpu, MTLSHM_LCORE_SCH))
		return false;
	session_hold(session, id, cpu);
	if (cpu != id) /* an operator may have taken it this moment */
		mtlshm_tag(session->host, cpu, mtlshm_owner(session->instance), id + 1);
	session_counts.granted++;
	*value = 0;
	return true;
}

static bool put(struct session *session, uint32_t id, int *value)
{
	int cpu = session_held(session, id);

	if (!session->instance)
		return false;
	*value = -EINVAL;
	if (cpu < 0) {
		session_counts.invalid++;
		return true;
	}
	if (mtlshm_release(session->instance, (uint32_t)cpu)) /* it is not of this record: see own_claims.py */
		return false;
	session_drop(session, id);
	session_counts.given_back++;
	*value = 0;
	return true;
}

static bool answer(struct session *session, const uint8_t *request, uint8_t *reply)
{
	const uint8_t *body = request + RECORD_HEADER;
	int value = 0;
	bool done = false;

	if (record_u32(request) != RECORD_MAGIC)
		return false;
	switch (record_u32(request + 4)) {
	case RECORD_HEARTBEAT:
		record_reply(reply, SESSION_RECORD, RECORD_HEARTBEAT_ACK, record_u32(body));
		session_counts.heartbeats++;
		return true;
	case RECORD_REGISTER: done = session->newcomer && newcomer_register(session->newcomer, request, &value); break;
	case RECORD_GET_LCORE: done = get(session, record_u16(body), &value); break;
	case RECORD_PUT_LCORE: done = put(session, record_u16(body), &value); break;
	}
	if (done)
		record_reply(reply, SESSION_RECORD, RECORD_RESPONSE, (uint32_t)value);
	return done;
}

/* Out of the socket, where it has been seen. What comes with descriptors comes in pieces. */
static bool take(int fd)
{
	uint8_t record[SESSION_RECORD];
	size_t left = sizeof(record);

	while (left) {
		ssize_t taken = recv(fd, record, left, MSG_DONTWAIT);

		if (taken <= 0)
			return false;
		left -= (size_t)taken;
	}
	return true;
}

void session_end(struct session *session)
{
	if (session->instance)
		mtlshm_unregister(session->instance);
}

enum outcome session_serve(struct session *session, int fd)
{
	uint8_t request[SESSION_RECORD], reply[SESSION_RECORD];
	ssize_t arrived = recv(fd, request, sizeof(request), MSG_PEEK | MSG_DONTWAIT);

	if (!arrived || (arrived < 0 && errno == ECONNRESET)) { /* it closed, the latter with replies unread */
		session_end(session);
		return ENDED;
	}
	if (arrived != sizeof(request) || !answer(session, request, reply))
		return LEFT;
	if (!take(fd)) {
		session->over = 1;
		return LEFT;
	}
	if (send(fd, reply, sizeof(reply), MSG_NOSIGNAL | MSG_DONTWAIT) == sizeof(reply))
		return SERVED;
	if (errno == EAGAIN) {
		memcpy(session->reply, reply, sizeof(reply));
		session->unsent = sizeof(reply);
	} else {
		session->over = 1;
	}
	return LEFT;
}
