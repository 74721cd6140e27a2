/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A first request whose cookie is valid, decapsulated and translated: the listener gets a connection out of
 * it, in mid-stream.
 *
 * The kfunc takes the echoed timestamp as "now", so a socket would start with a measured round trip of 1
 * ms, probe after 6-12 ms and time out after 207 ms. RTT_BUMP_MS makes its first estimate 333 ms, and so
 * its first timeout the 1 s of RFC 6298; the real round trips soon replace it.
 */
#pragma once

#include "clear.h"
#include "consumed.h"
#include "cookie.h"
#include "socket.h"
#include "translate.h"

static __always_inline void set_timestamps(struct __sk_buff *skb, __u32 header_length,
					   struct bpf_tcp_req_attrs *attrs)
{
	struct option_bytes *options = option_scratch();
	__u32 length = header_length - TCP_LENGTH;

	if (!options || header_length <= TCP_LENGTH || length > TCP_MAX_OPTIONS)
		return;
	if (bpf_skb_load_bytes(skb, ETH_LENGTH + IP_LENGTH + TCP_LENGTH, options->bytes,
			       bounded_length(length, TCP_MAX_OPTIONS)))
		return;
	if (parse_tcp_options(length) || !options->timestamps)
		return;
	attrs->tstamp_ok = 1;
	attrs->rcv_tsval = bpf_ntohl(options->tsval);
	attrs->rcv_tsecr = bpf_ntohl(options->tsecr) + RTT_BUMP_MS;
}

/* The options that the client's SYN had, as the cookie remembers them. */
static __always_inline void set_options(struct bpf_tcp_req_attrs *attrs, __u32 cookie)
{
	__u8 wscale = (cookie & COOKIE_OPTIONS) >> COOKIE_WSCALE_SHIFT;

	attrs->mss = cookie_mss[cookie >> COOKIE_MSS_SHIFT & 3];
	attrs->sack_ok = !!(cookie & COOKIE_SACK);
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
	set_options(&attrs, mapping->cookie);
	set_timestamps(skb, header_length, &attrs);
	if (remember(local, mapping, MAPPING_OPENING))
		return AGENT_DROP_REFUSED;
	if (bpf_sk_assign_tcp_reqsk(skb, (struct sock *)tcp, &attrs, sizeof(attrs)))
		return AGENT_DROP_REFUSED;
	return AGENT_OPENED;
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
		return AGENT_OPENED_ALREADY;
	if (is_consumed(local, mapping))
		return AGENT_DROP_REPLAYED;
	if (!known || known->vip != mapping->vip || known->vip_port != mapping->vip_port)
		return AGENT_DROP_CONFLICT;
	return clear_socket(skb, sk, local, mapping);
}

/* `mapping` says which VIP and which numbers the packet came with. */
static __always_inline enum verdict open_connection(struct __sk_buff *skb, const struct tuple *local,
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
