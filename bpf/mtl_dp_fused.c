/* SPDX-License-Identifier: (BSD-3-Clause OR GPL-2.0-only) */
/*
 * Gate and redirection in one: UDP packets to the ports of AF_XDP clients go to the socket on their queue,
 * all others to the kernel. Needs no dispatcher.
 */
#include "udp.h"

#define MAX_QUEUES 1024

/* The name is what AF_XDP libraries look for. */
struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__uint(max_entries, MAX_QUEUES);
	__type(key, __u32);
	__type(value, __u32);
} xsks_map SEC(".maps");

/* For xdp-loader where there is a dispatcher: the end of any chain, in the place of xsk_def_prog. */
struct {
	__uint(priority, 20);
	__uint(XDP_PASS, 1);
} _mtl_dp_fused SEC(".xdp_run_config");

SEC("xdp")
int mtl_dp_fused(struct xdp_md *context)
{
	struct counters *mine = this_cpu();
	int action;

	if (!is_hit(context, mine))
		return XDP_PASS;
	/* XDP_PASS also if the queue has no socket. */
	action = bpf_redirect_map(&xsks_map, context->rx_queue_index, XDP_PASS);
	if (action != XDP_REDIRECT)
		mine->unclaimed++;
	return action;
}

char _license[] SEC("license") = "Dual BSD/GPL";
