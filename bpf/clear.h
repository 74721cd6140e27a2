/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * An old socket on the tuple of a new connection would swallow its first request. Two kinds are cleared:
 *
 *  - TIME_WAIT, whoever left it: the connection is over, and the cookie proves that the same client, which
 * has reused its port, is alive. The kernel itself lets a fresh SYN take over a TIME_WAIT socket
 * (tcp_timewait_state_process); our SYN was answered by the router.
 *  - A live socket of the agent's own making for the same VIP: the client has forgotten that connection.
 *
 * How: the packet becomes a header-only RST whose number is exactly the one that the socket expects, and a
 * clone of it goes into this interface's ingress; then it becomes itself again and follows. The RST must
 * have no options: with the packet's timestamps PAWS would reject it. skb->mark says what goes round and
 * how often. net.ipv4.tcp_rfc1337=1 would make TIME_WAIT sockets ignore the RST: then the attempts end in
 * AGENT_DROP_ATTEMPTS.
 */
#pragma once

#include "checksum.h"
#include "socket.h"
#include "translate.h"

struct saved_headers {
	struct iphdr ip;
	struct tcphdr tcp;
};

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

/* Sends the packet round through this interface's ingress once more, marked `what`. The verdict, or
 * AGENT_DROP_ATTEMPTS after too many. */
static __always_inline enum verdict go_round(struct __sk_buff *skb, __u32 what, enum verdict verdict)
{
	__u32 attempts = (skb->mark & MARK_MAGIC_MASK) == MARK_MAGIC ? skb->mark & MARK_ATTEMPTS : 0;

	if (attempts >= MAX_ATTEMPTS)
		return AGENT_DROP_ATTEMPTS;
	skb->mark = MARK_MAGIC | what | (attempts + 1);
	return verdict;
}

static __always_inline enum verdict inject_reset(struct __sk_buff *skb, __u32 seq)
{
	struct saved_headers saved;
	struct headers headers;
	__u32 mark = skb->mark;
	long failed;

	if (!find_headers(skb, &headers))
		return AGENT_DROP_MALFORMED;
	saved.ip = *headers.ip;
	saved.tcp = *headers.tcp;
	write_reset(&headers, seq);
	skb->mark = MARK_MAGIC | MARK_RESET;
	failed = bpf_clone_redirect(skb, skb->ifindex, BPF_F_INGRESS);
	skb->mark = mark;
	if (failed || !find_headers(skb, &headers))
		return AGENT_DROP_MALFORMED;
	*headers.ip = saved.ip;
	*headers.tcp = saved.tcp;
	return AGENT_CLEARING;
}

static __always_inline enum verdict clear_socket(struct __sk_buff *skb, struct bpf_sock *sk,
						 const struct tuple *local, struct mapping *mapping)
{
	enum verdict verdict = go_round(skb, MARK_OPENS, AGENT_CLEARING);
	__u32 next;

	if (verdict != AGENT_CLEARING)
		return verdict;
	if (next_expected(sk, &next))
		return AGENT_DROP_CONFLICT;
	mapping->state = MAPPING_CLEARING;
	if (bpf_map_update_elem(&mappings, local, mapping, BPF_ANY))
		return AGENT_DROP_REFUSED;
	return inject_reset(skb, next);
}
