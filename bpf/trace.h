/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Traces: single requests, told by the router when it has routed them, and by the agent when their answer leaves
 * (docs/traces.md). Off unless the loader asks for them.
 *
 * Both say something about the same requests without a word to each other: a keyed hash of what both see, the tuple and
 * the number of the request's first byte, says which. Nothing in a packet changes. What is too much for the rate is
 * counted, and so is what finds no room.
 */
#pragma once

#include "mix.h"
#include "rate.h"

const volatile __u64 trace_key;	     /* the same on routers and agents */
const volatile __u64 trace_below;    /* 2^32 / one_in; 0: no request is traced */
const volatile __u64 trace_interval; /* ns between two records of a CPU in the long run */
const volatile __u64 trace_tick;     /* ns in a tick (jiffy) of the kernel's */
const volatile __u64 trace_burst;    /* ns by which such a series may be ahead of that */

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096); /* bytes; the loader sets more where there are traces */
} traces SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct event_state);
} trace_states SEC(".maps");

struct trace_scratch { /* where a record is put together: the stack has no room */
	struct traced traced;
	__u32 pending; /* agent: this packet is a request, to traced.trace.tuple.server */
	__u8 line[16]; /* agent: the beginning of an answer */
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct trace_scratch);
} trace_scratch SEC(".maps");

static __always_inline struct trace_scratch *get_trace_scratch(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&trace_scratch, &zero);
}

static __always_inline int is_traced(const struct tuple *tuple, __u32 seq)
{
	__u64 ports = (__u32)tuple->server_port << 16 | tuple->client_port;
	__u64 hash = hash_mix(trace_key, (__u64)tuple->server << 32 | tuple->client);

	hash = hash_mix(hash_mix(hash, (__u64)seq << 32 | ports), 0);
	return hash >> 32 < trace_below;
}

/* Is there still room for one more record in this CPU's rate? */
static __always_inline int may_trace(void)
{
	__u32 zero = 0;
	struct event_state *state = bpf_map_lookup_elem(&trace_states, &zero);

	if (!state)
		return 0;
	if (within_rate(state, trace_interval, trace_tick, trace_burst))
		return 1;
	state->limited++;
	return 0;
}

static __always_inline void tell_trace(struct traced *traced)
{
	__u32 zero = 0;
	struct event_state *state = bpf_map_lookup_elem(&trace_states, &zero);
	__u32 length = bounded_length(traced->trace.head_length, TRACE_HEAD);

	if (!state)
		return;
	if (bpf_ringbuf_output(&traces, traced, sizeof(traced->trace) + length, 0))
		state->lost++;
	else
		state->told++;
}
