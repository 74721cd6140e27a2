/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A router asks whose a connection is (docs/recovery.md), and is answered on the spot: the datagram is turned round
 * with as many bytes as it had. So a backend needs no daemon, and nothing that is forged gets more than a drop.
 * A ping is answered likewise, with the time: that an agent is there, has these keys, and how far its clock is off.
 *
 * Whose it is has three answers, one of them silence. A connection is ours if a socket of the agent's making, for this VIP, holds its
 * tuple and could have been sent the segment that was lost: another connection on the same tuple has other numbers. As
 * long as the tuple is being opened or cleared nobody can tell, and "not mine" could have a healthy client reset.
 */
#pragma once

#include <linux/udp.h>

#include "seal.h"
#include "socket.h"
#include "translate.h"

const volatile __be32 ask_address; /* where the agent is asked: the backend's own */
const volatile __be16 ask_port;	   /* 0: it is not */

#define UDP_LENGTH ((__u32)sizeof(struct udphdr))
#define ASK_OFFSET (ETH_LENGTH + IP_LENGTH + UDP_LENGTH)
#define ASK_PACKET (IP_LENGTH + UDP_LENGTH + (__u32)sizeof(struct ask))

static __always_inline int is_ask(const struct iphdr *ip, const void *end)
{
	const struct udphdr *udp = (const void *)(ip + 1);

	return ask_port && ip->protocol == IPPROTO_UDP && ip->ihl == 5 && !(ip->frag_off & IP_FRAGMENT) &&
	       (const void *)(udp + 1) <= end && udp->dest == ask_port && ip->daddr == ask_address;
}

/* The question, and between whom it is asked; 0, or -1 if it is none. */
static __always_inline int read_ask(struct __sk_buff *skb, struct ask *ask, struct tuple *between)
{
	struct iphdr *ip = (void *)(long)skb->data + ETH_LENGTH;
	struct udphdr *udp = (void *)(ip + 1);

	if ((void *)(udp + 1) > (void *)(long)skb->data_end || ip->tot_len != bpf_htons(ASK_PACKET) ||
	    udp->len != bpf_htons(ASK_PACKET - IP_LENGTH))
		return -1;
	between->client = ip->saddr;
	between->server = ip->daddr;
	between->client_port = udp->source;
	between->server_port = udp->dest;
	if (bpf_skb_load_bytes(skb, ASK_OFFSET, ask, sizeof(*ask)))
		return -1;
	return is_sealed(ask, between) && (ask->kind == ASK_WHOSE || ask->kind == ASK_PING) ? 0 : -1;
}

/* Whether the lost segment's numbers are such as this socket's client may send. */
static __always_inline int fits(const struct ask *ask, const struct stream *stream)
{
	return ask->seq - stream->received + ASK_SEQ_REACH <= 2 * ASK_SEQ_REACH &&
	       stream->sent - ask->ack <= ASK_ACK_REACH;
}

static __always_inline int is_live(const struct bpf_sock *sk)
{
	return sk && sk->state != BPF_TCP_LISTEN;
}

/* A first request is with the listener, or an old socket on its way out. `newest` is what the map says. */
static __always_inline int is_unsettled(const struct bpf_sock *sk, const struct mapping *newest)
{
	if (newest && newest->state == MAPPING_OPENING)
		return !is_live(sk) || sk->state == BPF_TCP_TIME_WAIT;
	return newest && newest->state == MAPPING_CLEARING;
}

/* What a socket that is not only a listener says itself about its connection; NULL: nothing. */
static __always_inline const struct mapping *mapping_of(struct bpf_sock *sk)
{
	struct tcp_sock *tcp = is_live(sk) ? (void *)bpf_skc_to_tcp_sock(sk) : NULL;

	return tcp ? bpf_sk_storage_get(&connections, tcp, NULL, 0) : NULL;
}

