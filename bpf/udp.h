/* SPDX-License-Identifier: (BSD-3-Clause OR GPL-2.0-only) */
/*
 * What both XDP programs share: where a packet's UDP destination port is, which ports belong to AF_XDP
 * clients, and the counters.
 *
 * The rule: a packet leaves the kernel's way only if it is certain what it is. Everything else is passed to
 * the stack, which either understands it or counts it as broken. In particular:
 *
 * - Short packets: nothing is read that is not there in full, nor a UDP header beyond the end that IP
 *   states, in the padding of a short frame.
 * - Fragments go to the stack, the first one too, although it has the ports. Only it has them: it would be
 *   taken away from the others, and nobody could put the datagram together. (An IPv6 fragment header on a
 *   datagram that is whole, RFC 6946, makes no fragment.)
 * - IPv6 extension headers are walked, up to MAX_EXTENSIONS. A routing header with stops still to make
 *   means that the packet is for someone else, an authentication header (of IPv4 too) that the stack has to
 *   check it.
 * - VLAN tags: up to MAX_TAGS, 802.1Q or 802.1ad. One that the NIC has stripped is not seen here at all.
 *
 * Speed. These lines see every packet of the interface, so they are spared where it shows (tools/bench
 * xdp_hit):
 *
 * - Untagged IPv4 without options, nearly all there is, is told by two comparisons of several fields at
 *   once; IPv6 without extension headers comes next.
 * - The set of ports is one array of bytes in a global variable: its address is a constant of the loaded
 *   program, so no map is looked up. User space can map the same array, and sets a port by writing its
 *   byte, which is one store and concerns no other port. A bitmap would be smaller, but of either only the
 *   lines of ports that occur are in a cache.
 * - The counters are such an array as well, with a cache line for each CPU. A real per-CPU map costs a
 *   look-up, which is as much as all the rest. Whoever runs on a CPU here has it to himself, so nothing is
 *   atomic; CPUs from the 1,024th on share lines with others, and might lose a count.
 */
#ifndef MTLSHM_BPF_UDP_H
#define MTLSHM_BPF_UDP_H

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/udp.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define MAX_TAGS 2
#define MAX_EXTENSIONS 6
#define IP4_FRAGMENT 0x3fff /* more to come, or an offset */
#define IP6_FRAGMENT 0xfff9
#define MAX_CPUS 1024 /* a power of two */
#define NO_PORT (-1)

struct ethernet { /* struct ethhdr is packed: its type would be read in two pieces */
	__u8 addresses[12];
	__be16 type; /* of what follows */
};

struct vlan_tag {
	__be16 control;
	__be16 type;
};

struct ip6_extension {
	__u8 next;
	__u8 length; /* in units of 8 bytes, without the first */
	__u8 routing_type;
	__u8 segments_left;
	__u8 rest[4];
};

struct ip6_fragment {
	__u8 next;
	__u8 reserved;
	__be16 offset;
	__be32 id;
};

/* Not zero: packets to that port are for AF_XDP. */
__u8 udp_ports[65536] SEC(".data.ports");

struct counters {
	__u64 hits;      /* packets to such a port */
	__u64 passes;    /* all others */
	__u64 unclaimed; /* hits with no socket on their queue; not known to the filter */
	__u64 unused[5]; /* up to a cache line */
};

struct counters counters[MAX_CPUS] SEC(".data.counters");

static __always_inline int ip4_udp_port(void *at, void *end)
{
	struct iphdr *ip = at;
	struct udphdr *udp = (void *)(ip + 1);
	__u32 length;

	if ((void *)(udp + 1) > end)
		return NO_PORT;
	if (ip->protocol != IPPROTO_UDP || ip->frag_off & bpf_htons(IP4_FRAGMENT))
		return NO_PORT;
	if (ip->version != 4 || ip->ihl < 5)
		return NO_PORT;
	length = ip->ihl * 4;
	if (length > sizeof(*ip)) {
		udp = at + length;
		barrier_var(udp); /* or one register is checked and another read by */
		if ((void *)(udp + 1) > end)
			return NO_PORT;
	}
	if (bpf_ntohs(ip->tot_len) < length + sizeof(*udp))
		return NO_PORT;
	return bpf_ntohs(udp->dest);
}

static __always_inline int ip6_udp_port(void *at, void *end)
{
	struct ipv6hdr *ip = at;
	struct udphdr *udp;
	__u32 extensions = 0; /* bytes */
	__u8 next;

	if ((void *)(ip + 1) > end || ip->version != 6)
		return NO_PORT;
	next = ip->nexthdr;
	for (int i = 0; i < MAX_EXTENSIONS && next != IPPROTO_UDP; i++) {
		struct ip6_extension *extension = at + sizeof(*ip) + extensions;
		struct ip6_fragment *fragment = (void *)extension;

		if ((void *)(extension + 1) > end)
			return NO_PORT;
		switch (next) {
		case IPPROTO_FRAGMENT:
			if (fragment->offset & bpf_htons(IP6_FRAGMENT))
				return NO_PORT;
			extensions += sizeof(*fragment);
			break;
		case IPPROTO_ROUTING:
			if (extension->segments_left)
				return NO_PORT;
			extensions += (extension->length + 1) * 8;
			break;
		case IPPROTO_HOPOPTS:
		case IPPROTO_DSTOPTS: extensions += (extension->length + 1) * 8; break;
		default: return NO_PORT;
		}
		next = extension->next;
	}
	udp = at + sizeof(*ip) + extensions;
	barrier_var(udp);
	if (next != IPPROTO_UDP || (void *)(udp + 1) > end)
		return NO_PORT;
	if (bpf_ntohs(ip->payload_len) < extensions + sizeof(*udp))
		return NO_PORT;
	return bpf_ntohs(udp->dest);
}

