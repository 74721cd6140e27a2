/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * ICMP errors at the router. Of two kinds somebody has to hear, and neither is this host:
 *
 *  - "fragmentation needed" about what a backend sent in a VIP's name. The network sends it to the VIP, so
 * it comes here; it goes to the flow's backend, encapsulated as the client's packets are, and its agent
 * translates it. The backend's kernel believes it only if the number in it is one of the flow's.
 *  - "fragmentation needed" about what was encapsulated here, on the way to a backend. Only the client can
 * send less: it gets one about its own packet, which is in there, for a link that is smaller by the outer
 * header. Its kernel, too, looks at the number.
 *
 * What else is said about such packets is dropped: TCP needs none of it, and it may be forged.
 */
#pragma once

#include "encap.h"
#include "flow.h"
#include "too_big.h"

/* The entry of the flow of segment->tuple; 0: there is none, or no backend has it. */
static __always_inline int find_backends_flow(struct segment *segment, struct entry *entry)
{
	segment->hash = flow_hash(&segment->tuple);
	find_flow(entry, segment);
	return entry->kept && entry->flow.backend != NO_BACKEND;
}

static __always_inline void look_up_vip(struct segment *segment, __be32 address, __be16 port)
{
	struct vip_key key = { .address = address, .port = port };

	segment->vip = port ? bpf_map_lookup_elem(&vips, &key) : NULL;
}

/* To a VIP, about a packet from it. What that address says on ports that are no VIP's is the kernel's. */
static __always_inline enum verdict on_error_to_vip(struct xdp_md *ctx, struct segment *segment,
						    const struct iphdr *ip, const struct icmp_error *icmp,
						    const void *end)
{
	const struct excerpt *excerpt = (const void *)(icmp + 1);
	struct entry entry;

	if ((const void *)(excerpt + 1) > end || !is_excerpt(excerpt) || excerpt->ip.saddr != ip->daddr)
		return DROP_ICMP;
	look_up_vip(segment, ip->daddr, excerpt->source);
	if (!segment->vip)
		return PASS_NOT_VIP;
	if (!is_fragmentation_needed(icmp) ||
	    segment->ip_length < IP_LENGTH + ICMP_LENGTH + sizeof(*excerpt) ||
	    segment->ip_length + IP_LENGTH > PATH_MTU)
		return DROP_ICMP;
	segment->tuple.client = excerpt->ip.daddr;
	segment->tuple.server = excerpt->ip.saddr;
	segment->tuple.client_port = excerpt->destination;
	segment->tuple.server_port = excerpt->source;
	if (!find_backends_flow(segment, &entry))
		return DROP_ICMP;
	return encapsulate(ctx, segment, answering_backend(&entry.flow), outer_id(entry.flow.cookie),
			   entry.flow.state == FLOW_FALLBACK ? FALLBACK_FORWARDED : FORWARDED_ICMP);
}

/* The kernel knows the way to the client, if it forwards. If not: whoever sent the error here is a router,
 * the one between here and a backend, and has a way to the clients whose answers it carries. */
static __always_inline void lead_to_client(struct xdp_md *ctx, struct segment *segment, struct ethhdr *eth)
{
	struct bpf_fib_lookup way = {
		.family = 2, /* AF_INET */
		.ifindex = ctx->ingress_ifindex,
		.ipv4_src = segment->tuple.server,
		.ipv4_dst = segment->tuple.client,
	};

	if (bpf_fib_lookup(ctx, &way, sizeof(way), 0) != BPF_FIB_LKUP_RET_SUCCESS)
		return;
	__builtin_memcpy(eth->h_dest, way.dmac, ETH_ALEN);
	__builtin_memcpy(eth->h_source, way.smac, ETH_ALEN);
	if (way.ifindex != ctx->ingress_ifindex)
		segment->leaves = way.ifindex;
}

