/* SPDX-License-Identifier: GPL-2.0-only */
/* Puts the first four bytes of each packet into a ring buffer. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
} words SEC(".maps");

SEC("xdp")
int put(struct xdp_md *ctx)
{
	__u32 word;

	if (bpf_xdp_load_bytes(ctx, 0, &word, sizeof(word)))
		return XDP_ABORTED;
	return bpf_ringbuf_output(&words, &word, sizeof(word), 0) ? XDP_DROP : XDP_PASS;
}

char _license[] SEC("license") = "GPL";
