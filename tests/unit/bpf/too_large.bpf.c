/* SPDX-License-Identifier: GPL-2.0-only */
/* Asks for more memory than there is. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "GPL";

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 0x0fffffff);
	__type(key, __u32);
	__type(value, char[4096]);
} gigantic SEC(".maps");

SEC("xdp")
int looks_up(struct xdp_md *ctx)
{
	__u32 first = 0;

	return bpf_map_lookup_elem(&gigantic, &first) ? XDP_PASS : XDP_DROP;
}
