/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The flow table: which backend a connection has, and where in its byte stream the next request must start.
 * An entry is only ever made after a valid cookie, so a flood of SYNs cannot fill it; the map evicts what was not used lately.
 */
#pragma once

#include "packet.h"
#include "scratch.h"

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 131072);	/* the configuration's `flows` */
	__type(key, struct tuple);
	__type(value, struct flow);
} flows SEC(".maps");

/* a is behind b in the stream (RFC 9293, 3.4: numbers wrap). */
static __always_inline int seq_before(__u32 a, __u32 b)
{
	return (__s32)(a - b) < 0;
}

static __always_inline __u32 segment_end(const struct segment *segment)
{
	return segment->seq + segment->length;
}

/* The client's FIN or RST exactly where the stream stands: nothing is decided by it, a spoofed one would have to guess. */
static __always_inline void note_closing(struct flow *flow, const struct segment *segment)
{
	if (segment_end(segment) == flow->next_request_seq && flow->state == FLOW_OPEN)
		flow->state = FLOW_CLOSING;
}

static __always_inline void note_request(struct flow *flow, const struct segment *segment, const struct request *request)
{
	flow->request_seq = segment->seq;
	flow->next_request_seq = segment->seq + request->head_length + request->content_length;
	flow->request_ack = segment->ack;
	flow->head_length = request->head_length;
}