/* Makes the question the answer, but for its tag; 0, or -1: there is none just now. `sk` may be NULL. */
static __always_inline int answer_about(struct bpf_sock *sk, const struct tuple *local, struct ask *ask)
{
	const struct mapping *newest = bpf_map_lookup_elem(&mappings, local), *mapping;
	struct stream stream;

	if (is_unsettled(sk, newest))
		return -1;
	ask->kind = ASK_NOT_MINE;
	if (!is_live(sk))
		return 0;
	mapping = mapping_of(sk);
	if (!mapping)
		mapping = newest;
	if (!mapping || mapping->vip != ask->tuple.server || mapping->vip_port != ask->tuple.server_port)
		return 0;
	if (read_stream(sk, &stream) || !fits(ask, &stream))
		return 0;
	ask->kind = ASK_MINE;
	ask->isn = mapping->isn;
	ask->cookie = mapping->cookie;
	ask->next = stream.received;
	return 0;
}

static __always_inline void tell_time(struct ask *ask)
{
	__u64 now = bpf_ktime_get_tai_ns();

	ask->kind = ASK_PONG;
	ask->isn = now / 1000000000U;
	ask->cookie = now % 1000000000U;
}

static __always_inline int find_answer(struct __sk_buff *skb, struct ask *ask)
{
	struct vip_key key = { .address = ask->tuple.server, .port = ask->tuple.server_port };
	const struct service *service = bpf_map_lookup_elem(&services, &key);
	struct tuple local = ask->tuple;
	struct bpf_sock *sk;
	int failed;

	if (ask->kind == ASK_PING) {
		tell_time(ask);
		return 0;
	}
	if (!service) {
		ask->kind = ASK_NOT_MINE;
		return 0;
	}
	local.server = service->address;
	local.server_port = service->port;
	sk = find_socket(skb, &local);
	failed = answer_about(sk, &local, ask);
	if (sk)
		bpf_sk_release(sk);
	return failed;
}

/* Back where it came from. The sums of addresses and ports stay what they are, only the ends change places. */
static __always_inline int turn_round(struct __sk_buff *skb, const struct tuple *between)
{
	struct ethhdr *eth = (void *)(long)skb->data;
	struct iphdr *ip = (void *)(eth + 1);
	struct udphdr *udp = (void *)(ip + 1);
	__u8 mac[ETH_ALEN];
	__u32 hops;

	if ((void *)(udp + 1) > (void *)(long)skb->data_end)
		return -1;
	__builtin_memcpy(mac, eth->h_dest, ETH_ALEN);
	__builtin_memcpy(eth->h_dest, eth->h_source, ETH_ALEN);
	__builtin_memcpy(eth->h_source, mac, ETH_ALEN);
	hops = bpf_htons(ip->ttl << 8);
	ip->check = checksum_replace(ip->check, hops, bpf_htons(DEFAULT_TTL << 8));
	ip->ttl = DEFAULT_TTL;
	ip->saddr = between->server;
	ip->daddr = between->client;
	udp->source = between->server_port;
	udp->dest = between->client_port;
	return 0;
}

static __noinline enum verdict answer_ask(struct __sk_buff *skb)
{
	struct ask question, answer;
	struct tuple between;
	__s64 changed;

	if (read_ask(skb, &question, &between))
		return AGENT_DROP_ASK;
	answer = question;
	if (find_answer(skb, &answer) || ask_tag(&answer, &between, &answer.tag))
		return AGENT_DROP_ASK;
	changed = bpf_csum_diff((void *)&question, sizeof(question), (void *)&answer, sizeof(answer), 0);
	if (bpf_l4_csum_replace(skb, ETH_LENGTH + IP_LENGTH + offsetof(struct udphdr, check), 0, changed,
				BPF_F_MARK_MANGLED_0) ||
	    bpf_skb_store_bytes(skb, ASK_OFFSET, &answer, sizeof(answer), 0) || turn_round(skb, &between))
		return AGENT_DROP_ASK;
	return AGENT_ASK_ANSWERED;
}
