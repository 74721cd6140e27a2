/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The agent's side of moving a connection (docs/handover.md). As the old backend: it hands the connection over if the
 * socket has nothing under way, in either direction, and its answers have ended; the socket is reset behind its back,
 * and what it says from then on is dropped. As the new one: it opens the connection from the request, as from a first
 * one.
 *
 * What is left with the old one is the tuple's mapping, MAPPING_MOVED: it hands on what comes late, repeats the order to
 * whom it was given, and knows an older order by its number.
 */
#pragma once

#include "clear.h"
#include "cookie.h"
#include "follow.h"
#include "open.h"
#include "shim.h"
#include "translate.h"

#define SHIM_OFFSET   (ETH_LENGTH + IP_LENGTH)
#define INNER_OFFSET  (SHIM_OFFSET + SHIM_LENGTH)
#define NANOSECONDS_A_MS 1000000U
#define HANDED_ON_TTL	 (DEFAULT_TTL / 2) /* of what a backend hands on; whatever comes with it, or less, may have been */

/* The mapping is of a connection that begins here: its first request is the only one so far. */
static __always_inline void first_question(struct mapping *mapping, int is_head)
{
	mapping->request = mapping->isn + 1;
	mapping->sent = mapping->cookie + 1;
	mapping->asked = 1;
	mapping->heads = is_head ? 1 : 0;
}

static __always_inline int read_shimmed(struct __sk_buff *skb, struct shimmed *packet)
{
	__u32 length;

	if (bpf_skb_load_bytes(skb, ETH_LENGTH, packet, sizeof(*packet)))
		return 0;
	length = bpf_ntohs(packet->ip.tot_len);
	return packet->outer.version == 4 && packet->outer.ihl == 5 && !(packet->outer.frag_off & IP_FRAGMENT) &&
	       packet->ip.version == 4 && packet->ip.ihl == 5 && packet->ip.protocol == IPPROTO_TCP &&
	       !(packet->ip.frag_off & IP_FRAGMENT) && tcp_header_length(&packet->tcp) >= TCP_LENGTH &&
	       IP_LENGTH + tcp_header_length(&packet->tcp) < length && INNER_OFFSET + length <= skb->len;
}

static __always_inline void bind_to(const struct shimmed *packet, struct bond *bond)
{
	__builtin_memset(bond, 0, sizeof(*bond));
	bond->tuple.client = packet->ip.saddr;
	bond->tuple.server = packet->ip.daddr;
	bond->tuple.client_port = packet->tcp.source;
	bond->tuple.server_port = packet->tcp.dest;
	bond->seq = bpf_ntohl(packet->tcp.seq);
	bond->ack = bpf_ntohl(packet->tcp.ack_seq);
	bond->from = packet->outer.saddr;
	bond->to = packet->outer.daddr;
}

static __always_inline void address_outer(struct iphdr *outer, __be32 source, __be32 destination, __u8 ttl)
{
	outer->saddr = source;
	outer->daddr = destination;
	outer->ttl = ttl;
	outer->check = 0;
	outer->check = checksum_fold(checksum_add(0, outer, IP_LENGTH / 4));
}

/* Puts another shim in the packet, from `bond->from` to `bond->to`; 0, or -1. */
static __noinline int readdress(struct __sk_buff *skb, struct shim *shim, const struct bond *bond)
{
	struct iphdr outer;

	shim->version = SHIM_VERSION;
	shim->time = shim_clock();
	shim->flags = shim_epoch() | (shim->flags & ~SHIM_EPOCH);
	if (seal_shim(shim, bond) || bpf_skb_load_bytes(skb, ETH_LENGTH, &outer, sizeof(outer)))
		return -1;
	address_outer(&outer, bond->from, bond->to, DEFAULT_TTL);
	return bpf_skb_store_bytes(skb, ETH_LENGTH, &outer, sizeof(outer), 0) ||
			       bpf_skb_store_bytes(skb, SHIM_OFFSET, shim, sizeof(*shim), 0)
		       ? -1
		       : 0;
}

/* A clone of the order goes back to the router whence it came: its connection has moved with the request that the
 * mapping says. If it gets lost, the router asks once more. */
