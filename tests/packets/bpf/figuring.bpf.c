/* SPDX-License-Identifier: GPL-2.0-only */
/* The agent's own bucket of a time of the test's choice, ns: the packet's first eight bytes. */
#include "figures.h"

SEC("xdp")
int bucket(struct xdp_md *ctx)
{
	__u64 ns;

	return bpf_xdp_load_bytes(ctx, 0, &ns, sizeof(ns)) ? -1 : first_byte_bucket(ns);
}

char _license[] SEC("license") = "GPL";
