/* SPDX-License-Identifier: GPL-2.0-only */
/* Calls a kernel function that no kernel has. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "GPL";

extern int bpf_rauta_does_not_exist(struct xdp_md *ctx) __ksym;

SEC("xdp")
int calls_it(struct xdp_md *ctx)
{
	return bpf_rauta_does_not_exist(ctx);
}
