/* SPDX-License-Identifier: GPL-2.0-only */
/* Ingress: from the encapsulated packet to the socket. */
#pragma once

#include "ask.h"
#include "cookie.h"
#include "first.h"
#include "follow.h"
#include "learn.h"
#include "move.h"
#include "open.h"
#include "translate.h"

struct arrival {	    /* an inner packet, as it stands once decapsulated */
	struct tuple tuple; /* before the translation: client -> VIP; after it: client -> server */
	__u32 seq;
	__u32 ack;
	__u32 header_length; /* TCP, bytes */
	__u32 length;	     /* of the payload, bytes */
};

static __always_inline int read_arrival(struct __sk_buff *skb, struct arrival *arrival)
{
	struct headers headers;
	__u32 length;

	if (!find_headers(skb, &headers))
		return 0;
	length = bpf_ntohs(headers.ip->tot_len);
	arrival->header_length = tcp_header_length(headers.tcp);
	if (arrival->header_length < TCP_LENGTH || IP_LENGTH + arrival->header_length > length ||
	    ETH_LENGTH + length > skb->len)
		return 0;
	arrival->length = length - IP_LENGTH - arrival->header_length;
	arrival->tuple.client = headers.ip->saddr;
	arrival->tuple.server = headers.ip->daddr;
	arrival->tuple.client_port = headers.tcp->source;
	arrival->tuple.server_port = headers.tcp->dest;
	arrival->seq = bpf_ntohl(headers.tcp->seq);
	arrival->ack = bpf_ntohl(headers.tcp->ack_seq);
	return 1;
}

static __always_inline int has_live_socket(struct __sk_buff *skb, const struct tuple *local)
{
	struct bpf_sock *sk = find_socket(skb, local);
	int live;

	if (!sk)
		return 0;
	live = sk->state != BPF_TCP_LISTEN;
	bpf_sk_release(sk);
	return live;
}

/*
 * A later packet, translated. Where only the listener would get it, and its connection is not known to have
 * opened, it has come before the first request: the kernel would reset the connection. Where the connection
 * did open and its socket is gone, the reset is right.
 *
 * If the first request has been here already, it may still be on its way to TCP: an old socket has to go
 * first, or both came in one list of packets (NAPI with GRO), all of which this program sees before TCP gets
 * any. Then what follows it goes round behind it. Otherwise, and if that has not helped, it comes again.
 */
static __always_inline enum verdict deliver_later(struct __sk_buff *skb, const struct tuple *local,
						  const struct mapping *mapping)
{
	if (mapping && mapping->state == MAPPING_OPEN)
		return AGENT_DELIVERED;
	if (!(mapping && mapping->state == MAPPING_CLEARING) && has_live_socket(skb, local))
		return AGENT_DELIVERED;
	if (!mapping)
		return AGENT_DROP_UNOPENED;
	return mark_round(skb, MARK_LATER) ? AGENT_DROP_UNOPENED : AGENT_WAITING;
}

/*
 * A later request: counted, for its answer to be followed. What the socket of a connection says is newer than what the
 * map does. 0, or -1: it has overtaken something.
 */
static __noinline int take_request(struct __sk_buff *skb, const struct tuple *local, __u32 seq, int is_head)
{
	struct bpf_sock *sk = find_socket(skb, local);
	struct mapping *mapping = NULL, *known;
	struct tcp_sock *tcp;
	int failed = 0;

	if (!sk)
		return 0;
	tcp = sk->state == BPF_TCP_LISTEN ? NULL : (void *)bpf_skc_to_tcp_sock(sk);
	if (tcp) {
		known = bpf_map_lookup_elem(&mappings, local);
		mapping = bpf_sk_storage_get(&connections, tcp, known,
					     known && known->state == MAPPING_OPEN ? BPF_SK_STORAGE_GET_F_CREATE : 0);
		if (mapping)
			failed = count_request(mapping, seq, tcp->rcv_nxt, is_head, said_route(skb));
		if (mapping && !failed && seq == tcp->rcv_nxt)
			expect_trace(mapping);
	}
	bpf_sk_release(sk);
	return failed;
}

/*
 * The tuple's mapping may be what an older connection left, whose socket is gone, while the first request
 * of the packet's own was lost. The router says in the outer identification which one it means.
 */