/*
 * The headers of nearly all packets, with fields joined that are compared together. On processors that
 * cannot read four bytes from any address the kernel would refuse this; none is used for media.
 */
struct plain4 {
	__u8 addresses[12];
	__be32 what; /* type of Ethernet; version and length of the header; type of service */
	__be16 length;
	__be16 id;
	__be32 how; /* flags and offset of the fragment; time to live; protocol */
	__u8 rest[12];
	__be16 port;
};

#define PLAIN4_WHAT 0x08004500
#define PLAIN4_WHAT_MASK 0xffffff00
#define PLAIN4_HOW IPPROTO_UDP
#define PLAIN4_HOW_MASK (IP4_FRAGMENT << 16 | 0xff)
#define SHORTEST4 (sizeof(struct ethernet) + sizeof(struct iphdr) + sizeof(struct udphdr))
_Static_assert(__builtin_offsetof(struct plain4, port) == SHORTEST4 - 6, "struct plain4 has a hole");

struct plain6 {
	__u8 addresses[12];
	__be32 what; /* type of Ethernet; version; traffic class; flow */
	__u8 flow[2];
	__be16 length;
	__u8 next;
	__u8 rest[35];
	__be16 port;
};

#define PLAIN6_WHAT 0x86dd6000
#define PLAIN6_WHAT_MASK 0xfffff000
#define SHORTEST6 (sizeof(struct ethernet) + sizeof(struct ipv6hdr) + sizeof(struct udphdr))
_Static_assert(__builtin_offsetof(struct plain6, port) == SHORTEST6 - 6, "struct plain6 has a hole");

/* The UDP destination port of a packet, or NO_PORT. */
static __always_inline int udp_port(const struct xdp_md *context)
{
	void *at = (void *)(long)context->data;
	void *end = (void *)(long)context->data_end;
	struct ethernet *ethernet = at;
	struct plain4 *plain4 = at;
	struct plain6 *plain6 = at;
	__be16 type;

	if (at + SHORTEST4 > end)
		return NO_PORT;
	if ((plain4->what & bpf_htonl(PLAIN4_WHAT_MASK)) == bpf_htonl(PLAIN4_WHAT)) {
		if ((plain4->how & bpf_htonl(PLAIN4_HOW_MASK)) != bpf_htonl(PLAIN4_HOW))
			return NO_PORT;
		if (bpf_ntohs(plain4->length) < sizeof(struct iphdr) + sizeof(struct udphdr))
			return NO_PORT;
		return bpf_ntohs(plain4->port);
	}
	if ((plain6->what & bpf_htonl(PLAIN6_WHAT_MASK)) == bpf_htonl(PLAIN6_WHAT) && at + SHORTEST6 <= end &&
	    plain6->next == IPPROTO_UDP) {
		if (bpf_ntohs(plain6->length) < sizeof(struct udphdr))
			return NO_PORT;
		return bpf_ntohs(plain6->port);
	}

	at = ethernet + 1;
	type = ethernet->type;
	for (int i = 0; i < MAX_TAGS; i++) {
		struct vlan_tag *tag = at;

		if (type != bpf_htons(ETH_P_8021Q) && type != bpf_htons(ETH_P_8021AD))
			break;
		at = tag + 1;
		if (at > end)
			return NO_PORT;
		type = tag->type;
	}
	if (type == bpf_htons(ETH_P_IPV6))
		return ip6_udp_port(at, end);
	if (type == bpf_htons(ETH_P_IP))
		return ip4_udp_port(at, end);
	return NO_PORT;
}

/* Whether the packet is for AF_XDP, which is counted in `mine`, this CPU's counters. */
static __always_inline int is_hit(const struct xdp_md *context, struct counters *mine)
{
	int port = udp_port(context);
	__u32 index = port;

	/*
	 * The compiler knows that a port has 16 bits. Some kernels (6.12) do not know it of what a byte
	 * swap left.
	 */
	barrier_var(index);
	if (port == NO_PORT || !udp_ports[index & 0xffff]) {
		mine->passes++;
		return 0;
	}
	mine->hits++;
	return 1;
}

static __always_inline struct counters *this_cpu(void)
{
	return &counters[bpf_get_smp_processor_id() & (MAX_CPUS - 1)];
}

#endif