static __noinline int send_notice(struct __sk_buff *skb, const struct bond *order, const struct mapping *moved)
{
	struct shim shim = { .kind = SHIM_MOVED, .first = moved->request, .second = moved->sent };
	struct bond bond = *order;
	__u8 mac[2 * ETH_ALEN];

	bond.seq = moved->request;
	bond.ack = moved->sent;
	bond.from = order->to;
	bond.to = order->from;
	if (bpf_skb_load_bytes(skb, 0, mac, sizeof(mac)) || readdress(skb, &shim, &bond) ||
	    bpf_skb_store_bytes(skb, 0, mac + ETH_ALEN, ETH_ALEN, 0) ||
	    bpf_skb_store_bytes(skb, ETH_ALEN, mac, ETH_ALEN, 0))
		return -1;
	return bpf_clone_redirect(skb, skb->ifindex, 0) ? -1 : 0;
}

/* The order becomes the new backend's: to go on with what the mapping says. Returns `verdict`, or what became of it. */
static __noinline enum verdict send_on(struct __sk_buff *skb, const struct bond *order, const struct mapping *moved,
				       enum verdict verdict)
{
	struct shim shim = {
		.kind = SHIM_ADOPT,
		.flags = (moved->heads & 1 ? SHIM_HEAD : 0) | said_brief(skb) >> 16 << SHIM_BRIEF_SHIFT,
		.options = moved->options,
		.trip = moved->age,
		.first = moved->clock,
		.second = moved->origin,
	};
	struct bond bond = *order;

	bond.to = moved->target;
	return readdress(skb, &shim, &bond) ? AGENT_DROP_ORDER : verdict;
}

/* Has the connection come to rest: all that was asked is answered, and the client has got it? */
static __always_inline int is_at_rest(const struct tcp_sock *tcp, const struct mapping *mapping,
				      const struct bond *order)
{
	return !mapping->pinned && mapping->asked == mapping->answered && mapping->sent == order->ack &&
	       tcp->rcv_nxt == order->seq && tcp->copied_seq == order->seq && tcp->write_seq == order->ack;
}

/* What the new backend, and whoever asks later, must know. */
static __always_inline void remember_move(struct mapping *moved, const struct tcp_sock *tcp, const struct bond *order,
					  const struct shim *shim)
{
	moved->state = MAPPING_MOVED;
	moved->target = shim->first;
	moved->request = order->seq;
	moved->sent = order->ack;
	moved->heads = shim->flags & SHIM_HEAD ? 1 : 0;
	moved->age = tcp->srtt_us ? (tcp->srtt_us >> 3) / 1000 + 1 : 0;
	moved->clock = bpf_ktime_get_ns() / NANOSECONDS_A_MS + tcp->tsoffset;
}

/*
 * The socket is muted first, and then looked at once more: what the server has written in between is either seen here,
 * or dropped at egress and sent again.
 */
static __always_inline enum verdict move_away(struct __sk_buff *skb, struct tcp_sock *tcp, struct mapping *mapping,
					      const struct tuple *local, const struct bond *order,
					      const struct shim *shim)
{
	struct mapping moved;

	mapping->state = MAPPING_MOVED;
	__sync_fetch_and_add(&mapping->left, 0); /* a full barrier: egress sees it before the socket is looked at */
	if (!is_at_rest(tcp, mapping, order)) {
		mapping->state = MAPPING_OPEN;
		return AGENT_DROP_BUSY;
	}
	moved = *mapping;
	remember_move(&moved, tcp, order, shim);
	skb->mark = MARK_MAGIC | MARK_RESET | 1;
	if (bpf_map_update_elem(&mappings, local, &moved, BPF_ANY) ||
	    bpf_clone_redirect(skb, skb->ifindex, BPF_F_INGRESS)) {
		mapping->state = MAPPING_OPEN;
		bpf_map_update_elem(&mappings, local, mapping, BPF_ANY);
		skb->mark = 0;
		return AGENT_DROP_BUSY;
	}
	skb->mark = 0;
	send_notice(skb, order, &moved);
	return send_on(skb, order, &moved, AGENT_ORDERED);
}

