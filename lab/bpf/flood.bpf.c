// SPDX-License-Identifier: GPL-2.0-only
/*
 * Where a flood enters the fabric, and where the answers to it end. Both work on frames as they come out of
 * a cable, before the kernel makes packets of them: a switch's forwarding would cost more than the router.
 *
 * Frames of a flood are known by a MAC address that no host has.
 */
#include "kernel.h"

const volatile __u8 flood_mac[8]; /* six bytes of it */
const volatile __u32 router_port; /* index of the interface that leads to the router */

enum place { FLOOD_ENTERED = 0, FLOOD_ENDED = 1, FLOOD_PLACES = 2 };

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, FLOOD_PLACES);
	__type(key, enum place);
	__type(value, __u64);
} flooded SEC(".maps");

static __always_inline void count(enum place place)
{
	__u64 *count = bpf_map_lookup_elem(&flooded, &place);

	if (count)
		++*count;
}

static __always_inline int is_flood_mac(const __u8 *mac)
{
	return *(const __u32 *)mac == *(const volatile __u32 *)flood_mac &&
	       *(const __u16 *)(mac + 4) == *(const volatile __u16 *)(flood_mac + 4);
}

/* On the attacker's port: straight to the router's. */
SEC("xdp")
int flood_enters(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = data;

	if ((void *)(eth + 1) > end || !is_flood_mac(eth->h_source))
		return XDP_PASS;
	count(FLOOD_ENTERED);
	return bpf_redirect(router_port, 0);
}

/* On the router's port: what it says to the flood gets no further. */
SEC("xdp")
int flood_ends(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = data;

	if ((void *)(eth + 1) > end || !is_flood_mac(eth->h_dest))
		return XDP_PASS;
	count(FLOOD_ENDED);
	return XDP_DROP;
}

char _license[] SEC("license") = "GPL";
