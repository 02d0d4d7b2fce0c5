/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Receives UDP packets through an AF_XDP socket with no capability at all, in whatever network namespace: mtlshmd makes
 * the socket, in its own, binds it to a queue that is ours from then on, and hands it over with its memory.
 *
 *     cc xsk_receive.c -o xsk_receive && ./xsk_receive eth0 20000 1000
 *
 * prints how many packets to port 20000 came by queue N of eth0, after 1000 of them. The daemon lets packets to that
 * port through to AF_XDP; which queue they arrive on decides the NIC. A flow rule is asked for with IF_ADD_FLOW.
 */
#define _GNU_SOURCE 1
#include <arpa/inet.h>
#include <errno.h>
#include <linux/if_xdp.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { FRAME = 2048, FRAMES = 4096, ENTRIES = 2048 };
enum { REGISTER = 101, ADD_UDP_DP_FILTER = 105, OPEN_XSK = 1001, MAGIC = 0x494d544c };

/* The manager socket's record: 118 bytes, big-endian, whatever its type. */
struct record {
	uint32_t magic, type, body_len;
	union {
		struct {
			uint32_t pid, uid;
			char hostname[64];
			uint16_t num_if;
			uint32_t ifindex[8];
		} __attribute__((packed)) registration;
		struct {
			uint32_t ifindex;
			uint16_t port;
		} __attribute__((packed)) filter;
		struct {
			uint32_t ifindex; /* as the daemon sees it; 0: the name counts */
			char name[16];
			uint32_t frame_size, frames, fill, completion, rx, tx;
		} __attribute__((packed)) open_xsk;
		struct {
			int32_t response; /* of OPEN_XSK: the queue */
			uint32_t ifindex; /* of OPEN_XSK */
		} __attribute__((packed)) reply;
		char bytes[106];
	} __attribute__((packed)) body;
} __attribute__((packed));

_Static_assert(sizeof(struct record) == 118, "as on the wire");

struct ring {
	uint32_t *producer, *consumer;
	void *entries;
};

static void fail(const char *what, int error)
{
	fprintf(stderr, "xsk_receive: %s: %s\n", what, strerror(error));
	exit(1);
}

static int connect_to_manager(void)
{
	const char *path = getenv("MTL_MANAGER_SOCK_PATH");
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	snprintf(address.sun_path, sizeof(address.sun_path), "%s", path ? path : "/var/run/imtl/mtl_manager.sock");
	if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof(address)))
		fail(address.sun_path, errno);
	return fd;
}

/* Sends a request; the reply's number, and the descriptors that came with it. */
static int ask(int manager, struct record *record, uint32_t type, size_t length, int descriptors[2])
{
	char control[CMSG_SPACE(2 * sizeof(int))];
	struct iovec data = {record, sizeof(*record)};
	struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = control};
	struct cmsghdr *header;

	record->magic = htonl(MAGIC);
	record->type = htonl(type);
	record->body_len = htonl((uint32_t)length);
	if (send(manager, record, sizeof(*record), MSG_NOSIGNAL) != (ssize_t)sizeof(*record))
		fail("send", errno);
	message.msg_controllen = sizeof(control);
	if (recvmsg(manager, &message, MSG_CMSG_CLOEXEC | MSG_WAITALL) != (ssize_t)sizeof(*record))
		fail("mtlshmd went away", ECONNRESET);
	header = CMSG_FIRSTHDR(&message);
	if (header && header->cmsg_len == CMSG_LEN(2 * sizeof(int)))
		memcpy(descriptors, CMSG_DATA(header), 2 * sizeof(int));
	return (int)ntohl((uint32_t)record->body.reply.response);
}

static struct ring map_ring(int xsk, off_t page, const struct xdp_ring_offset *offset, size_t entry)
{
	char *base = mmap(NULL, offset->desc + ENTRIES * entry, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, xsk,
			  page);

	if (base == MAP_FAILED)
		fail("mmap of a ring", errno);
	return (struct ring){(uint32_t *)(base + offset->producer), (uint32_t *)(base + offset->consumer),
			     base + offset->desc};
}

/* To port `port`, over IPv4 or IPv6, without VLAN tags or options? An example is content with that. */
static int is_ours(const unsigned char *packet, uint32_t length, unsigned port)
{
	uint32_t udp = packet[12] == 0x08 ? 14 + 20 : 14 + 40;

	return length >= udp + 8 && (packet[udp + 2] << 8 | packet[udp + 3]) == (int)port;
}

