/* SPDX-License-Identifier: GPL-2.0-only */
/* The connection before its first request: everything is answered from the cookie, nothing is remembered.
 */
#pragma once

#include "cookie.h"
#include "reply.h"

static __always_inline __be32 clock_ms(void)
{
	return bpf_htonl((__u32)(bpf_ktime_get_ns() / 1000000));
}

static __always_inline void put_syn_ack_options(struct reply *reply, const struct option_bytes *syn)
{
	__u32 at = 4;

	put32(reply->options, bpf_htonl(0x02040000 | ROUTER_MSS));
	if (syn->timestamps) {
		put_timestamps(reply->options + 4, clock_ms(), syn->tsval);
		if (syn->sack)
			put32(reply->options + 4, bpf_htonl(0x0402080a));
		at = 16;
	} else if (syn->sack) {
		put32(reply->options + 4, bpf_htonl(0x01010402));
		at = 8;
	}
	if (syn->wscale != COOKIE_NO_WSCALE) {
		put32(reply->options + (at == 16  ? 16
					: at == 8 ? 8
						  : 4),
		      bpf_htonl(0x01030300 | ROUTER_WSCALE));
		at += 4;
	}
	reply->options_length = at;
}

/* ECN is not offered; data in the SYN (Fast Open) is not acknowledged, so the client sends it again. */
static __always_inline enum verdict answer_syn(struct xdp_md *ctx, const struct segment *segment)
{
	const struct option_bytes *syn = load_options(ctx, segment);
	struct reply reply = {
		.ack = segment->seq + 1,
		.window = ROUTER_WINDOW,
		.flags = TCP_SYN | TCP_ACK,
		.answer = -1,
	};

	if (!syn || cookie_make(&segment->tuple, segment->seq, syn, &reply.seq))
		return DROP_NO_ROOM;
	put_syn_ack_options(&reply, syn);
	return send_reply(ctx, segment, &reply, TX_SYN_ACK);
}

/*
 * A segment that carries no data and belongs to a connection that has not said anything yet; UNDECIDED if
 * its cookie does not say so. Clients keep idle connections alive with probes whose number is one back, and
 * some of them with one byte of data.
 */
static __noinline enum verdict answer_idle(struct xdp_md *ctx, const struct segment *segment)
{
	__u32 cookie = segment->ack - 1;

	if (segment->flags & TCP_RST)
		return UNDECIDED;
	if (segment->length == 0 && cookie_check(&segment->tuple, segment->seq - 1, cookie)) {
		if (!(segment->flags & TCP_FIN))
			return DROP_HANDSHAKE_ACK;
		return send_acknowledgement(ctx, segment, cookie, TCP_FIN | TCP_ACK, TX_CLOSE);
	}
	if (segment->length <= 1 && !(segment->flags & TCP_FIN) &&
	    cookie_check(&segment->tuple, segment->seq, cookie))
		return send_acknowledgement(ctx, segment, cookie, TCP_ACK, TX_KEEPALIVE);
	return UNDECIDED;
}
