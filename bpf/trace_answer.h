/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The agent's side of traces: when a request arrived, and when the first byte of its answer left.
 *
 * A client asks again when it has the answer to what it asked before, and says so: the number that a request
 * acknowledges is that of its answer's first byte. What stands there must begin as an answer does. Otherwise the client
 * did not wait, and nothing is told. Interim answers (1xx, but for 101) are passed over. This works where follow.h has
 * given up, too, and needs nothing of it.
 *
 * The head stays with what is known of the request, so that one record tells all.
 */
#pragma once

#include "follow.h"
#include "trace.h"
#include "translate.h"

#define STATUS_LINE 12 /* bytes of "HTTP/1.1 200" */

struct { /* requests without an answer, by the local tuple; whoever is not answered makes way in the end */
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1); /* the loader sets TRACES_UNDER_WAY where there are traces */
	__type(key, struct tuple);
	__type(value, struct traced);
} under_way SEC(".maps");

/* The packet, which may yet be dropped, is a new request, on a connection of that mapping's VIP. What has to be done
 * about it is done by offer_arrival(), where the stack has room. */
static __always_inline void expect_trace(const struct mapping *mapping)
{
	struct trace_scratch *place = trace_below ? get_trace_scratch() : NULL;

	if (!place)
		return;
	place->traced.trace.tuple.server = mapping->vip;
	place->traced.trace.tuple.server_port = mapping->vip_port;
	place->pending = 1;
}

/* If it has come before, the first time counts. */
static __always_inline int is_under_way(const struct tuple *local, __u32 seq)
{
	const struct traced *known = bpf_map_lookup_elem(&under_way, local);

	return known && known->trace.seq == seq;
}

/* Decapsulated and translated. */
static __noinline void trace_arrival(struct __sk_buff *skb, struct trace_scratch *place)
{
	struct trace *trace = &place->traced.trace;
	struct headers headers;
	struct tuple local;
	__u32 offset, length;

	if (!find_headers(skb, &headers))
		return;
	local.client = trace->tuple.client = headers.ip->saddr;
	local.client_port = trace->tuple.client_port = headers.tcp->source;
	local.server = headers.ip->daddr;
	local.server_port = headers.tcp->dest;
	trace->seq = bpf_ntohl(headers.tcp->seq);
	trace->answer_seq = bpf_ntohl(headers.tcp->ack_seq);
	offset = IP_LENGTH + tcp_header_length(headers.tcp);
	length = bounded_length(bpf_ntohs(headers.ip->tot_len) - offset, TRACE_HEAD);
	if (!is_traced(&trace->tuple, trace->seq) || is_under_way(&local, trace->seq) || !may_trace() ||
	    bpf_skb_load_bytes(skb, ETH_LENGTH + offset, place->traced.head, length))
		return;
	trace->time = bpf_ktime_get_ns();
	trace->head_length = length;
	bpf_map_update_elem(&under_way, &local, &place->traced, BPF_ANY);
}

/* The last thing that ingress does. */
static __always_inline void offer_arrival(struct __sk_buff *skb, enum verdict verdict)
{
	struct trace_scratch *place = trace_below ? get_trace_scratch() : NULL;

	if (!place || !place->pending)
		return;
	place->pending = 0;
	if (verdict == AGENT_OPENED || verdict == AGENT_ADOPTED || verdict == AGENT_DELIVERED)
		trace_arrival(skb, place);
}

/* What an answer that begins there says: 100 to 999; 0: none begins there, or its status is not in this packet. */
static __always_inline __u32 status_at(struct __sk_buff *skb, __u32 offset)
{
	struct trace_scratch *place = get_trace_scratch();
	const __u8 *digit;

	if (!place || bpf_skb_load_bytes(skb, offset, place->line, STATUS_LINE))
		return 0;
	digit = place->line + STATUS_LINE - 3;
	if (swar_first(*(const __u64 *)place->line, 7) != CHARS8('H', 'T', 'T', 'P', '/', '1', '.', 0) ||
	    (__u8)(place->line[7] - '0') > 9 || place->line[8] != ' ' || (__u8)(digit[0] - '1') > 8 ||
	    (__u8)(digit[1] - '0') > 9 || (__u8)(digit[2] - '0') > 9)
		return 0;
	return (digit[0] - '0') * 100 + (digit[1] - '0') * 10 + digit[2] - '0';
}

static __always_inline void note_untold(void)
{
	__u32 zero = 0;
	struct event_state *state = bpf_map_lookup_elem(&trace_states, &zero);

	if (state)
		state->lost++;
}

/* New bytes, or old ones, of the server, at `offset` of the packet. */
static __noinline void trace_answer(struct __sk_buff *skb, const struct tuple *local, __u32 seq, __u32 offset)
{
	struct traced *traced = bpf_map_lookup_elem(&under_way, local);

	if (!traced || skb->len <= offset)
		return;
	for (__u32 i = 0; i < ANSWERS_AT_ONCE; i++) {
		__u32 length = skb->len - offset, behind = traced->trace.answer_seq - seq, status, head;

		if (behind >= length)
			return;
		status = status_at(skb, offset + behind);
		if (status >= 200 || status == 101) {
			traced->trace.answered = bpf_ktime_get_ns();
			traced->trace.status = status;
			tell_trace(traced);
			bpf_map_delete_elem(&under_way, local);
			return;
		}
		head = status ? read_answer(skb, offset + behind, length - behind) : 0;
		if (!head)
			break;
		traced->trace.answer_seq += head;
	}
	note_untold();
	bpf_map_delete_elem(&under_way, local);
}

static __always_inline void offer_answer(struct __sk_buff *skb, const struct tuple *local, __u32 seq, __u32 offset)
{
	if (trace_below)
		trace_answer(skb, local, seq, offset);
}
