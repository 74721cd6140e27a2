/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the router says itself: the packet is turned round in place and becomes a SYN-ACK, ACK, RST, FIN or
 * a short HTTP answer.
 */
#pragma once

#include "checksum.h"
#include "packet.h"
#include "tcp_options.h"

#define MAX_REPLY_OPTIONS 20
#define ANSWER_CAPACITY	  96 /* multiple of 4: the checksum runs over the zero-padded text */

struct answer {
	char text[ANSWER_CAPACITY];
	__u32 length;
};

#define ANSWER(status)                                                                                     \
	{ "HTTP/1.1 " status "\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",                         \
	  sizeof("HTTP/1.1 " status "\r\nContent-Length: 0\r\nConnection: close\r\n\r\n") - 1 }

static const struct answer answers[] = {
	ANSWER("404 Not Found"),	   ANSWER("400 Bad Request"),
	ANSWER("411 Length Required"),	   ANSWER("431 Request Header Fields Too Large"),
	ANSWER("414 URI Too Long"),	   ANSWER("413 Content Too Large"),
	ANSWER("503 Service Unavailable"), ANSWER("501 Not Implemented"),
};

/* Index into answers, or -1: this verdict is not answered in HTTP. */
static __always_inline int answer_of(enum verdict verdict)
{
	switch (verdict) {
	case TX_NO_ROUTE: return 0;
	case TX_BAD_REQUEST: return 1;
	case TX_LENGTH_REQUIRED: return 2;
	case TX_HEAD_TOO_LARGE: return 3;
	case TX_URI_TOO_LONG: return 4;
	case TX_BODY_TOO_LARGE: return 5;
	case TX_UNAVAILABLE: return 6;
	case TX_NOT_IMPLEMENTED: return 7;
	default: return -1;
	}
}

struct reply {
	__u32 seq;
	__u32 ack;
	__u16 window;
	__u8 flags;
	__u8 options_length; /* bytes, multiple of 4 */
	__u8 options[MAX_REPLY_OPTIONS];
	int answer; /* index, or -1: no payload */
};

/* The options of the packet into the scratch map, parsed. NULL when they can't be read. */
static __always_inline const struct option_bytes *load_options(struct xdp_md *ctx,
							       const struct segment *segment)
{
	struct option_bytes *options = option_scratch();
	__u32 length = segment->header_length - TCP_LENGTH;

	if (!options || length > TCP_MAX_OPTIONS)
		return NULL;
	if (length && bpf_xdp_load_bytes(ctx, ETH_LENGTH + IP_LENGTH + TCP_LENGTH, options->bytes,
					 bounded_length(length, TCP_MAX_OPTIONS)))
		return NULL;
	if (parse_tcp_options(length))
		return NULL;
	return options;
}

static __always_inline void put32(__u8 *at, __u32 raw)
{
	__builtin_memcpy(at, &raw, 4);
}

/* NOP NOP Timestamps (RFC 7323, appendix A). */
static __always_inline void put_timestamps(__u8 *at, __be32 tsval, __be32 tsecr)
{
	put32(at, bpf_htonl(0x0101080a));
	put32(at + 4, tsval);
	put32(at + 8, tsecr);
}

/*
 * If the packet has timestamps the reply has, too. Its TSval is what the client last saw of the other side:
 * never behind, whoever said it.
 */
static __always_inline int echo_timestamps(struct xdp_md *ctx, const struct segment *segment,
					   struct reply *reply)
{
	const struct option_bytes *options = load_options(ctx, segment);

	if (!options)
		return -1;
	if (options->timestamps) {
		put_timestamps(reply->options, options->tsecr, options->tsval);
		reply->options_length = 12;
	}
	return 0;
}

/* The Ethernet header of what goes back to where this came from. */
static __always_inline struct ethhdr turned_round(const struct ethhdr *eth)
{
	struct ethhdr turned;

	__builtin_memcpy(turned.h_dest, eth->h_source, ETH_ALEN);
	__builtin_memcpy(turned.h_source, eth->h_dest, ETH_ALEN);
	turned.h_proto = bpf_htons(ETH_P_IP);
	return turned;
}

/*
 * Makes the frame `length` bytes long and turns its Ethernet header round; NULL if that is impossible. It
 * grows at the front: every driver leaves headroom for XDP, but behind the packet there may be none (veth's
 * copies end with the data).
 */
static __always_inline struct ethhdr *turn_frame(struct xdp_md *ctx, const struct segment *segment,
						 int length)
{
	struct ethhdr *eth = (void *)(long)ctx->data, turned;
	int more = length - (int)segment->frame;

	if ((void *)(eth + 1) > (void *)(long)ctx->data_end)
		return NULL;
	turned = turned_round(eth);
	if (more > 0 ? bpf_xdp_adjust_head(ctx, -more) : bpf_xdp_adjust_tail(ctx, more))
		return NULL;
	eth = (void *)(long)ctx->data;
	if ((void *)(eth + 1) + IP_LENGTH + TCP_LENGTH > (void *)(long)ctx->data_end)
		return NULL;
	*eth = turned;
	return eth;
}

