/* SPDX-License-Identifier: GPL-2.0-only */
/* What the router notes about a packet once its verdict is known. It decides nothing. */
#pragma once

#include "class.h"
#include "events.h"
#include "latency.h"
#include "packet.h"
#include "verdict.h"

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1); /* the loader sets how many routes there are */
	__type(key, __u32);
	__type(value, __u64);
} route_requests SEC(".maps");

static __always_inline void count_request(__u32 route)
{
	__u32 number = route_number(route);
	__u64 *requests = bpf_map_lookup_elem(&route_requests, &number);

	if (requests)
		*requests += 1;
}

/* `start`: what start_timing said. */
static __always_inline void observe(const struct segment *segment, enum verdict verdict, __u64 start)
{
	count(segment->vip ? segment->vip->id : 0, verdict);
	if (is_routed(verdict))
		count_request(segment->route);
	if (start)
		note_time(class_of(verdict), start);
	offer_event(segment, verdict);
}
