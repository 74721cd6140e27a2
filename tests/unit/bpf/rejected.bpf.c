/* SPDX-License-Identifier: GPL-2.0-only */
/* Reads a packet without looking where it ends: the verifier has to say no. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "GPL";

SEC("xdp")
int reads_too_far(struct xdp_md *ctx)
{
	return *(__u8 *)(long)ctx->data;
}