static __always_inline void write_ip(struct iphdr *ip, const struct tuple *tuple, __u16 length,
				     __u8 protocol)
{
	ip->version = 4;
	ip->ihl = 5;
	ip->tos = 0;
	ip->tot_len = bpf_htons(length);
	ip->id = 0;
	ip->frag_off = IP_DF;
	ip->ttl = DEFAULT_TTL;
	ip->protocol = protocol;
	ip->check = 0;
	ip->saddr = tuple->server;
	ip->daddr = tuple->client;
	ip->check = checksum_fold(checksum_add(0, ip, IP_LENGTH / 4));
}

static __always_inline void write_tcp(struct tcphdr *tcp, const struct tuple *tuple,
				      const struct reply *reply, __u64 sum)
{
	__u32 header = TCP_LENGTH + reply->options_length;

	tcp->source = tuple->server_port;
	tcp->dest = tuple->client_port;
	tcp->seq = bpf_htonl(reply->seq);
	tcp->ack_seq = bpf_htonl(reply->ack);
	((__be16 *)tcp)[6] = bpf_htons(header / 4 << 12 | reply->flags);
	tcp->window = bpf_htons(reply->window);
	tcp->check = 0;
	tcp->urg_ptr = 0;
	sum = checksum_add(sum, tcp, TCP_LENGTH / 4);
	tcp->check = checksum_fold(checksum_add(sum, reply->options, MAX_REPLY_OPTIONS / 4));
}

/* Turns the packet into `reply` (unused bytes of reply->options are zero). Returns `verdict`, or
 * DROP_NO_ROOM. */
static __noinline enum verdict send_reply(struct xdp_md *ctx, const struct segment *segment,
					  const struct reply *reply, enum verdict verdict)
{
	const struct answer *answer = NULL;
	__u32 text = 0, tcp_length, options = reply->options_length;
	struct ethhdr *eth;
	__u64 sum = 0;

	if (reply->answer >= 0 && reply->answer < (int)(sizeof(answers) / sizeof(answers[0]))) {
		answer = &answers[reply->answer];
		text = answer->length;
		sum = (__u32)bpf_csum_diff(NULL, 0, (void *)answer->text, ANSWER_CAPACITY, 0);
	}
	tcp_length = TCP_LENGTH + options + text;
	eth = turn_frame(ctx, segment, ETH_LENGTH + IP_LENGTH + tcp_length);
	if (!eth)
		return DROP_NO_ROOM;
	write_ip((void *)(eth + 1), &segment->tuple, IP_LENGTH + tcp_length, IPPROTO_TCP);
	sum += checksum_pseudo(segment->tuple.server, segment->tuple.client, tcp_length);
	write_tcp((void *)(eth + 1) + IP_LENGTH, &segment->tuple, reply, sum);
	if (options && bpf_xdp_store_bytes(ctx, ETH_LENGTH + IP_LENGTH + TCP_LENGTH, (void *)reply->options,
					   bounded_length(options, MAX_REPLY_OPTIONS)))
		return DROP_NO_ROOM;
	if (answer && bpf_xdp_store_bytes(ctx, ETH_LENGTH + IP_LENGTH + TCP_LENGTH + options,
					  (void *)answer->text, bounded_length(text, ANSWER_CAPACITY)))
		return DROP_NO_ROOM;
	return verdict;
}

/* RFC 9293, 3.10.7.1: a reset in answer to a segment with ACK has that number, and nothing else. */
static __noinline enum verdict send_reset(struct xdp_md *ctx, const struct segment *segment,
					  enum verdict verdict)
{
	struct reply reply = { .seq = segment->ack, .flags = TCP_RST, .answer = -1 };

	return send_reply(ctx, segment, &reply, verdict);
}

/* How much may follow: what the SYN-ACK said, in the unit that it agreed. */
static __always_inline __u16 later_window(__u32 cookie)
{
	__u8 shift = (cookie & COOKIE_OPTIONS) >> COOKIE_WSCALE_SHIFT;

	return shift == COOKIE_NO_WSCALE ? ROUTER_WINDOW : ROUTER_WINDOW >> ROUTER_WSCALE;
}

/* Acknowledges up to `ack`, and says `answer` if that is >= 0. */
static __always_inline enum verdict send_answer(struct xdp_md *ctx, const struct segment *segment,
						struct reply *reply, enum verdict verdict)
{
	if (echo_timestamps(ctx, segment, reply))
		return DROP_NO_ROOM;
	return send_reply(ctx, segment, reply, verdict);
}

static __noinline enum verdict send_acknowledgement(struct xdp_md *ctx, const struct segment *segment,
						    __u32 cookie, __u8 flags, enum verdict verdict)
{
	struct reply reply = {
		.seq = segment->ack,
		.ack = segment->seq + 1,
		.window = later_window(cookie),
		.flags = flags,
		.answer = -1,
	};

	return send_answer(ctx, segment, &reply, verdict);
}
