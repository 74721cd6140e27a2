/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * From the frame to a TCP segment for one of our VIPs, or to the verdict on why not.
 *
 * Before the destination is known to be a VIP, anything odd is the kernel's business: passed. From then on
 * nothing is passed: the kernel owns no socket on the VIP, and would answer with a reset or forward in a
 * loop.
 */
#pragma once

#include <stddef.h>

#include "kernel.h"
#include "verdict.h"

struct { /* which addresses and ports are ours, and what happens to requests without a route */
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 2 * MAX_VIPS);
	__type(key, struct vip_key);
	__type(value, struct vip);
} vips SEC(".maps");

struct segment { /* of a client, to a VIP; numbers in host byte order. A cache line: the stack has little room */
	struct tuple tuple;
	__u32 leaves; /* once encapsulated: index of the interface to leave through, 0: as it came */
	const struct vip *vip; /* NULL: none yet */
	__u64 hash;   /* flow_hash of the tuple */
	__u32 frame;  /* length of the whole frame, bytes; more than the packet if the link pads */
	__u32 route;  /* of the request in it, as in struct path; 0: none yet */
	__u32 seq;
	__u32 ack;
	__u16 ip_length;     /* IPv4 total length, bytes */
	__u16 header_length; /* TCP, bytes */
	__u16 payload;	     /* offset in the frame, bytes */
	__u16 length;	     /* of the payload, bytes */
	__u16 backend;	     /* index of the one that it was to go to, or NO_BACKEND */
	__u8 flags;
	__u8 tos;
};

static __always_inline enum verdict check_fragment(const struct iphdr *ip)
{
	struct vip_key key = { .address = ip->daddr };

	return bpf_map_lookup_elem(&vips, &key) ? DROP_FRAGMENT : PASS_NOT_VIP;
}

static __always_inline enum verdict check_flags(__u8 flags)
{
	if (flags & TCP_URG)
		return DROP_FLAGS;
	if (flags & TCP_SYN)
		return flags & (TCP_ACK | TCP_RST | TCP_FIN) ? DROP_FLAGS : UNDECIDED;
	return flags & (TCP_ACK | TCP_RST) ? UNDECIDED : DROP_FLAGS;
}

/* Fills in `segment` once lengths and flags are consistent. `ip` has no options and is inside the frame. */
static __always_inline enum verdict parse_tcp(struct segment *segment, const struct iphdr *ip,
					      const void *end)
{
	const struct tcphdr *tcp = (const void *)(ip + 1);
	__u32 length = bpf_ntohs(ip->tot_len), header;

	if ((const void *)(tcp + 1) > end)
		return DROP_MALFORMED;
	header = tcp_header_length(tcp);
	if (ETH_LENGTH + length > segment->frame || header < TCP_LENGTH || IP_LENGTH + header > length)
		return DROP_MALFORMED;

	segment->seq = bpf_ntohl(tcp->seq);
	segment->ack = bpf_ntohl(tcp->ack_seq);
	segment->ip_length = length;
	segment->header_length = header;
	segment->payload = ETH_LENGTH + IP_LENGTH + header;
	segment->length = length - IP_LENGTH - header;
	segment->flags = tcp_flags(tcp);
	segment->tos = ip->tos;
	return check_flags(segment->flags);
}

static __always_inline enum verdict parse_packet(struct xdp_md *ctx, struct segment *segment)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = data;
	struct iphdr *ip = (void *)(eth + 1);
	struct tuple *tuple = &segment->tuple;
	struct vip_key key = {};
	__be16 *ports;

	segment->vip = NULL;
	segment->route = 0;
	segment->backend = NO_BACKEND;
	segment->seq = 0;
	segment->length = 0;
	segment->flags = 0;
	if ((void *)(eth + 1) > end || eth->h_proto != bpf_htons(ETH_P_IP))
		return PASS_NOT_IPV4;
	if ((void *)(ip + 1) > end)
		return PASS_TRUNCATED;
	if (ip->version != 4 || ip->ihl < 5)
		return PASS_NOT_IPV4;
	*tuple = (struct tuple){ .client = ip->saddr, .server = ip->daddr };
	if (unlikely(ip->frag_off & IP_FRAGMENT))
		return check_fragment(ip);
	if (ip->protocol != IPPROTO_TCP)
		return PASS_NOT_TCP;
	ports = (void *)ip + ip->ihl * 4;
	if ((void *)(ports + 2) > end)
		return PASS_TRUNCATED;
	key.address = ip->daddr;
	key.port = ports[1];
	tuple->client_port = ports[0];
	tuple->server_port = ports[1];
	segment->frame = end - data;
	segment->vip = bpf_map_lookup_elem(&vips, &key);
	if (!segment->vip || !key.port)
		return PASS_NOT_VIP;
	if (ip->ihl != 5)
		return DROP_IP_OPTIONS;
	return parse_tcp(segment, ip, end);
}