/* The order's connection has a socket: can it go? */
static __always_inline enum verdict obey(struct __sk_buff *skb, struct tcp_sock *tcp, const struct tuple *local,
					 const struct bond *order, const struct shim *shim)
{
	struct mapping *known = bpf_map_lookup_elem(&mappings, local);
	struct mapping *mapping = bpf_sk_storage_get(&connections, tcp, NULL, 0);

	if (!mapping)
		mapping = known;
	if (!mapping || mapping->cookie != shim->second || mapping->vip != order->tuple.server ||
	    mapping->vip_port != order->tuple.server_port)
		return AGENT_DROP_ORDER;
	/* Only at the number that it expects does the socket believe a reset. Otherwise it would live on, and keep the
	 * request, which goes round behind that, until what is missing before it has come: for the wrong server to read. */
	if (mapping->pinned)
		return tcp->rcv_nxt == order->seq ? AGENT_UNMOVABLE : AGENT_DROP_BUSY;
	if (mapping->state != MAPPING_OPEN || !is_at_rest(tcp, mapping, order))
		return AGENT_DROP_BUSY;
	return move_away(skb, tcp, mapping, local, order, shim);
}

/* The packet inside, translated for this host; what is in front of it goes. 0, or -1. */
static __always_inline int unwrap(struct __sk_buff *skb, const struct bond *order, const struct tuple *local)
{
	if (bpf_skb_adjust_room(skb, -(int)(IP_LENGTH + SHIM_LENGTH), BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_FIXED_GSO))
		return -1;
	return rewrite(skb, TRANSLATE_DESTINATION, order->tuple.server, order->tuple.server_port, local->server,
		       local->server_port)
		       ? -1
		       : 0;
}

/* The socket ends, and the request goes round, to be refused by the kernel then. */
static __always_inline enum verdict end_unmovable(struct __sk_buff *skb, const struct bond *order,
						  const struct tuple *local)
{
	struct headers headers;

	skb->mark = MARK_MAGIC | MARK_LATER | 1;
	if (unwrap(skb, order, local) || bpf_clone_redirect(skb, skb->ifindex, BPF_F_INGRESS) ||
	    !find_headers(skb, &headers) || write_reset(skb, &headers, order->seq))
		return AGENT_DROP_MALFORMED;
	return AGENT_UNMOVABLE;
}

static __always_inline enum verdict repeat_order(struct __sk_buff *skb, const struct mapping *known,
						 const struct bond *order)
{
	send_notice(skb, order, known);
	if (order->seq != known->request || order->ack != known->sent)
		return AGENT_DROP_BUSY;
	return send_on(skb, order, known, AGENT_ORDERED_AGAIN);
}

static __noinline enum verdict on_order(struct __sk_buff *skb, const struct bond *order, const struct shim *shim,
					const struct tuple *local)
{
	const struct mapping *known = bpf_map_lookup_elem(&mappings, local);
	enum verdict verdict = AGENT_CLOSED;
	struct bpf_sock *sk;
	struct tcp_sock *tcp;

	if (known && known->state == MAPPING_MOVED)
		return repeat_order(skb, known, order);
	sk = find_socket(skb, local);
	if (sk) {
		if (sk->state == BPF_TCP_ESTABLISHED) {
			tcp = (void *)bpf_skc_to_tcp_sock(sk);
			verdict = tcp ? obey(skb, tcp, local, order, shim) : AGENT_DROP_ORDER;
		}
		bpf_sk_release(sk);
	}
	if (verdict == AGENT_UNMOVABLE)
		return end_unmovable(skb, order, local);
	if (verdict != AGENT_CLOSED)
		return verdict;
	/* The server has ended the connection: the kernel says so, in the VIP's name. */
	if (!known || known->cookie != shim->second)
		return AGENT_DROP_ORDER;
	return unwrap(skb, order, local) ? AGENT_DROP_MALFORMED : AGENT_CLOSED;
}

/* The connection has been here after that request, or with it, or has moved on from there: the order is an old one. */
static __always_inline int is_late(const struct mapping *known, const struct mapping *mapping)
{
	return known && known->origin == mapping->origin && known->vip == mapping->vip &&
	       (known->state == MAPPING_MOVED || !same_connection(known, mapping)) &&
	       (__s32)(mapping->request - known->request) <= 0;
}

