/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * How long the program takes, of one packet in `latency_one_in`: wall time between two readings of the clock, one of
 * which it includes. A reading costs as much as a fifth of the program, so all the others only count down.
 *
 * How many packets lie between two that are timed is drawn anew each time. Every so-manyth packet would be the wrong
 * choice: traffic comes in cycles (a request, an acknowledgement), and one kind might never be seen. Nobody outside
 * can know whose turn it is; all that he could do to those packets is to be counted among them.
 */
#pragma once

#include "observer.h"

const volatile __u32 latency_one_in; /* 0: no packet is timed */

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, CLASS_COUNT);
	__type(key, __u32);
	__type(value, struct latency);
} latency SEC(".maps");

/* When the program has begun, ns; 0 if this packet is not timed. */
static __always_inline __u64 start_timing(struct observer *observer)
{
	if (!latency_one_in)
		return 0;
	if (likely(observer->until_timed > 1)) {
		observer->until_timed--;
		return observer->zero; /* with a plain 0, the verifier would check the whole program twice */
	}
	observer->until_timed = draw_gap(latency_one_in);
	return bpf_ktime_get_ns();
}

/* Global: verified once. */
__noinline __u32 latency_bucket(__u64 ns)
{
	__u64 rest = ns;
	__u32 octave = 0;

	if (ns >> (LATENCY_FIRST_OCTAVE + LATENCY_OCTAVES))
		return LATENCY_BUCKETS - 1;
	if (!(ns >> LATENCY_FIRST_OCTAVE))
		return 0;
#pragma unroll
	for (__u32 step = 16; step; step /= 2)
		if (rest >> step) {
			rest >>= step;
			octave += step;
		}
	return 4 * (octave - LATENCY_FIRST_OCTAVE) + (ns >> (octave - 2) & 3);
}

/* Global: verified once. */
__noinline int note_time(__u32 class, __u64 start)
{
	__u64 ns = bpf_ktime_get_ns() - start;
	struct latency *times = bpf_map_lookup_elem(&latency, &class);
	__u32 bucket = latency_bucket(ns);

	if (!times || bucket >= LATENCY_BUCKETS)
		return 0;
	times->sum += ns;
	times->bucket[bucket] += 1;
	return 0;
}
