/* SPDX-License-Identifier: GPL-2.0-only */
/* What the router notes about a packet once its verdict is known. It decides nothing. */
#pragma once

#include "latency.h"
#include "packet.h"
#include "verdict.h"

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1); /* the loader sets how many routes there are */
	__type(key, __u32);
	__type(value, __u64);
} route_requests SEC(".maps");

static __always_inline int is_routed(enum verdict verdict)
{
	return verdict == ROUTED_FIRST || verdict == ROUTED_NEXT;
}

static __always_inline enum verdict_class class_of(enum verdict verdict)
{
	if (verdict < VERDICT_DROP)
		return CLASS_PASSED;
	if (verdict < VERDICT_TX)
		return CLASS_DROPPED;
	if (verdict < VERDICT_ENCAPSULATED)
		return CLASS_ANSWERED;
	if (is_routed(verdict))
		return CLASS_ROUTED;
	return verdict < VERDICT_AGENT ? CLASS_FORWARDED : CLASS_FALLBACK;
}

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
}
