/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A first request whose cookie is valid, decapsulated and translated: the listener gets a connection out of
 * it, in mid-stream.
 *
 * The socket's first measurement is what its clock of timestamps says, which the kfunc sets by `rcv_tsecr`, less what
 * the first request echoes. So the age of the handshake, added to that, is what the kernel takes for the round trip. A
 * client that said nothing for a while looks far away by that, and an unknown age says nothing: then the kernel gets
 * no echo, measures nothing, and waits for the first acknowledgement. docs/tcp.md has the reasons and figures.
 */
#pragma once

#include "clear.h"
#include "consumed.h"
#include "cookie.h"
#include "socket.h"
#include "trace_answer.h"
#include "translate.h"

/*
 * The request echoes something else; nothing any more, if that is 0. 0, or negative. The checksum is a sum of pairs
 * of bytes; if the option is at an odd place, those of the echo are pairs with their neighbours.
 */
static __always_inline long set_echo(struct __sk_buff *skb, const struct option_bytes *options, __u32 value)
{
	__u32 at = TCP_OFFSET(source) + TCP_LENGTH + (options->tsecr_at & 63);
	__be32 becomes = bpf_htonl(value), echo = options->tsecr, sum = becomes;

	if (at & 1) {
		echo = echo << 8 | echo >> 24;
		sum = sum << 8 | sum >> 24;
	}
	if (bpf_l4_csum_replace(skb, TCP_OFFSET(check), echo, sum, sizeof(sum)))
		return -1;
	return bpf_skb_store_bytes(skb, at, &becomes, sizeof(becomes), 0);
}

/* A connection that has moved here goes on with the clock of its old socket, which the client may have seen a while
 * ago: what it echoes is set forward as well. */
static __always_inline long set_timestamps(struct __sk_buff *skb, __u32 header_length, const struct mapping *mapping,
					   struct bpf_tcp_req_attrs *attrs)
{
	struct option_bytes *options = option_scratch();
	__u32 length = header_length - TCP_LENGTH, clock;
	__u16 age = mapping->age;

	if (!options || header_length <= TCP_LENGTH || length > TCP_MAX_OPTIONS)
		return 0;
	if (bpf_skb_load_bytes(skb, ETH_LENGTH + IP_LENGTH + TCP_LENGTH, options->bytes,
			       bounded_length(length, TCP_MAX_OPTIONS)))
		return 0;
	if (parse_tcp_options(length) || !options->timestamps)
		return 0;
	attrs->tstamp_ok = 1;
	attrs->rcv_tsval = bpf_ntohl(options->tsval);
	clock = bpf_ntohl(options->tsecr);
	if (mapping->moved && (__s32)(mapping->clock - clock) > 0)
		clock = mapping->clock;
	attrs->rcv_tsecr = clock + age;
	if (!age || age > LONGEST_TRIP_MS)
		return set_echo(skb, options, 0);
	return mapping->moved ? set_echo(skb, options, clock) : 0;
}

/* The options that the client's SYN had, as the low byte of its cookie remembers them. */
static __always_inline void set_options(struct bpf_tcp_req_attrs *attrs, __u8 options)
{
	__u8 wscale = options >> COOKIE_WSCALE_SHIFT;

	attrs->mss = cookie_mss[options >> COOKIE_MSS_SHIFT & 3];
	attrs->sack_ok = !!(options & COOKIE_SACK);
	if (wscale != COOKIE_NO_WSCALE) {
		attrs->wscale_ok = 1;
		attrs->snd_wscale = wscale;
		attrs->rcv_wscale = ROUTER_WSCALE;
	}
}

static __always_inline enum verdict create_socket(struct __sk_buff *skb, struct bpf_sock *listener,
						  const struct tuple *local, struct mapping *mapping,
						  __u32 header_length)
{
	struct tcp_sock *tcp = (void *)bpf_skc_to_tcp_sock(listener);
	struct bpf_tcp_req_attrs attrs = {};

	if (is_consumed(local, mapping))
		return AGENT_DROP_REPLAYED;
	if (!tcp)
		return AGENT_DROP_REFUSED;
	if (is_mptcp(tcp))
		return AGENT_DROP_MPTCP;
	set_options(&attrs, mapping->options);
	if (set_timestamps(skb, header_length, mapping, &attrs))
		return AGENT_DROP_MALFORMED;
	if (remember(local, mapping, MAPPING_OPENING))
		return AGENT_DROP_REFUSED;
	if (bpf_sk_assign_tcp_reqsk(skb, (struct sock *)tcp, &attrs, sizeof(attrs)))
		return AGENT_DROP_REFUSED;
	expect_trace(mapping);
	return mapping->moved ? AGENT_ADOPTED : AGENT_OPENED;
}

/* Has a router that knows of no earlier first data sent any that the socket has not had? What differs, or cannot be
 * compared any more, may be another request in its place. The network's own duplicates are the same. */
static __always_inline int is_other_data(const struct mapping *known, const struct mapping *mapping)
{
	return mapping->is_new &&
	       !(known && same_connection(known, mapping) && known->first && known->first == mapping->first);
}

/*
 * A socket is already there. The very connection's, ours to clear, or somebody else's? That of a connection
 * which has had its socket clears nothing: what is there now is newer.
 */
static __always_inline enum verdict meet_socket(struct __sk_buff *skb, struct bpf_sock *sk,
						const struct tuple *local, struct mapping *mapping)
{
	const struct mapping *known = NULL;
	struct tcp_sock *tcp;

	if (sk->state == BPF_TCP_TIME_WAIT)
		return is_consumed(local, mapping) ? AGENT_DROP_REPLAYED
						   : clear_socket(skb, sk, local, mapping);
	tcp = (void *)bpf_skc_to_tcp_sock(sk);
	if (!tcp)
		return AGENT_DROP_CONFLICT;
	known = bpf_sk_storage_get(&connections, tcp, NULL, 0);
	if (!known)
		known = bpf_map_lookup_elem(&mappings, local);
	/* While an old socket is being cleared, the map says already who comes next. */
	if ((known && known->state != MAPPING_CLEARING && same_connection(known, mapping)) ||
	    has_numbers(sk, mapping))
		return is_other_data(known, mapping) ? end_socket(skb, sk, local, mapping) : AGENT_OPENED_ALREADY;
	if (is_consumed(local, mapping))
		return AGENT_DROP_REPLAYED;
	if (!known || known->vip != mapping->vip || known->vip_port != mapping->vip_port)
		return AGENT_DROP_CONFLICT;
	return clear_socket(skb, sk, local, mapping);
}

/* `mapping` says which VIP and which numbers the packet came with. */
static __noinline enum verdict open_connection(struct __sk_buff *skb, const struct tuple *local,
						    struct mapping *mapping, __u32 header_length)
{
	struct bpf_sock *sk = find_socket(skb, local);
	enum verdict verdict;

	if (!sk) { /* the client is told that this is reset: its request must not be executed later */
		consume(local, mapping);
		remember(local, mapping, MAPPING_OPEN);
		return AGENT_NO_LISTENER;
	}
	if (sk->state == BPF_TCP_LISTEN)
		verdict = create_socket(skb, sk, local, mapping, header_length);
	else
		verdict = meet_socket(skb, sk, local, mapping);
	bpf_sk_release(sk);
	return verdict;
}