static __always_inline enum verdict deliver_if_meant(struct __sk_buff *skb, const struct tuple *local,
						     const struct mapping *mapping, __u32 seq, __u16 id)
{
	if (id & OUTER_ID_REQUEST) {
		if (take_request(skb, local, seq, id & OUTER_ID_HEAD))
			return AGENT_DROP_EARLY;
	} else if (id & OUTER_ID_BEYOND) {
		return AGENT_DROP_BUSY;
	}
	return deliver_later(skb, local, mapping);
}

/*
 * A first request whose cookie is not good any more, because its key has been replaced, is good again: where its very
 * connection is open, or about to be. The client has not heard yet that it is there, and would give up a connection
 * that lives. Once that is over, nothing of it is taken.
 */
static __noinline int is_still_opening(struct __sk_buff *skb, const struct tuple *local, const struct mapping *mapping)
{
	const struct mapping *known = bpf_map_lookup_elem(&mappings, local), *stored;
	struct bpf_sock *sk;
	int same = 0;

	if (known && !same_connection(known, mapping))
		known = NULL;
	if (known && (known->state == MAPPING_OPENING || known->state == MAPPING_CLEARING))
		return 1;
	sk = find_socket(skb, local);
	if (!sk)
		return 0;
	if (is_live(sk) && sk->state != BPF_TCP_TIME_WAIT) {
		stored = mapping_of(sk);
		same = stored ? same_connection(stored, mapping) : known || has_numbers(sk, mapping);
	}
	bpf_sk_release(sk);
	return same;
}

/* May the packet open a connection, or may have opened it? */
static __always_inline int may_open(struct __sk_buff *skb, const struct arrival *arrival, const struct tuple *local,
				    const struct mapping *mapping)
{
	return arrival->length && (cookie_check(&arrival->tuple, mapping->isn, mapping->cookie) ||
				   is_still_opening(skb, local, mapping));
}

/* Decapsulated. Checks the cookie of a first request, translates, and gives the packet to whom it belongs.
 */
static __noinline enum verdict deliver(struct __sk_buff *skb, __be32 outer_source, __be32 outer_destination,
					    __u16 id, int handed_on)
{
	int opens = id & OUTER_ID_OPENS;
	const struct mapping *known = NULL;
	struct vip_key key = {};
	struct mapping mapping = {};
	struct arrival arrival;
	const struct service *service;
	struct tuple *tuple = &arrival.tuple, local;

	if (!read_arrival(skb, &arrival))
		return carries_icmp(skb) ? learn(skb, outer_destination, id) : AGENT_DROP_MALFORMED;
	key.address = tuple->server;
	key.port = tuple->server_port;
	service = bpf_map_lookup_elem(&services, &key);
	/* A switch that does not know yet where a host is sends its frames to everybody, and tc sees them,
	 * too. */
	if (!service || service->address != outer_destination)
		return AGENT_DROP_NOT_SERVED;
	local = *tuple;
	local.server = service->address;
	local.server_port = service->port;
	mapping.isn = arrival.seq - 1;
	mapping.cookie = arrival.ack - 1;
	if (opens) {
		if (!may_open(skb, &arrival, &local, &mapping))
			return AGENT_DROP_COOKIE;
	} else {
		known = bpf_map_lookup_elem(&mappings, &local);
		if (known && outer_id(known->cookie) != (id & OUTER_ID_CONNECTION))
			return AGENT_DROP_UNOPENED;
		if (known && known->state == MAPPING_MOVED)
			return handed_on ? AGENT_DROP_UNOPENED : hand_on(skb, known, outer_source, id);
	}
	if (rewrite(skb, TRANSLATE_DESTINATION, tuple->server, tuple->server_port, service->address,
		    service->port))
		return AGENT_DROP_MALFORMED;
	if (!opens)
		return deliver_if_meant(skb, &local, known, arrival.seq, id);
	mapping.vip = key.address;
	mapping.vip_port = key.port;
	mapping.age = id >> 1 & AGE_LONG;
	mapping.is_new = !!(id & OUTER_ID_NEW);
	mapping.options = mapping.cookie & COOKIE_OPTIONS;
	mapping.origin = mapping.cookie;
	mapping.route = said_route(skb);
	first_question(&mapping, id & OUTER_ID_FIRST_HEAD);
	mapping.first = first_digest(skb, ETH_LENGTH + IP_LENGTH + arrival.header_length, arrival.length);
	return open_connection(skb, &local, &mapping, arrival.header_length);
}

