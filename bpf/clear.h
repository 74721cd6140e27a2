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
#include "socket.h"
#include "translate.h"

static __always_inline void write_reset(struct headers *headers, __u32 seq)
{
	struct iphdr *ip = headers->ip;
	struct tcphdr *tcp = headers->tcp;

	ip->tot_len = bpf_htons(IP_LENGTH + TCP_LENGTH);
	ip->check = 0;
	ip->check = checksum_fold(checksum_add(0, ip, IP_LENGTH / 4));
	tcp->seq = bpf_htonl(seq);
	tcp->ack_seq = 0;
	((__be16 *)tcp)[6] = bpf_htons(TCP_LENGTH / 4 << 12 | TCP_RST);
	tcp->window = 0;
	tcp->check = 0;
	tcp->urg_ptr = 0;
	tcp->check = checksum_fold(
		checksum_add(checksum_pseudo(ip->saddr, ip->daddr, TCP_LENGTH), tcp, TCP_LENGTH / 4));
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
	if (bpf_clone_redirect(skb, skb->ifindex, BPF_F_INGRESS) || !find_headers(skb, &headers))
		return AGENT_DROP_MALFORMED;
	write_reset(&headers, next);
	return AGENT_CLEARING;
}
