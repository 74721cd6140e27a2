/* SPDX-License-Identifier: GPL-2.0-only */
/* What the kernel holds on a tuple, and the few of its fields that have no helper (CO-RE). */
#pragma once

#include <bpf/bpf_core_read.h>

#include "kernel.h"

struct sock { /* complete, because libbpf compares the kfunc's prototype kind by kind */
	__u16 sk_protocol;
} __attribute__((preserve_access_index));

struct bpf_tcp_req_attrs { /* include/net/tcp.h; the argument of the kfunc */
	__u32 rcv_tsval;
	__u32 rcv_tsecr;
	__u16 mss;
	__u8 rcv_wscale;
	__u8 snd_wscale;
	__u8 ecn_ok;
	__u8 wscale_ok;
	__u8 sack_ok;
	__u8 tstamp_ok;
	__u8 usec_ts_ok;
	__u8 reserved[3];
};

/* Creates the socket of a connection whose handshake somebody else answered (Linux 6.9, net/core/filter.c).
 */
extern int bpf_sk_assign_tcp_reqsk(struct __sk_buff *skb, struct sock *sk, struct bpf_tcp_req_attrs *attrs,
				   int attrs__sz) __ksym;

struct tcp_sock {
	__u32 rcv_nxt;
	__u32 copied_seq;
	__u32 snd_nxt;
	__u32 write_seq;
	__u32 srtt_us;
	__u32 tsoffset;
	_Bool is_mptcp;
} __attribute__((preserve_access_index));

struct sock_common {
	__u32 skc_tw_rcv_nxt;
	__u32 skc_tw_snd_nxt;
} __attribute__((preserve_access_index));

struct inet_timewait_sock {
	struct sock_common __tw_common;
} __attribute__((preserve_access_index));

struct tcp_timewait_sock {
	struct inet_timewait_sock tw_sk;
} __attribute__((preserve_access_index));

/* The socket on the local tuple: established, listening, in TIME_WAIT. To be released. */
static __always_inline struct bpf_sock *find_socket(struct __sk_buff *skb, const struct tuple *local)
{
	struct bpf_sock_tuple tuple = {
		.ipv4 = { .saddr = local->client,
			  .daddr = local->server,
			  .sport = local->client_port,
			  .dport = local->server_port },
	};

	return bpf_skc_lookup_tcp(skb, &tuple, sizeof(tuple.ipv4), BPF_F_CURRENT_NETNS, 0);
}

/* Does it listen with MPTCP? The kfunc refuses such listeners. (A kernel without MPTCP has no such field.)
 */
static __always_inline int is_mptcp(const struct tcp_sock *tcp)
{
	return bpf_core_field_exists(tcp->is_mptcp) && tcp->is_mptcp;
}

/*
 * Is the full socket that connection's? Its initial numbers follow from what it has received and sent so
 * far. Beyond doubt if so; if not, it may have moved on between one field and the next, unless the caller
 * is within the socket's own work.
 */
static __always_inline int has_numbers(struct bpf_sock *sk, const struct mapping *mapping)
{
	const struct bpf_tcp_sock *tcp = bpf_tcp_sock(sk);

	return tcp && tcp->rcv_nxt - (__u32)tcp->bytes_received - 1 == mapping->isn &&
	       tcp->snd_una - (__u32)tcp->bytes_acked - 1 == mapping->cookie;
}

struct stream { /* where both directions of a connection stand */
	__u32 received; /* the number that the socket expects next */
	__u32 sent;	/* the number that it sends next */
};

/* Of a connection, also in TIME_WAIT; 0, or -1. */
static __always_inline int read_stream(struct bpf_sock *sk, struct stream *stream)
{
	if (sk->state == BPF_TCP_TIME_WAIT) {
		struct tcp_timewait_sock *waiting = (void *)bpf_skc_to_tcp_timewait_sock(sk);

		if (!waiting)
			return -1;
		stream->received = waiting->tw_sk.__tw_common.skc_tw_rcv_nxt;
		stream->sent = waiting->tw_sk.__tw_common.skc_tw_snd_nxt;
	} else {
		struct tcp_sock *tcp = (void *)bpf_skc_to_tcp_sock(sk);

		if (!tcp)
			return -1;
		stream->received = tcp->rcv_nxt;
		stream->sent = tcp->snd_nxt;
	}
	return 0;
}

/* The sequence number that the socket expects next, the only one at which it believes a reset (RFC
 * 5961, 3.2). 0 and *next, or -1. */
static __always_inline int next_expected(struct bpf_sock *sk, __u32 *next)
{
	struct stream stream;

	if (read_stream(sk, &stream))
		return -1;
	*next = stream.received;
	return 0;
}
