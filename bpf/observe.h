/* SPDX-License-Identifier: GPL-2.0-only */
/* What the router notes about a packet once its verdict is known: it decides nothing. */
#pragma once

#include "class.h"
#include "events.h"
#include "latency.h"
#include "observer.h"
#include "packet.h"
#include "trace_route.h"
#include "verdict.h"

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1); /* the loader sets how many routes there are */
	__type(key, __u32);
	__type(value, __u64);
} route_requests SEC(".maps");

static __always_inline void count_request(const __u32 *route)
{
	__u64 *requests = bpf_map_lookup_elem(&route_requests, route);

	if (requests)
		*requests += 1;
}

struct { /* by the backend's index: whom requests went to; one that moves counts for the backend that it moves to */
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, MAX_BACKENDS);
	__type(key, __u32);
	__type(value, __u64);
} backend_requests SEC(".maps");

static __always_inline void count_backend(const __u32 *backend)
{
	__u64 *requests = bpf_map_lookup_elem(&backend_requests, backend);

	if (requests)
		*requests += 1;
}

static const struct outcome nothing_known = { .route = NO_ROUTE_NUMBER, .backend = NO_BACKEND };

/* Some of it only events and traces tell. */
static __always_inline void note_outcome(struct outcome *outcome, const struct segment *segment)
{
	outcome->vip = segment->vip ? segment->vip->id : 0;
	outcome->route = route_number(segment->route);
	outcome->backend = segment->backend;
	outcome->leaves = segment->leaves;
	if (!event_interval && !trace_below)
		return;
	outcome->tuple = segment->tuple;
	outcome->seq = segment->seq;
	outcome->length = segment->length;
	outcome->flags = segment->flags;
}

/* `start`: what start_timing said. Map keys are where they are already, not on the stack. */
static __always_inline void observe(const struct observer *observer, enum verdict verdict, __u64 start)
{
	const struct outcome *outcome = &observer->outcome;

	count(&outcome->vip, verdict);
	if (is_routed(verdict)) {
		count_request(&outcome->route);
		count_backend(&outcome->backend);
	}
	if (start)
		note_time(class_of(verdict), start);
	offer_event(observer, verdict);
	offer_trace(outcome, verdict);
}