/* A packet that this program sent round: already decapsulated, checked and translated. */
static __noinline enum verdict deliver_again(struct __sk_buff *skb)
{
	const struct mapping *known;
	struct mapping mapping = {};
	struct arrival arrival;

	if (skb->mark & MARK_RESET)
		return reset_moved(skb);
	if (!read_arrival(skb, &arrival))
		return AGENT_DROP_MALFORMED;
	known = bpf_map_lookup_elem(&mappings, &arrival.tuple);
	if (skb->mark & MARK_LATER)
		return deliver_later(skb, &arrival.tuple, known);
	mapping.isn = arrival.seq - 1;
	mapping.cookie = arrival.ack - 1;
	if (!known || !same_connection(known, &mapping))
		return AGENT_DROP_UNOPENED;
	mapping = *known;
	mapping.is_new = 0;
	return open_connection(skb, &arrival.tuple, &mapping, arrival.header_length);
}

/*
 * A plain SYN opens a direct connection: what an earlier, routed one left on its tuple must not translate
 * it. Unless that one still lives: then the kernel refuses the SYN, and anybody may have sent it.
 */
static __always_inline enum verdict pass_plain(struct __sk_buff *skb, const struct iphdr *ip,
					       const void *end)
{
	const struct tcphdr *tcp = (const void *)(ip + 1);
	struct bpf_sock *sk;
	struct tuple tuple;
	int live = 0;

	if (ip->protocol != IPPROTO_TCP || ip->ihl != 5 || ip->frag_off & IP_FRAGMENT ||
	    (const void *)(tcp + 1) > end || (tcp_flags(tcp) & (TCP_SYN | TCP_ACK)) != TCP_SYN)
		return AGENT_PASS;
	tuple.client = ip->saddr;
	tuple.server = ip->daddr;
	tuple.client_port = tcp->source;
	tuple.server_port = tcp->dest;
	sk = find_socket(skb, &tuple);
	if (sk) {
		live = sk->state != BPF_TCP_LISTEN && sk->state != BPF_TCP_TIME_WAIT;
		bpf_sk_release(sk);
	}
	if (!live)
		bpf_map_delete_elem(&mappings, &tuple);
	return AGENT_PASS_SYN;
}

/* What stands in front of the packet: 0, or -1 if it is no label. All of it is nothing but a hint for the figures. */
static __always_inline int read_label(struct __sk_buff *skb, const struct label *label, const void *end)
{
	if ((const void *)(label + 1) > end || label->version != SHIM_VERSION || label->kind != SHIM_LABEL)
		return -1;
	said_route(skb) = label->tag;
	return 0;
}

static __always_inline enum verdict receive(struct __sk_buff *skb)
{
	__u32 wanted = ETH_LENGTH + IP_LENGTH + TCP_LENGTH, front = IP_LENGTH;
	struct iphdr *ip;
	void *data, *end;
	__be32 outer_source, outer_destination;
	int handed_on;
	__u16 id;

	if (skb->protocol != bpf_htons(ETH_P_IP))
		return AGENT_PASS;
	if (skb->len >= wanted && (void *)(long)skb->data + wanted > (void *)(long)skb->data_end)
		bpf_skb_pull_data(skb, wanted);
	data = (void *)(long)skb->data;
	end = (void *)(long)skb->data_end;
	ip = data + ETH_LENGTH;
	if ((void *)(ip + 1) > end)
		return AGENT_PASS;
	if (ip->protocol == SHIM_PROTOCOL) {
		if (read_label(skb, (void *)(ip + 1), end))
			return receive_shim(skb);
		front += LABEL_LENGTH;
	} else if (ip->protocol != IPPROTO_IPIP) {
		return is_ask(ip, end) ? answer_ask(skb) : pass_plain(skb, ip, end);
	} else {
		said_route(skb) = 0;
	}
	if ((ip->saddr & routers_mask) != routers_prefix)
		return AGENT_DROP_SOURCE;
	if (ip->ihl != 5 || ip->frag_off & IP_FRAGMENT)
		return AGENT_DROP_MALFORMED;
	outer_source = ip->saddr;
	outer_destination = ip->daddr;
	id = bpf_ntohs(ip->id);
	handed_on = ip->ttl <= HANDED_ON_TTL;
	if (bpf_skb_adjust_room(skb, -(int)front, BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_FIXED_GSO))
		return AGENT_DROP_MALFORMED;
	return deliver(skb, outer_source, outer_destination, id, handed_on);
}
