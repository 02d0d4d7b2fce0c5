/* SPDX-License-Identifier: (BSD-3-Clause OR GPL-2.0-only) */
/*
 * The gate in a chain of programs under libxdp's dispatcher: lets UDP packets to the ports of AF_XDP
 * clients through to the next program, libxdp's xsk_def_prog, and passes all others to the kernel.
 *
 * "Through" is XDP_DROP, as users of MTL know it: the chain goes on after that action and ends at any
 * other. So this must never be attached alone, without a dispatcher: it would drop what it should let
 * through.
 */
#include "udp.h"

/*
 * What libxdp reads; its own header has a macro for it. It would go on after XDP_PASS if not told
 * otherwise.
 */
struct {
	__uint(priority, 19);
	__uint(XDP_DROP, 1);
	__uint(XDP_PASS, 0);
} _mtl_dp_filter SEC(".xdp_run_config");

SEC("xdp")
int mtl_dp_filter(struct xdp_md *context)
{
	return is_hit(context, this_cpu()) ? XDP_DROP : XDP_PASS;
}

char _license[] SEC("license") = "Dual BSD/GPL";
