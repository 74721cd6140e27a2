/* SPDX-License-Identifier: GPL-2.0-only */
/* What RAUTA must not do: it takes memory for every connection. The test of memory has to see it. */
#include "kernel.h"

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1 << 20);
	__type(key, __u64);
	__type(value, struct flow);
} connections SEC(".maps");

SEC("xdp")
int leak(struct xdp_md *ctx)
{
	__u32 zero_entry[sizeof(struct flow) / 4] = {};
	__u64 key = 0;

	bpf_xdp_load_bytes(ctx, ETH_LENGTH + 12, &key, 4);
	bpf_xdp_load_bytes(ctx, ETH_LENGTH + IP_LENGTH, (void *)&key + 4, 2);
	bpf_map_update_elem(&connections, &key, zero_entry, BPF_ANY);
	return XDP_DROP;
}

char _license[] SEC("license") = "GPL";
