/* SPDX-License-Identifier: GPL-2.0-only */
/* Egress: the server's own address and port become VIP:port again, on packets of connections that came
 * through a router. */
#pragma once

#include "consumed.h"
#include "follow.h"
#include "socket.h"
#include "trace_answer.h"
#include "translate.h"

/* Is it a full socket on the tuple? Resets and TIME_WAIT's acknowledgements leave through a socket of the
 * kernel's. One that ends with a reset has given its port back before that leaves. */
static __always_inline int owns_tuple(const struct bpf_sock *sk, const struct tuple *local)
{
	return sk->dst_ip4 == local->client && sk->dst_port == local->client_port &&
	       (sk->src_port == bpf_ntohs(local->server_port) || !sk->src_port);
}

/*
 * The mapping's connection has shown that its socket exists: it is consumed. From its second segment on the
 * socket carries the mapping itself, and no eviction can cut a response; a connection that ends after one
 * answer is spared that. An old socket's segments, which is being cleared, say nothing of the new
 * connection.
 */
static __always_inline struct mapping *note_segment(struct bpf_sock *sk, const struct tuple *local,
						    struct mapping *mapping, int ends)
{
	struct mapping shown = *mapping, *kept; /* a copy: ingress may be writing the next connection's */

	barrier();
	if (!has_numbers(sk, &shown))
		return NULL;
	if (shown.state == MAPPING_MOVED)
		return mapping;
	if (shown.state != MAPPING_OPEN) {
		consume(local, &shown);
		mapping->state = MAPPING_OPEN;
		return mapping;
	}
	if (ends)
		return mapping;
	/* Unless ingress has made it meanwhile, with one more request. */
	kept = bpf_sk_storage_get(&connections, sk, &shown, BPF_SK_STORAGE_GET_F_CREATE);
	return kept ? kept : mapping;
}

/*
 * The packet is the socket's last of its kind. What follows, an acknowledgement in TIME_WAIT or a reset,
 * has no full socket to carry the mapping; the map may have forgotten it meanwhile, and the connection may
 * have lasted longer than what was consumed is remembered. If the map knows another, that is newer.
 */
static __always_inline void note_end(const struct tuple *local, const struct mapping *mapping)
{
	consume(local, mapping);
	bpf_map_update_elem(&mappings, local, mapping, BPF_NOEXIST);
}

/* `place`: offset of the payload in the packet, and `seq`, the number of its first byte. */
static __always_inline const struct mapping *find_mapping(struct __sk_buff *skb, const struct tuple *local,
							  int ends, __u32 seq, __u32 offset)
{
	struct bpf_sock *sk = skb->sk;
	struct mapping *mapping, *own;

	if (sk)
		sk = bpf_sk_fullsock(sk);
	if (sk && owns_tuple(sk, local)) {
		mapping = bpf_sk_storage_get(&connections, sk, NULL, 0);
		if (mapping) {
			follow_answer(skb, mapping, seq, offset);
			if (ends && mapping->state != MAPPING_MOVED)
				note_end(local, mapping);
			return mapping;
		}
		mapping = bpf_map_lookup_elem(&mappings, local);
		if (!mapping)
			return NULL;
		own = note_segment(sk, local, mapping, ends);
		if (own)
			follow_answer(skb, own, seq, offset);
		return mapping;
	}
	return bpf_map_lookup_elem(&mappings, local);
}

static __always_inline enum verdict respond(struct __sk_buff *skb)
{
	const struct mapping *mapping;
	struct headers headers;
	struct tuple local;
	__u32 seq, payload;

	if (skb->protocol != bpf_htons(ETH_P_IP) || !find_headers(skb, &headers))
		return AGENT_EGRESS_PASS;
	/* The router answered the SYN of every connection that is translated: a SYN-ACK is of a direct one.
	 */
	if (tcp_flags(headers.tcp) & TCP_SYN)
		return AGENT_EGRESS_PASS;
	local.client = headers.ip->daddr;
	local.server = headers.ip->saddr;
	local.client_port = headers.tcp->dest;
	local.server_port = headers.tcp->source;
	seq = bpf_ntohl(headers.tcp->seq);
	payload = ETH_LENGTH + IP_LENGTH + tcp_header_length(headers.tcp);
	mapping = find_mapping(skb, &local, tcp_flags(headers.tcp) & (TCP_FIN | TCP_RST), seq, payload);
	if (!mapping)
		return AGENT_EGRESS_PASS;
	if (mapping->state == MAPPING_MOVED)
		return AGENT_EGRESS_MUTED;
	offer_answer(skb, &local, seq, payload);
	if (rewrite(skb, TRANSLATE_SOURCE, local.server, local.server_port, mapping->vip,
		    mapping->vip_port))
		return AGENT_EGRESS_DROP;
	return AGENT_EGRESS_TRANSLATED;
}
