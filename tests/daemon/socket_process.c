/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A process on the manager socket, as far as others see it: it does there what libmtl does, when a test tells it.
 *
 *     socket_process PATH
 *
 * Commands come on standard input, one a line: register, claim LCORE, release LCORE. Each is answered with a number: what
 * the daemon replied, or -EPIPE if the connection is gone. See class Puppet in tools/lab/processes.py.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

/* Seconds after which it ends by itself, should the test be gone. */
#define LIFETIME 36000

enum { SIZE = 118, MAGIC = 0x494d544c, REGISTER = 101, GET_LCORE = 103, PUT_LCORE = 104, RESPONSE = 201 };

static int server = -1;

static long connect_to(const char *path)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};

	snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
	server = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	return connect(server, (struct sockaddr *)&address, sizeof(address)) ? -errno : 0;
}

static long ask(uint32_t type, uint16_t lcore)
{
	uint32_t header[4] = {htonl(MAGIC), htonl(type)}; /* and the response */
	uint16_t body = htons(lcore);
	char record[SIZE] = {0};

	memcpy(record, header, 12);
	if (type != REGISTER)
		memcpy(record + 12, &body, sizeof(body));
	if (send(server, record, SIZE, MSG_NOSIGNAL) != SIZE || recv(server, record, SIZE, MSG_WAITALL) != SIZE)
		return -EPIPE;
	memcpy(header, record, sizeof(header));
	if (header[0] != htonl(MAGIC) || header[1] != htonl(RESPONSE))
		abort();
	return (int32_t)ntohl(header[3]);
}

int main(int argc, char **argv)
{
	char line[64], verb[16];
	unsigned int lcore;

	if (argc != 2)
		return 2;
	alarm(LIFETIME);
	while (fgets(line, sizeof(line), stdin)) {
		long result = 0;

		lcore = 0;
		if (sscanf(line, "%15s %u", verb, &lcore) < 1)
			abort();
		if (!strcmp(verb, "register"))
			result = connect_to(argv[1]) || ask(REGISTER, 0) ? -EPIPE : 0;
		else if (!strcmp(verb, "claim"))
			result = ask(GET_LCORE, (uint16_t)lcore);
		else if (!strcmp(verb, "release"))
			result = ask(PUT_LCORE, (uint16_t)lcore);
		else
			abort();
		dprintf(STDOUT_FILENO, "%ld\n", result);
	}
	return 0;
}