static __noinline enum verdict adopt(struct __sk_buff *skb, const struct bond *order, const struct shim *shim,
				     const struct tuple *local, __u32 header_length)
{
	struct mapping mapping = {
		.vip = order->tuple.server,
		.vip_port = order->tuple.server_port,
		.isn = order->seq - 1,
		.cookie = order->ack - 1,
		.age = shim->trip,
		.moved = 1,
		.options = shim->options,
		.clock = shim->first,
		.origin = shim->second,
		.route = ordered_route(skb),
	};

	first_question(&mapping, shim->flags & SHIM_HEAD);
	if (is_late(bpf_map_lookup_elem(&mappings, local), &mapping))
		return AGENT_DROP_REPLAYED;
	if (unwrap(skb, order, local))
		return AGENT_DROP_MALFORMED;
	return open_connection(skb, local, &mapping, header_length);
}

/* The server on this host that the packet inside is for: *local is its tuple. 0, or -1: there is none. */
static __always_inline int find_server(const struct bond *order, struct tuple *local)
{
	struct vip_key key = { .address = order->tuple.server, .port = order->tuple.server_port };
	const struct service *service = bpf_map_lookup_elem(&services, &key);

	if (!service || service->address != order->to)
		return -1;
	*local = order->tuple;
	local->server = service->address;
	local->server_port = service->port;
	return 0;
}

static __noinline enum verdict receive_shim(struct __sk_buff *skb)
{
	struct shimmed packet;
	struct tuple local;
	struct bond bond;

	if (!read_shimmed(skb, &packet))
		return AGENT_DROP_MALFORMED;
	if ((packet.outer.saddr & routers_mask) != routers_prefix)
		return AGENT_DROP_SOURCE;
	bind_to(&packet, &bond);
	say_route(skb, bpf_ntohs(packet.outer.id) | packet.shim.flags >> SHIM_BRIEF_SHIFT << 16, 0);
	if (find_server(&bond, &local))
		return AGENT_DROP_NOT_SERVED;
	if (!is_sealed_shim(&packet.shim, &bond))
		return AGENT_DROP_ORDER;
	if (packet.shim.kind == SHIM_MOVE)
		return on_order(skb, &bond, &packet.shim, &local);
	if (packet.shim.kind == SHIM_ADOPT)
		return adopt(skb, &bond, &packet.shim, &local, tcp_header_length(&packet.tcp));
	return AGENT_DROP_ORDER;
}

/* The clone of an order that was carried out: it becomes the reset of the socket that the connection has left. */
static __noinline enum verdict reset_moved(struct __sk_buff *skb)
{
	struct headers headers;
	struct shimmed packet;
	struct tuple local;
	struct bond bond;

	if (!read_shimmed(skb, &packet))
		return AGENT_DROP_MALFORMED;
	bind_to(&packet, &bond);
	if (find_server(&bond, &local))
		return AGENT_DROP_NOT_SERVED;
	if (unwrap(skb, &bond, &local) || !find_headers(skb, &headers) || write_reset(skb, &headers, bond.seq))
		return AGENT_DROP_MALFORMED;
	return AGENT_MOVED;
}

/* A later packet of a connection that has moved, decapsulated: to whom it has moved. What starts a request has not been
 * routed to him. Nothing is handed on twice: while an order is lost on its way back to a backend where the connection
 * was before, each of the two takes the other for its owner. */
static __noinline enum verdict hand_on(struct __sk_buff *skb, const struct mapping *known, __be32 outer_source,
				       __u16 id)
{
	__u16 connection = outer_id(known->sent - 1);
	__be32 target = known->target;
	struct iphdr outer = { .version = 4, .ihl = 5, .frag_off = IP_DF, .protocol = IPPROTO_IPIP };

	if (id & OUTER_ID_REQUEST)
		return AGENT_DROP_BUSY;
	if (bpf_skb_load_bytes(skb, ETH_LENGTH + offsetof(struct iphdr, tos), &outer.tos, sizeof(outer.tos)))
		return AGENT_DROP_MALFORMED;
	outer.id = bpf_htons(connection);
	outer.tot_len = bpf_htons(skb->len - ETH_LENGTH + IP_LENGTH);
	address_outer(&outer, outer_source, target, HANDED_ON_TTL);
	if (bpf_skb_adjust_room(skb, IP_LENGTH, BPF_ADJ_ROOM_MAC,
				BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_ENCAP_L3_IPV4) ||
	    bpf_skb_store_bytes(skb, ETH_LENGTH, &outer, sizeof(outer), 0))
		return AGENT_DROP_MALFORMED;
	return AGENT_HANDED_ON;
}
