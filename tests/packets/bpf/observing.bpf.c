/* SPDX-License-Identifier: GPL-2.0-only */
/* The router's own functions on a number of the test's choice: the packet's first eight bytes. */
#include "observe.h"

SEC("xdp")
int bucket(struct xdp_md *ctx)
{
	__u64 ns;

	return bpf_xdp_load_bytes(ctx, 0, &ns, sizeof(ns)) ? -1 : latency_bucket(ns);
}

SEC("xdp")
int class(struct xdp_md *ctx)
{
	__u64 verdict;

	return bpf_xdp_load_bytes(ctx, 0, &verdict, sizeof(verdict)) ? -1 : class_of(verdict);
}

char _license[] SEC("license") = "GPL";
