/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * An old socket on the tuple of a new connection would swallow its first request. Two kinds are cleared:
 *
 *  - TIME_WAIT, whoever left it: the connection is over, and the cookie proves that the same client, which
 * has reused its port, is alive. The kernel itself lets a fresh SYN take over a TIME_WAIT socket
 * (tcp_timewait_state_process); our SYN was answered by the router.
 *  - A live socket of the agent's own making for the same VIP: the client has forgotten that connection.
 *
 * How: a clone of the request goes into this interface's ingress, where it comes round behind; the packet
 * itself becomes a header-only RST whose number is exactly the one that the socket expects, and goes on to
 * it at once. The RST must have no options: with the request's timestamps PAWS would reject it. skb->mark
 * says what goes round and how often. net.ipv4.tcp_rfc1337=1 would make TIME_WAIT sockets ignore the RST:
 * then the attempts end in AGENT_DROP_ATTEMPTS.
 */
#pragma once

#include "checksum.h"
#include "consumed.h"
#include "socket.h"
#include "translate.h"

/* The packet becomes the reset. Written through the helper, which keeps the sum right that a device may
 * have made of the packet (CHECKSUM_COMPLETE). 0, or negative. */
static __always_inline long write_reset(struct __sk_buff *skb, const struct headers *headers, __u32 seq)
{
	struct {
		struct iphdr ip;
		struct tcphdr tcp;
	} reset = { .ip = *headers->ip };
	struct tcphdr *tcp = &reset.tcp;

	reset.ip.tot_len = bpf_htons(sizeof(reset));
	reset.ip.check = 0;
	reset.ip.check = checksum_fold(checksum_add(0, &reset.ip, IP_LENGTH / 4));
	tcp->source = headers->tcp->source;
	tcp->dest = headers->tcp->dest;
	tcp->seq = bpf_htonl(seq);
	((__be16 *)tcp)[6] = bpf_htons(TCP_LENGTH / 4 << 12 | TCP_RST);
	tcp->check = checksum_fold(checksum_add(checksum_pseudo(reset.ip.saddr, reset.ip.daddr, TCP_LENGTH),
						tcp, TCP_LENGTH / 4));
	return bpf_skb_store_bytes(skb, ETH_LENGTH, &reset, sizeof(reset), BPF_F_RECOMPUTE_CSUM);
}

/* Marks the packet to go round through this interface's ingress as `what`; 0, or -1 after too many times.
 */
static __always_inline int mark_round(struct __sk_buff *skb, __u32 what)
{
	__u32 attempts = (skb->mark & MARK_MAGIC_MASK) == MARK_MAGIC ? skb->mark & MARK_ATTEMPTS : 0;

	if (attempts >= MAX_ATTEMPTS)
		return -1;
	skb->mark = MARK_MAGIC | what | (attempts + 1);
	return 0;
}

/* The connection's own socket ends, and what its client sends to it is reset, in the VIP's name: the mapping stays. It
 * opens no more. */
static __always_inline enum verdict end_socket(struct __sk_buff *skb, struct bpf_sock *sk, const struct tuple *local,
					       struct mapping *mapping)
{
	struct headers headers;
	__u32 next;

	if (next_expected(sk, &next))
		return AGENT_DROP_CONFLICT;
	consume(local, mapping);
	if (remember(local, mapping, MAPPING_OPEN))
		return AGENT_DROP_REFUSED;
	return !find_headers(skb, &headers) || write_reset(skb, &headers, next) ? AGENT_DROP_MALFORMED : AGENT_ENDING;
}

static __always_inline enum verdict clear_socket(struct __sk_buff *skb, struct bpf_sock *sk,
						 const struct tuple *local, struct mapping *mapping)
{
	struct headers headers;
	__u32 next;

	if (next_expected(sk, &next))
		return AGENT_DROP_CONFLICT;
	if (mark_round(skb, MARK_OPENS))
		return AGENT_DROP_ATTEMPTS;
	if (remember(local, mapping, MAPPING_CLEARING))
		return AGENT_DROP_REFUSED;
	if (bpf_clone_redirect(skb, skb->ifindex, BPF_F_INGRESS) || !find_headers(skb, &headers) ||
	    write_reset(skb, &headers, next))
		return AGENT_DROP_MALFORMED;
	return AGENT_CLEARING;
}
