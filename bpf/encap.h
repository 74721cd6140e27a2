/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * IPIP (RFC 2003) to a backend. The outer source differs from flow to flow, so that the receiver's RSS
 * spreads them; it lies in a prefix that routes back to the router, or ICMP errors about the outer packet
 * would be lost.
 */
#pragma once

#include "balance.h"
#include "checksum.h"
#include "hash.h"
#include "label.h"
#include "packet.h"
#include "too_big.h"

const volatile __be32 encapsulation_prefix;
const volatile __be32 encapsulation_mask;

static __always_inline __be32 outer_source(const struct segment *segment)
{
	return encapsulation_prefix | ((__u32)segment->hash & ~encapsulation_mask);
}

/* `between`: bytes of what stands between the outer header and the packet. */
static __always_inline void write_outer(struct iphdr *outer, const struct segment *segment,
					__be32 destination, __u16 id, __u32 between)
{
	outer->version = 4;
	outer->ihl = 5;
	outer->tos = segment->tos;
	outer->tot_len = bpf_htons(segment->ip_length + IP_LENGTH + between);
	outer->id = bpf_htons(id);
	outer->frag_off = IP_DF;
	outer->ttl = DEFAULT_TTL;
	outer->protocol = between ? SHIM_PROTOCOL : IPPROTO_IPIP;
	outer->check = 0;
	outer->saddr = outer_source(segment);
	outer->daddr = destination;
	outer->check = checksum_fold(checksum_add(0, outer, IP_LENGTH / 4));
}

/* The outer Ethernet header, and through which interface. Backends behind the interface that the packet
 * came in on are sent to by XDP_TX, which spares looking the interface up. */
static __always_inline void write_ethernet(struct xdp_md *ctx, struct ethhdr *eth,
					   const struct ethhdr *inner, struct segment *segment,
					   const struct backend *backend)
{
	if (backend->interface == BACKEND_LOCAL) {
		*eth = *inner;
		return;
	}
	if (backend->interface && backend->interface != ctx->ingress_ifindex) {
		segment->leaves = backend->interface;
		__builtin_memcpy(eth->h_source, backend->source, ETH_ALEN);
	} else {
		__builtin_memcpy(eth->h_source, inner->h_dest, ETH_ALEN);
	}
	__builtin_memcpy(eth->h_dest, backend->next_hop, ETH_ALEN);
	eth->h_proto = bpf_htons(ETH_P_IP);
}

/* Makes the packet ready to leave for the backend: returns `verdict`, or what became of it instead. */
static __noinline enum verdict encapsulate(struct xdp_md *ctx, struct segment *segment, __u32 index,
					   __u16 id, enum verdict verdict)
{
	const struct backend *backend = bpf_map_lookup_elem(&backends, &index);
	int padding = segment->frame - ETH_LENGTH - segment->ip_length;
	struct ethhdr *eth, *inner;
	void *data, *end;
	__u32 label, tag;

	segment->backend = index;
	if (!backend || !backend->address)
		return DROP_NO_BACKEND;
	if (segment->ip_length + IP_LENGTH > PATH_MTU && backend->interface != BACKEND_LOCAL)
		return answer_too_big(ctx, segment);
	if (padding && bpf_xdp_adjust_tail(ctx, -padding))
		return DROP_NO_ROOM;
	tag = label_tag(segment);
	label = tag ? LABEL_LENGTH : 0;
	if (bpf_xdp_adjust_head(ctx, -(int)(IP_LENGTH + label)))
		return DROP_NO_ROOM;

	data = (void *)(long)ctx->data;
	end = (void *)(long)ctx->data_end;
	eth = data;
	inner = data + IP_LENGTH + label;
	if ((void *)(inner + 1) > end)
		return DROP_NO_ROOM;
	write_ethernet(ctx, eth, inner, segment, backend);
	write_outer((void *)(eth + 1), segment, backend->address, id, label);
	if (label)
		write_label((void *)(eth + 1) + IP_LENGTH, tag);
	return verdict;
}