/* Takes what the router has put in front out of the excerpt, so many bytes; `sum` is that of what stays. */
static __always_inline enum verdict tell_client(struct xdp_md *ctx, struct segment *segment, __u16 mtu,
						__u32 front, __u64 sum)
{
	int padding = segment->frame - ETH_LENGTH - segment->ip_length;
	struct ethhdr *eth = (void *)(long)ctx->data, turned;
	struct iphdr *ip;

	if ((void *)(eth + 1) > (void *)(long)ctx->data_end)
		return DROP_NO_ROOM;
	turned = turned_round(eth);
	lead_to_client(ctx, segment, &turned);
	if ((padding && bpf_xdp_adjust_tail(ctx, -padding)) || bpf_xdp_adjust_head(ctx, (int)front))
		return DROP_NO_ROOM;
	eth = (void *)(long)ctx->data;
	ip = (void *)(eth + 1);
	if ((void *)(ip + 1) + ICMP_LENGTH > (void *)(long)ctx->data_end)
		return DROP_NO_ROOM;
	*eth = turned;
	write_ip(ip, &segment->tuple, segment->ip_length - front, IPPROTO_ICMP);
	write_too_big((void *)(ip + 1), mtu - front, sum);
	return TX_TOO_BIG;
}

/*
 * To an address that the router encapsulates from, about what it encapsulated: `outer`, whose inner packet
 * must be of a flow, to that flow's backend, from its outer source. An error with a right checksum sums up
 * to nothing, so what stays sums up to what goes, negated; a wrong checksum stays wrong.
 */
static __always_inline enum verdict on_error_to_router(struct xdp_md *ctx, struct segment *segment,
						       const struct iphdr *ip,
						       const struct icmp_error *icmp,
						       const struct iphdr *outer, const void *end)
{
	__u32 front = IP_LENGTH + (is_labelled(outer, end) ? LABEL_LENGTH : 0);
	const struct excerpt *inner = (const void *)outer + front;
	const struct backend *backend;
	struct entry entry;
	__u32 index;
	__u16 mtu;
	__u64 sum;

	if ((const void *)(inner + 1) > end || !is_fragmentation_needed(icmp) || !is_excerpt(inner) ||
	    segment->ip_length < IP_LENGTH + ICMP_LENGTH + front + sizeof(*inner))
		return DROP_ICMP;
	look_up_vip(segment, inner->ip.daddr, inner->destination);
	segment->tuple.client = inner->ip.saddr;
	segment->tuple.server = inner->ip.daddr;
	segment->tuple.client_port = inner->source;
	segment->tuple.server_port = inner->destination;
	if (!segment->vip || !find_backends_flow(segment, &entry))
		return DROP_ICMP;
	index = answering_backend(&entry.flow);
	backend = bpf_map_lookup_elem(&backends, &index);
	if (!backend || outer->daddr != backend->address || outer->saddr != ip->daddr ||
	    outer->saddr != outer_source(segment))
		return DROP_ICMP;
	mtu = bpf_ntohs(icmp->mtu);
	if (mtu < MIN_MTU + front || mtu >= bpf_ntohs(outer->tot_len))
		return DROP_ICMP;
	sum = checksum_subtract(checksum_subtract(0, icmp, ICMP_LENGTH / 4), outer, IP_LENGTH / 4);
	if (front != IP_LENGTH)
		sum = checksum_subtract(sum, outer + 1, LABEL_LENGTH / 4);
	return tell_client(ctx, segment, mtu, front, sum);
}

/* A packet that is IPv4 but not TCP, and no fragment. */
static __noinline enum verdict on_other_protocol(struct xdp_md *ctx, struct segment *segment)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct iphdr *ip = data + ETH_LENGTH, *outer;
	struct vip_key key = {};
	struct icmp_error *icmp;

	if ((void *)(ip + 1) > end || ip->protocol != IPPROTO_ICMP)
		return PASS_NOT_TCP;
	icmp = (void *)ip + ip->ihl * 4;
	outer = (void *)(icmp + 1);
	if ((void *)outer > end || !is_error(icmp))
		return PASS_NOT_TCP;
	segment->frame = end - data;
	segment->ip_length = bpf_ntohs(ip->tot_len);
	segment->tos = ip->tos;
	key.address = ip->daddr;
	if (bpf_map_lookup_elem(&vips, &key))
		return ip->ihl != 5 || ETH_LENGTH + segment->ip_length > segment->frame
			       ? DROP_ICMP
			       : on_error_to_vip(ctx, segment, ip, icmp, end);
	if ((ip->daddr & encapsulation_mask) != encapsulation_prefix || (void *)(outer + 1) > end ||
	    outer->version != 4 || outer->ihl != 5 ||
	    (outer->protocol != IPPROTO_IPIP && !is_labelled(outer, end)))
		return PASS_NOT_TCP;
	return ip->ihl != 5 || ETH_LENGTH + segment->ip_length > segment->frame
		       ? DROP_ICMP
		       : on_error_to_router(ctx, segment, ip, icmp, outer, end);
}
