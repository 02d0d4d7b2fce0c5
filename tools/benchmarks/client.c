/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The manager socket as libmtl uses it: a record of 118 bytes, big-endian, one send; then recv() until the reply.
 */
#include <arpa/inet.h>
#include <sys/socket.h>

#include "bench.h"

enum { MAGIC = 0x494d544c, REGISTER = 101, GET_LCORE = 103, PUT_LCORE = 104, RESPONSE = 201 };

struct record {
	uint32_t magic, type, body_length;
	union {
		uint16_t lcore;
		uint32_t response;
		uint8_t bytes[MESSAGE - 12];
	} __attribute__((packed)) body;
} __attribute__((packed));
_Static_assert(sizeof(struct record) == MESSAGE, "as on the wire");

static void ask(int fd, uint32_t type, uint32_t body_length, uint16_t lcore)
{
	struct record r = {htonl(MAGIC), htonl(type), htonl(body_length), .body.lcore = htons(lcore)};

	CHECK(send(fd, &r, sizeof r, MSG_NOSIGNAL) == sizeof r);
	CHECK(recv(fd, &r, sizeof r, MSG_WAITALL) == sizeof r);
	CHECK(r.type == htonl(RESPONSE) && r.body.response == 0);
}

int manager_connect(const char *path)
{
	int fd = server_connect(path);

	ask(fd, REGISTER, sizeof(struct record) - 12, 0); /* 106: what dialect B writes; no pid, name or interfaces */
	return fd;
}

void manager_get(int fd, uint16_t lcore)
{
	ask(fd, GET_LCORE, sizeof lcore, lcore);
}

void manager_put(int fd, uint16_t lcore)
{
	ask(fd, PUT_LCORE, sizeof lcore, lcore);
}
