// SPDX-License-Identifier: GPL-2.0-only
/*
 * A cable that loses and doubles frames, as tc programs on the switch's end of it: at ingress what comes
 * from the host, at egress what goes to it. So the sender learns of a loss as on a real network: not at
 * all.
 */
#include "kernel.h"

#define LINK_MARK 0x4c4b /* of a frame's double, which is not judged again */

/* Probabilities, in 2^-32. */
const volatile __u32 loss;
const volatile __u32 duplicate;

enum link_event { LINK_SEEN = 0, LINK_LOST = 1, LINK_DUPLICATED = 2, LINK_EVENTS = 3 };

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, LINK_EVENTS);
	__type(key, __u32);
	__type(value, __u64);
} events SEC(".maps");

static __always_inline void note(__u32 event)
{
	__u64 *count = bpf_map_lookup_elem(&events, &event);

	if (count)
		++*count;
}

static __always_inline int carry(struct __sk_buff *skb, __u64 flags)
{
	if (skb->mark == LINK_MARK) {
		skb->mark = 0;
		return TC_ACT_OK;
	}
	note(LINK_SEEN);
	if (loss && bpf_get_prandom_u32() < loss) {
		note(LINK_LOST);
		return TC_ACT_SHOT;
	}
	if (duplicate && bpf_get_prandom_u32() < duplicate) {
		skb->mark = LINK_MARK;
		if (!bpf_clone_redirect(skb, skb->ifindex, flags))
			note(LINK_DUPLICATED);
		skb->mark = 0;
	}
	return TC_ACT_OK;
}

SEC("tc")
int link_from_host(struct __sk_buff *skb)
{
	return carry(skb, BPF_F_INGRESS);
}

SEC("tc")
int link_to_host(struct __sk_buff *skb)
{
	return carry(skb, 0);
}

/* Which of the TCP segments with data that pass from now on is lost, counted from 1; 0: none. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} chosen SEC(".maps");

static __always_inline int carries_data(struct __sk_buff *skb)
{
	struct {
		struct iphdr ip;
		struct tcphdr tcp;
	} headers;

	if (skb->protocol != bpf_htons(ETH_P_IP) ||
	    bpf_skb_load_bytes(skb, ETH_LENGTH, &headers, sizeof(headers)))
		return 0;
	return headers.ip.protocol == IPPROTO_TCP &&
	       bpf_ntohs(headers.ip.tot_len) > IP_LENGTH + tcp_header_length(&headers.tcp);
}

/* For tests: the very segment is lost whose loss they are about. */
SEC("tc")
int link_lose_segment(struct __sk_buff *skb)
{
	__u32 zero = 0, *count = bpf_map_lookup_elem(&chosen, &zero);

	if (!count || !*count || !carries_data(skb))
		return TC_ACT_UNSPEC;
	return --*count ? TC_ACT_UNSPEC : TC_ACT_SHOT;
}

char _license[] SEC("license") = "GPL";