int main(int argc, char **argv)
{
	struct record record = {0};
	struct xdp_mmap_offsets offsets;
	socklen_t length = sizeof(offsets);
	int manager, result, descriptors[2] = {-1, -1};
	unsigned long wanted, seen = 0;
	struct ring fill, rx;
	unsigned char *umem;
	uint32_t ifindex;
	unsigned port;

	/* A longer, alternative name does not fit; cut off, it could be that of another. */
	if (argc != 4 || strlen(argv[1]) >= sizeof(record.body.open_xsk.name)) {
		fprintf(stderr, "usage: xsk_receive INTERFACE PORT PACKETS; a name of up to 15 characters\n");
		return 2;
	}
	port = (unsigned)atoi(argv[2]);
	wanted = strtoul(argv[3], NULL, 10);

	manager = connect_to_manager();
	if ((result = ask(manager, &record, REGISTER, sizeof(record.body.registration), descriptors)) < 0)
		fail("REGISTER", -result);

	memset(&record, 0, sizeof(record));
	snprintf(record.body.open_xsk.name, sizeof(record.body.open_xsk.name), "%s", argv[1]);
	record.body.open_xsk.frame_size = htonl(FRAME);
	record.body.open_xsk.frames = htonl(FRAMES);
	record.body.open_xsk.fill = record.body.open_xsk.completion = record.body.open_xsk.rx = htonl(ENTRIES);
	if ((result = ask(manager, &record, OPEN_XSK, sizeof(record.body.open_xsk), descriptors)) < 0)
		fail("OPEN_XSK", -result);
	ifindex = record.body.reply.ifindex; /* in network order, as it goes back */
	fprintf(stderr, "xsk_receive: queue %d of %s\n", result, argv[1]);

	if (getsockopt(descriptors[0], SOL_XDP, XDP_MMAP_OFFSETS, &offsets, &length))
		fail("XDP_MMAP_OFFSETS", errno);
	fill = map_ring(descriptors[0], XDP_UMEM_PGOFF_FILL_RING, &offsets.fr, sizeof(uint64_t));
	rx = map_ring(descriptors[0], XDP_PGOFF_RX_RING, &offsets.rx, sizeof(struct xdp_desc));
	umem = mmap(NULL, (size_t)FRAME * FRAMES, PROT_READ | PROT_WRITE, MAP_SHARED, descriptors[1], 0);
	if (umem == MAP_FAILED)
		fail("mmap of the UMEM", errno);

	/* First frames for the kernel to fill, then packets that need them. */
	for (uint32_t i = 0; i < ENTRIES; i++)
		((uint64_t *)fill.entries)[i] = (uint64_t)i * FRAME;
	__atomic_store_n(fill.producer, ENTRIES, __ATOMIC_RELEASE);

	memset(&record, 0, sizeof(record));
	record.body.filter.ifindex = ifindex;
	record.body.filter.port = htons((uint16_t)port);
	if ((result = ask(manager, &record, ADD_UDP_DP_FILTER, sizeof(record.body.filter), descriptors)) < 0)
		fail("ADD_UDP_DP_FILTER", -result);
	fprintf(stderr, "xsk_receive: ready\n");

	while (seen < wanted) {
		uint32_t consumer = *rx.consumer, producer = __atomic_load_n(rx.producer, __ATOMIC_ACQUIRE);
		struct pollfd readable = {.fd = descriptors[0], .events = POLLIN};

		if (consumer == producer) {
			if (poll(&readable, 1, -1) < 0 && errno != EINTR)
				fail("poll", errno);
			continue;
		}
		for (; consumer != producer; consumer++) {
			const struct xdp_desc *packet = &((struct xdp_desc *)rx.entries)[consumer % ENTRIES];
			uint32_t next = *fill.producer;

			seen += (unsigned long)is_ours(umem + packet->addr, packet->len, port);
			((uint64_t *)fill.entries)[next % ENTRIES] = packet->addr & ~(uint64_t)(FRAME - 1);
			__atomic_store_n(fill.producer, next + 1, __ATOMIC_RELEASE);
		}
		__atomic_store_n(rx.consumer, consumer, __ATOMIC_RELEASE);
	}
	printf("%lu\n", seen);
	return 0; /* the socket, the queue and the port go with us */
}
