/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Clients of the manager's socket, which do there what libmtl does.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "client.h"
#include "kinds.h"

enum { SIZE = 118, MAGIC = 0x494d544c, REGISTER = 101, GET_LCORE = 103, PUT_LCORE = 104, RESPONSE = 201 };

static int server = -1;

/* What the daemon says, or -EPIPE if the connection is gone. */
static int ask(uint32_t type, uint32_t lcore)
{
	uint32_t header[4] = {htonl(MAGIC), htonl(type)}; /* and the response */
	uint16_t body = htons((uint16_t)lcore);
	char bytes[SIZE] = {0};

	memcpy(bytes, header, 12);
	if (type != REGISTER)
		memcpy(bytes + 12, &body, sizeof(body));
	if (send(server, bytes, SIZE, MSG_NOSIGNAL) != SIZE || recv(server, bytes, SIZE, MSG_WAITALL) != SIZE)
		return -EPIPE;
	memcpy(header, bytes, sizeof(header));
	if (header[0] != htonl(MAGIC) || header[1] != htonl(RESPONSE))
		witness_wrong("the daemon answered with a record of type", ntohl(header[1]));
	return (int)ntohl(header[3]);
}

static bool connect_to_daemon(void)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int rc = -EPIPE;

	strncpy(address.sun_path, self.socket, sizeof(address.sun_path) - 1);
	server = socket(AF_UNIX, SOCK_STREAM, 0);
	if (!connect(server, (struct sockaddr *)&address, sizeof(address)))
		rc = ask(REGISTER, 0);
	if (!rc)
		return true;
	if (rc != -EPIPE)
		witness_wrong("the daemon refused to register it:", rc);
	close(server);
	doze(10000);
	return false;
}

/* The connection is gone and the client, as libmtl, has no other. What it has it keeps until it dies. */
static _Noreturn void live_without_daemon(void)
{
	doze(200000);
	end();
}

static void claim_from_daemon(void)
{
	uint32_t lcore = throw_dice(self.lcores);
	int rc;

	if (is_held(lcore))
		return;
	rc = ask(GET_LCORE, lcore);
	if (rc == -EPIPE)
		live_without_daemon();
	else if (!rc)
		got(lcore);
	else if (rc != -EBUSY)
		witness_wrong("the daemon answered GET_LCORE with", rc);
}

static void release_to_daemon(void)
{
	int rc = ask(PUT_LCORE, gives(throw_dice(self.held_count)));

	if (rc == -EPIPE)
		live_without_daemon();
	else if (rc)
		witness_wrong("the daemon answered PUT_LCORE with", rc);
}

void live_on_socket(void)
{
	for (;;) {
		while (!connect_to_daemon())
			;
		for (uint32_t n = throw_dice(60); n; n--) {
			uint32_t what = throw_dice(100);

			if (what < 45)
				claim_from_daemon();
			else if (what < 85 && self.held_count)
				release_to_daemon();
			else if (what < 99)
				doze(2000);
			else if (!fork_once()) {
				begin_as_child(); /* does nothing but hold the socket, also when its parent is dead */
				pause();
			}
		}
		if (!throw_dice(4))
			end();
		give_all();
		close(server);
	}
}
