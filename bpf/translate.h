/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * VIP:port on the wire, the server's own address and port in the kernel. Checksums are corrected, never
 * computed anew, through the helpers that know what the device has done or will do about them.
 */
#pragma once

#include <stddef.h>

#include "checksum.h"
#include "consumed.h"
#include "figures.h"
#include "kernel.h"
#include "verdict.h"

struct { /* VIP:port -> the server on this host */
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_VIPS);
	__type(key, struct vip_key);
	__type(value, struct service);
} services SEC(".maps");

struct { /* by the local tuple, while no full socket carries it: opening, TIME_WAIT, resets */
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 131072);
	__type(key, struct tuple);
	__type(value, struct mapping);
} mappings SEC(".maps");

struct { /* the same, with the socket: as long as it lives, and never evicted */
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct mapping);
} connections SEC(".maps");

const volatile __be32
	routers_prefix; /* the encapsulation sources of the routers: a filter, not authentication */
const volatile __be32 routers_mask;

#define TCP_OFFSET(field) (ETH_LENGTH + IP_LENGTH + offsetof(struct tcphdr, field))

struct headers {
	struct ethhdr *eth;
	struct iphdr *ip;
	struct tcphdr *tcp;
};

/* The headers of an IPv4 TCP packet without IP options, made linear if need be; 0 if there are none. */
static __always_inline int find_headers(struct __sk_buff *skb, struct headers *headers)
{
	__u32 wanted = ETH_LENGTH + IP_LENGTH + TCP_LENGTH;
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;

	if (data + wanted > end) {
		if (bpf_skb_pull_data(skb, wanted))
			return 0;
		data = (void *)(long)skb->data;
		end = (void *)(long)skb->data_end;
		if (data + wanted > end)
			return 0;
	}
	headers->eth = data;
	headers->ip = data + ETH_LENGTH;
	headers->tcp = data + ETH_LENGTH + IP_LENGTH;
	return headers->eth->h_proto == bpf_htons(ETH_P_IP) && headers->ip->version == 4 &&
	       headers->ip->ihl == 5 && headers->ip->protocol == IPPROTO_TCP &&
	       !(headers->ip->frag_off & IP_FRAGMENT);
}

/* Both initial numbers: the 24 bits of a cookie repeat, and can be searched by whoever has the tuple. */
static __always_inline int same_connection(const struct mapping *a, const struct mapping *b)
{
	return a->isn == b->isn && a->cookie == b->cookie;
}

/*
 * The tuple's mapping, made or changed. 0, or negative if there is no room. A connection that makes way for
 * another without having opened has been given up by its client, who has used its port again: its first
 * request must not come late, and end the newer one. What comes again of the same one is no further request.
 */
static __always_inline long remember(const struct tuple *local, struct mapping *mapping, __u16 state)
{
	struct mapping *known = bpf_map_lookup_elem(&mappings, local);

	mapping->state = state;
	if (known && same_connection(known, mapping)) {
		mapping->asked_at = known->asked_at;
		mapping->route = known->route;
	} else {
		note_asked(mapping);
	}
	if (!known)
		return bpf_map_update_elem(&mappings, local, mapping, BPF_ANY);
	if (known->state != MAPPING_OPEN && !same_connection(known, mapping))
		consume(local, known);
	if (known != mapping)
		*known = *mapping;
	return 0;
}

enum translated { TRANSLATE_SOURCE, TRANSLATE_DESTINATION };

/*
 * Replaces one end of the packet, which is `old_address`:`old_port` so far. 0, or negative: the packet is
 * then half-written and must be dropped. The helpers know what the device did or will do about the TCP
 * checksum; the rest is written directly.
 */
static __always_inline long rewrite(struct __sk_buff *skb, enum translated end, __be32 old_address,
				    __be16 old_port, __be32 address, __be16 port)
{
	struct headers headers;

	if (bpf_l4_csum_replace(skb, TCP_OFFSET(check), old_address, address,
				BPF_F_PSEUDO_HDR | sizeof(address)))
		return -1;
	if (bpf_l4_csum_replace(skb, TCP_OFFSET(check), old_port, port, sizeof(port)))
		return -1;
	if (!find_headers(skb, &headers))
		return -1;
	headers.ip->check = checksum_replace(headers.ip->check, old_address, address);
	if (end == TRANSLATE_SOURCE) {
		headers.ip->saddr = address;
		headers.tcp->source = port;
	} else {
		headers.ip->daddr = address;
		headers.tcp->dest = port;
	}
	return 0;
}
